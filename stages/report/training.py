"""Reads the folder of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint, find_best, list_checkpoints
from model.recipe import ModelError
from model.run_log import METRICS, read_metrics
from shards.sources import NOT_STATED, DataSource
from shards.storage import strip_address
from stages.engine.outcome import StageError
from stages.report.strips import EmbeddedImage, read_run_images
from stages.train.run_file import read_run_file


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A folder that ``pipeline train`` wrote."""

    name: str
    info: dict[str, Any]  # run.json
    records: tuple[dict[str, float], ...]  # lines of metrics.jsonl
    images: tuple[EmbeddedImage, ...]
    best: Checkpoint | None  # the one that sampling uses; None: no checkpoint is there

    @property
    def sources(self) -> str:
        """What it was trained on, with licences."""
        sources = [DataSource.model_validate(item) for item in self.info.get("data", [])]
        return ", ".join(map(str, sources)) or NOT_STATED

    @property
    def last_step(self) -> int:
        return int(self.records[-1]["step"]) if self.records else 0


def read_run(folder: Path) -> TrainingRun:
    """Raises StageError or ShardError if the folder holds no run, or a damaged newest checkpoint."""
    try:
        records = read_metrics(folder / METRICS)
        best = find_best(list_checkpoints(folder))
    except ModelError as err:
        raise StageError(str(err)) from err
    info = read_run_file(folder)
    if "shards" in info:
        info["shards"] = strip_address(info["shards"])  # an older redub wrote passwords too
    return TrainingRun(folder.name, info, tuple(records), tuple(read_run_images(folder)), best)
