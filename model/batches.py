"""One rank's examples, step after step, from any place on; and the proof that each frame came once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.chance import Purpose
from model.denoiser import gammas
from model.examples import Examples, draw
from model.machine import Machine, Ranks
from model.recipe import Recipe
from shards.loader import Resident
from shards.order import drawn, key_of


@dataclass
class Tally:
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
        counts = ranks.total(torch.from_numpy(own.astype(np.int32)))
        repeated, missing = int((counts > 1).sum()), int((counts == 0).sum())
        return f"epoch {epoch}: {int(counts.sum())} frames drawn, {repeated} repeated, {missing} missing"


def batches(
    data: Resident, recipe: Recipe, ranks: Ranks, machine: Machine, start: int, tally: Tally
) -> Iterator[list[Examples]]:
    """This rank's examples of one step after another, in micro-batches, from position ``start`` on."""
    share = recipe.batch // ranks.world
    micro = machine.frames_at_once(recipe, ranks.world)
    table = torch.from_numpy(gammas(recipe.noise))
    while True:
        positions = start + ranks.rank * share + np.arange(share)
        index = drawn(positions, len(data), seed=key_of(recipe.seed, Purpose.ORDER))
        tally.add(positions, index)
        yield [
            draw(
                data,
                index[k : k + micro],
                positions[k : k + micro],
                seed=recipe.seed,
                frames=recipe.frames,
                audio=recipe.network.audio,
                table=table,
            )
            for k in range(0, share, micro)
        ]
        start += recipe.batch


def one_ahead(examples: Iterator[list[Examples]]) -> Iterator[list[Examples]]:
    """The same, drawn by a thread while the step before runs: for frames that lie in the host's memory."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, examples)
        while True:
            ready = waiting.result()
            waiting = pool.submit(next, examples)
            yield ready


def recount(tally: Tally, reached: int, recipe: Recipe, ranks: Ranks) -> None:
    """Count what this epoch held before a resume; the first rank does it for all."""
    if ranks.is_first and reached % tally.n_frames:
        positions = np.arange(reached - reached % tally.n_frames, reached)
        tally.add(positions, drawn(positions, tally.n_frames, seed=key_of(recipe.seed, Purpose.ORDER)))
