"""Reads the folder of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.run_log import METRICS, SELECTING_LOSSES, read_metrics
from stages.engine.json_file import read_json_file
from stages.report.strips import EmbeddedImage, read_run_images
from stages.train import RUN_FILE


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A folder that ``pipeline train`` wrote."""

    name: str
    info: dict[str, Any]  # run.json
    records: tuple[dict[str, float], ...]  # lines of metrics.jsonl
    images: tuple[EmbeddedImage, ...]

    @property
    def last_step(self) -> int:
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def best_record(self) -> dict[str, float] | None:
        """The line of metrics.jsonl whose checkpoint sampling uses: the lowest ``selecting_loss``."""
        records = [record for record in self.records if self.selecting_loss in record]
        return min(records, key=lambda record: record[self.selecting_loss], default=None)

    @property
    def selecting_loss(self) -> str:
        """The column of metrics.jsonl that selects the best checkpoint."""
        recipe = self.info.get("recipe")
        best_by = recipe.get("best_by") if isinstance(recipe, dict) else None
        return SELECTING_LOSSES.get(str(best_by), SELECTING_LOSSES["seeing"])


def read_run(folder: Path) -> TrainingRun:
    """Raises StageError if the folder holds no run."""
    info = read_json_file(folder / RUN_FILE, "pipeline train")
    return TrainingRun(
        folder.name, info, tuple(read_metrics(folder / METRICS)), tuple(read_run_images(folder))
    )
