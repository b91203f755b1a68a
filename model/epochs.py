"""One rank's examples, step after step, from any place on; and the proof that each frame came once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.batch import Batch, draw, select_batch
from model.denoiser import gammas
from model.execution import Execution, Ranks
from model.recipe import Recipe
from model.rng import Purpose
from shards.frames import BatchIndex, FrameSource
from shards.rng import derive_key

AT_ONCE = 2**20  # frames counted at a time


@dataclass
class EpochCounter:
    """How often each frame was drawn, by epoch: the proof that an epoch held each of them once."""

    n_frames: int
    counts: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, positions: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        epochs = positions // self.n_frames
        for epoch in np.unique(epochs):
            counts = self.counts.setdefault(int(epoch), np.zeros(self.n_frames, np.uint8))
            np.add.at(counts, index[epochs == epoch], 1)

    def close(self, epoch: int, ranks: Ranks) -> str:
        """One sentence on a finished epoch. Every rank must ask."""
        own = self.counts.pop(epoch, np.zeros(self.n_frames, np.uint8))
        drawn = repeated = missing = 0
        for start in range(0, self.n_frames, AT_ONCE):
            counts = ranks.total(torch.from_numpy(own[start : start + AT_ONCE].astype(np.int32)))
            drawn += int(counts.sum())
            repeated += int((counts > 1).sum())
            missing += int((counts == 0).sum())
        return f"epoch {epoch}: {drawn} frames drawn, {repeated} repeated, {missing} missing"


def dealt(start: int, batch: int, micro: int, rank: int, world: int) -> Iterator[NDArray[np.int64]]:
    """A rank's positions from ``start`` on, a micro-batch at a time: its share of each batch, without end."""
    share = batch // world
    for first in itertools.count(start + rank * share, batch):
        for k in range(first, first + share, micro):
            yield np.arange(k, k + micro)


def batches(
    data: FrameSource,
    recipe: Recipe,
    ranks: Ranks,
    machine: Execution,
    start: int,
    tally: EpochCounter,
    *,
    ahead: bool = True,
) -> Iterator[list[Batch]]:
    """This rank's examples of one step after another, in micro-batches, from position ``start`` on."""
    share = recipe.batch // ranks.world
    micro = machine.frames_at_once(recipe, ranks.world)
    table = torch.from_numpy(gammas(recipe.noise))
    order = derive_key(recipe.seed, Purpose.ORDER)

    def wanted() -> Iterator[BatchIndex]:
        for positions in dealt(start, recipe.batch, micro, ranks.rank, ranks.world):
            target = data.order(positions, seed=order)
            yield select_batch(
                data.clips,
                target,
                positions,
                seed=recipe.seed,
                frames=recipe.frames,
                audio=recipe.network.audio,
            )

    found = data.ahead(wanted(), seed=order) if ahead else map(data.seen, wanted())
    while True:
        step = list(itertools.islice(found, share // micro))
        for seen in step:
            tally.add(seen.wanted.positions, seen.wanted.target)
        yield [draw(seen, seed=recipe.seed, frames=recipe.frames, table=table) for seen in step]


def recount(data: FrameSource, tally: EpochCounter, reached: int, recipe: Recipe, ranks: Ranks) -> None:
    """Count what this epoch held before a resume; the first rank does it for all."""
    if ranks.is_first:
        for start in range(reached - reached % len(data), reached, AT_ONCE):
            positions = np.arange(start, min(start + AT_ONCE, reached))
            tally.add(positions, data.order(positions, seed=derive_key(recipe.seed, Purpose.ORDER)))
