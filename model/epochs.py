"""The batches of one rank from any position on, and a count of how often each frame was used."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.batch import Batch, make_batch, select_batch
from model.denoiser import gammas
from model.execution import Execution, Ranks
from model.recipe import Recipe
from shards.frames import BatchIndex, FrameSource
from shards.rng import Purpose, derive_key

FRAMES_PER_CHUNK = 2**20  # counted at a time


@dataclass
class EpochCounter:
    """How often each frame was used, by epoch: shows that an epoch contained each frame once."""

    n_frames: int
    counts: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, positions: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        """Count frames, (B,), used at these positions, (B,)."""
        epochs = positions // self.n_frames
        for epoch in np.unique(epochs):
            counts = self.counts.setdefault(int(epoch), np.zeros(self.n_frames, np.uint8))
            np.add.at(counts, frames[epochs == epoch], 1)

    def summarize_epoch(self, epoch: int, ranks: Ranks) -> str:
        """One line on a finished epoch, whose counts are then deleted. Collective: call it on every rank."""
        own_counts = self.counts.pop(epoch, np.zeros(self.n_frames, np.uint8))
        n_total = n_repeated = n_missing = 0
        for start in range(0, self.n_frames, FRAMES_PER_CHUNK):
            chunk = own_counts[start : start + FRAMES_PER_CHUNK]
            counts = ranks.sum(torch.from_numpy(chunk.astype(np.int32)))
            n_total += int(counts.sum())
            n_repeated += int((counts > 1).sum())
            n_missing += int((counts == 0).sum())
        return f"epoch {epoch}: {n_total} frames drawn, {n_repeated} repeated, {n_missing} missing"


def split_positions(start: int, batch: int, micro: int, rank: int, world: int) -> Iterator[NDArray[np.int64]]:
    """A rank's positions from ``start`` on, one micro-batch at a time: its share of each batch, endlessly."""
    share = batch // world
    for first in itertools.count(start + rank * share, batch):
        for k in range(first, first + share, micro):
            yield np.arange(k, k + micro)


def load_batches(
    data: FrameSource,
    recipe: Recipe,
    ranks: Ranks,
    execution: Execution,
    start: int,
    counter: EpochCounter,
    *,
    prefetch: bool = True,
) -> Generator[list[Batch], None, None]:
    """This rank's micro-batches of one step after another, from position ``start`` on, endlessly.

    Close it after use: it ends the threads or processes that read ahead.
    """
    micro = execution.choose_micro_batch(recipe, ranks.world)
    n_micro_batches = recipe.batch // ranks.world // micro
    table = torch.from_numpy(gammas(recipe.noise))
    order_seed = derive_key(recipe.seed, Purpose.ORDER)

    def select_batches() -> Iterator[BatchIndex]:
        for positions in split_positions(start, recipe.batch, micro, ranks.rank, ranks.world):
            target = data.epoch_order(positions, seed=order_seed)
            yield select_batch(
                data.clips,
                target,
                positions,
                seed=recipe.seed,
                frames=recipe.frames,
                audio=recipe.network.audio,
            )

    indices = select_batches()
    raw_batches = data.prefetch(indices, seed=order_seed) if prefetch else map(data.read_batch, indices)
    try:
        while True:
            step = list(itertools.islice(raw_batches, n_micro_batches))
            for raw in step if data.has_exact_epochs else ():
                counter.add(raw.indices.positions, raw.indices.target)
            yield [
                make_batch(
                    raw,
                    seed=recipe.seed,
                    frames=recipe.frames,
                    table=table,
                    margins=data.clips.margins,
                    top=recipe.network.top,
                )
                for raw in step
            ]
    finally:
        if isinstance(raw_batches, Generator):
            raw_batches.close()


def count_resumed_epoch(
    data: FrameSource, counter: EpochCounter, position: int, recipe: Recipe, ranks: Ranks
) -> None:
    """Count the frames of the current epoch before ``position``, where a run resumes. First rank only."""
    if ranks.is_first:
        for start in range(position - position % len(data), position, FRAMES_PER_CHUNK):
            positions = np.arange(start, min(start + FRAMES_PER_CHUNK, position))
            counter.add(positions, data.epoch_order(positions, seed=derive_key(recipe.seed, Purpose.ORDER)))
