"""The runs that a page offers, and their networks: each is read once and kept at hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from model.checkpoint import CHECKPOINTS, Checkpoint, load_network, pick
from model.execution import Execution
from model.recipe import ModelError
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from stages.train import RUN_FILE

NETWORKS_KEPT = 2

log = logging.getLogger(__name__)


class ModelList:
    """Runs below a folder, and those that are named."""

    def __init__(self, below: Path, named: Sequence[Path], device: torch.device, machine: Execution) -> None:
        self._below, self._named = below, named
        self._device, self._machine = device, machine
        self._network = lru_cache(NETWORKS_KEPT)(load_network)

    def runs(self) -> dict[str, Checkpoint]:
        """The best checkpoint of each run by the run's name, as of now: more may be training."""
        found = sorted(path.parent for path in self._below.rglob(CHECKPOINTS))
        names = {run: str(run.relative_to(self._below)) for run in found}
        names |= {run: str(run) for run in self._named}
        runs = {}
        for run, name in names.items():
            try:
                runs[name] = pick(run)
            except ModelError as err:
                log.warning("not offered: %s", err)
        return runs

    def generator(self, name: str, params: SampleParams) -> FrameGenerator:
        """A run's network, ready to draw. Raises ModelError."""
        runs = self.runs()
        if name not in runs:
            raise ModelError(f"run {name!r}: there is no such one; known are {', '.join(runs) or 'none'}")
        saved = runs[name]
        network, _ = self._network(saved.path)
        return FrameGenerator(network, saved.recipe, params, self._device, self._machine)


def told(name: str, saved: Checkpoint) -> str:
    """A run in a line: its name, how far it is, and what it learnt from."""
    run = saved.path.parent.parent
    try:
        learnt = str(json.loads((run / RUN_FILE).read_text())["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        learnt = f"dataset {saved.digest[:12]}"
    return f"{name} · step {saved.step:,} · learnt from {learnt}"
