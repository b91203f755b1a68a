"""The published models and the runs that the page offers, and a cache of their networks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from model.checkpoint import CHECKPOINTS, Checkpoint, find_checkpoint, load_network
from model.execution import Execution
from model.published_file import is_published_file
from model.recipe import ModelError
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator, load_generator
from shards.errors import shorten
from shards.storage import strip_address
from stages.engine.outcome import StageError
from stages.media.networks import PublishedNetwork
from stages.train.run_file import read_run_file

CACHED_NETWORKS = 2

log = logging.getLogger(__name__)


class ModelList:
    """Published models, the runs below a folder, and extra ones."""

    def __init__(
        self,
        root: Path,
        extra_runs: Sequence[Path],
        device: torch.device,
        execution: Execution,
        *,
        published: Sequence[PublishedNetwork] = (),
    ) -> None:
        self._root, self._extra_runs = root, extra_runs
        self._published = {item.path: item.model.name for item in published if item.path is not None}
        self.device, self.execution = device, execution
        self._load_network = lru_cache(CACHED_NETWORKS)(load_network)

    def find_runs(self) -> dict[str, Checkpoint]:
        """Published models, then the best checkpoint of each run, by their names.

        Looks again each time: runs may be training. A run of a published model's name has its path.
        """
        folders = []
        for parent, children, _ in os.walk(self._root):  # skips what is deleted meanwhile; rglob raises
            if CHECKPOINTS in children:
                folders.append(Path(parent))
                children.remove(CHECKPOINTS)  # whose folders come and go
        folders.sort()
        names, titles = set(self._published.values()), dict(self._published)
        for folder in folders:
            title = str(folder.relative_to(self._root))
            titles[folder] = str(folder) if title in names else title
        titles |= {run: str(run) for run in self._extra_runs if run not in titles}
        runs = {}
        for run, name in titles.items():
            try:
                runs[name] = find_checkpoint(run)
            except ModelError as err:
                log.warning("not offered: %s", err)
        return runs

    def get_checkpoint(self, name: str) -> Checkpoint:
        """The best checkpoint of a run. Raises ModelError."""
        runs = self.find_runs()
        if name not in runs:
            raise ModelError(
                f"run {shorten(name)}: there is no such run; known are {', '.join(runs) or 'none'}"
            )
        return runs[name]

    def load_generator(
        self, checkpoint: Checkpoint, params: SampleParams, execution: Execution | None = None
    ) -> FrameGenerator:
        """A generator with the network of a checkpoint, executed as all are unless it is said.

        Raises ModelError.
        """
        network, _ = self._load_network(checkpoint.path)
        return FrameGenerator(network, checkpoint.recipe, params, self.device, execution or self.execution)

    def load_adapted_generator(self, path: Path, params: SampleParams) -> FrameGenerator:
        """A generator with a visitor's own model, which is not kept in memory. Raises ModelError."""
        return load_generator(path, params, self.device, self.execution)


def describe_run(name: str, checkpoint: Checkpoint) -> str:
    """A run in one line: its name, its step, and the dataset it was trained on."""
    if is_published_file(checkpoint.path):
        return f"{name} · published model · step {checkpoint.step:,}"
    run = checkpoint.path.parent.parent
    try:
        dataset = strip_address(read_run_file(run)["shards"])  # an older redub wrote passwords too
    except (StageError, KeyError):
        dataset = f"dataset {checkpoint.digest[:12]}"
    return f"{name} · step {checkpoint.step:,} · trained on {dataset}"
