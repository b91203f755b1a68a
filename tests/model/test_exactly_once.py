"""Each frame once an epoch, for any number of ranks, workers and frames per step, and across resumes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.epochs import EpochCounter, split_positions
from model.execution import Ranks
from shards.frames import ClipTable
from shards.rng import epoch_order
from shards.windows import Windows
from tests.model.worlds import ALONE, CPU

Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@st.composite
def run_parts(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """One part of a run: ranks, frames per rank and step, micro-batch, workers, steps until it stops."""
    ranks, share = draw(st.integers(1, 16)), draw(st.integers(1, 6))
    micro = draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0]))
    return ranks, share, micro, draw(st.integers(0, 8)), draw(st.integers(1, 4))


@settings(max_examples=50)  # each epoch derives its own keys
@given(
    lengths=st.lists(st.integers(1, 25), min_size=4, max_size=12),
    parts=st.lists(run_parts(), min_size=1, max_size=3),
    window=st.integers(0, 3),
    seed=st.integers(0, 2**63),
)
def test_all_ranks_together_train_on_the_epoch_order_without_gaps(
    lengths: Sequence[int], parts: Sequence[tuple[int, int, int, int, int]], window: int, seed: int
) -> None:
    """A run that is stopped and resumed on other ranks, with other workers and another batch size."""
    table = ClipTable.from_lengths([f"c{i:02d}" for i in range(len(lengths))], lengths)
    n = len(table)

    def order(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if window:
            return Windows(table, np.arange(len(lengths)) % 4 % len(lengths), window).epoch_order(
                positions, seed=seed
            )
        return epoch_order(positions, n, seed=seed)

    counter, position, trained = EpochCounter(n), 0, []
    for ranks, share, micro, workers, steps in parts:
        batch = ranks * share
        rank_frames = []
        for rank in range(ranks):
            n_batches = steps * share // micro
            batches = list(islice(split_positions(position, batch, micro, rank, ranks), n_batches))
            frames = order_by_workers(batches, order, workers)
            for positions, target in zip(batches, frames, strict=True):
                counter.add(positions, target)
            rank_frames.append(np.concatenate(frames).reshape(steps, share))
        trained.append(np.concatenate(rank_frames, axis=1).ravel())  # step by step, rank by rank
        position += steps * batch

    assert np.array_equal(np.concatenate(trained), order(np.arange(position)))
    for epoch in range(position // n):
        assert np.array_equal(np.sort(np.concatenate(trained)[epoch * n : (epoch + 1) * n]), np.arange(n))
        assert (
            counter.summarize_epoch(epoch, ALONE) == f"epoch {epoch}: {n} frames drawn, 0 repeated, 0 missing"
        )


def order_by_workers(
    batches: Sequence[NDArray[np.int64]], order: Order, workers: int
) -> list[NDArray[np.int64]]:
    """As in a DataLoader: batch i goes to worker i modulo their number, and the results are put in order."""
    frames: dict[int, NDArray[np.int64]] = {}
    for worker in range(max(1, workers)):
        for i in range(worker, len(batches), max(1, workers)):
            frames[i] = order(batches[i])
    return [frames[i] for i in range(len(batches))]


@given(n=st.integers(2, 30), data=st.data())
def test_the_counter_reports_a_repeated_and_a_missing_frame(n: int, data: st.DataObject) -> None:
    repeated, missing = data.draw(st.permutations(range(n)))[:2]
    frames = np.arange(n)
    frames[missing] = repeated
    counter = EpochCounter(n)
    counter.add(np.arange(n), frames)
    assert counter.summarize_epoch(0, ALONE) == f"epoch 0: {n} frames drawn, 1 repeated, 1 missing"


@given(n=st.integers(0, 50), world=st.integers(1, 16))
def test_ranks_split_the_items_of_an_evaluation_so_that_each_has_one_rank(n: int, world: int) -> None:
    shares = [Ranks(rank, world, CPU).split(range(n)) for rank in range(world)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
