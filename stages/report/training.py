"""What a run tells of itself, for the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.run_log import METRICS, read_metrics
from stages.report.inputs import read_object
from stages.report.strips import Picture, pictures_of_run
from stages.train import RUN_FILE


@dataclass(frozen=True, slots=True)
class Training:
    """A run's folder."""

    name: str
    story: dict[str, Any]  # run.json
    records: tuple[dict[str, float], ...]  # lines of metrics.jsonl
    pictures: tuple[Picture, ...]

    @property
    def step(self) -> int:
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def held_out(self) -> dict[str, float] | None:
        """The line with the lowest held-out loss."""
        told = [record for record in self.records if "held_out_loss" in record]
        return min(told, key=lambda record: record["held_out_loss"], default=None)


def read_run(folder: Path) -> Training:
    """Raises StageError when the folder is not a run's."""
    story = read_object(folder / RUN_FILE, "pipeline train")
    return Training(folder.name, story, tuple(read_metrics(folder / METRICS)), tuple(pictures_of_run(folder)))
