"""Each frame once an epoch, for any number of ranks, workers and frames a step, and over any resume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.epochs import EpochCounter, dealt
from model.execution import Ranks
from shards.frames import ClipTable
from shards.rng import drawn
from shards.windows import Windows
from tests.model.worlds import ALONE, CPU

Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@st.composite
def stages(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """One part of a run: ranks, frames per rank and step, micro-batch, workers, steps until it is stopped."""
    ranks, share = draw(st.integers(1, 16)), draw(st.integers(1, 6))
    micro = draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0]))
    return ranks, share, micro, draw(st.integers(0, 8)), draw(st.integers(1, 4))


@settings(max_examples=50)  # each epoch has keys of its own
@given(
    lengths=st.lists(st.integers(1, 25), min_size=4, max_size=12),
    parts=st.lists(stages(), min_size=1, max_size=3),
    window=st.integers(0, 3),
    seed=st.integers(0, 2**63),
)
def test_what_all_ranks_draw_is_the_order_itself_cut_nowhere(
    lengths: Sequence[int], parts: Sequence[tuple[int, int, int, int, int]], window: int, seed: int
) -> None:
    """A run that is stopped and resumed on other ranks, with other workers and another batch size."""
    table = ClipTable.of([f"c{i:02d}" for i in range(len(lengths))], lengths)
    n = len(table)

    def order(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if window:
            return Windows(table, np.arange(len(lengths)) % 4 % len(lengths), window).drawn(
                positions, seed=seed
            )
        return drawn(positions, n, seed=seed)

    tally, reached, trained = EpochCounter(n), 0, []
    for ranks, share, micro, workers, steps in parts:
        batch = ranks * share
        of_ranks = []
        for rank in range(ranks):
            todo = list(islice(dealt(reached, batch, micro, rank, ranks), steps * share // micro))
            found = by_workers(todo, order, workers)
            for positions, target in zip(todo, found, strict=True):
                tally.add(positions, target)
            of_ranks.append(np.concatenate(found).reshape(steps, share))
        trained.append(np.concatenate(of_ranks, axis=1).ravel())  # step by step, rank by rank
        reached += steps * batch

    assert np.array_equal(np.concatenate(trained), order(np.arange(reached)))
    for epoch in range(reached // n):
        assert np.array_equal(np.sort(np.concatenate(trained)[epoch * n : (epoch + 1) * n]), np.arange(n))
        assert tally.close(epoch, ALONE) == f"epoch {epoch}: {n} frames drawn, 0 repeated, 0 missing"


def by_workers(todo: Sequence[NDArray[np.int64]], order: Order, workers: int) -> list[NDArray[np.int64]]:
    """As a DataLoader deals: batch i to worker i modulo their number, and back in order."""
    found: dict[int, NDArray[np.int64]] = {}
    for worker in range(max(1, workers)):
        for i in range(worker, len(todo), max(1, workers)):
            found[i] = order(todo[i])
    return [found[i] for i in range(len(todo))]


@given(n=st.integers(2, 30), data=st.data())
def test_a_tally_sees_a_frame_that_came_twice_and_one_that_did_not_come(n: int, data: st.DataObject) -> None:
    twice, never = data.draw(st.permutations(range(n)))[:2]
    frames = np.arange(n)
    frames[never] = twice
    tally = EpochCounter(n)
    tally.add(np.arange(n), frames)
    assert tally.close(0, ALONE) == f"epoch 0: {n} frames drawn, 1 repeated, 1 missing"


@given(n=st.integers(0, 50), world=st.integers(1, 16))
def test_what_is_evaluated_is_shared_among_ranks_each_item_once(n: int, world: int) -> None:
    shares = [Ranks(rank, world, CPU).own(range(n)) for rank in range(world)]
    assert sorted(itertools.chain.from_iterable(shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
