"""The order of training: every frame once an epoch, the same however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards.rng import derive_key, drawn, permuted

SEEDS = st.integers(0, 2**64)
GRID_FRAMES = 220_000_000  # more than any corpus we know of
# Chi-square of 64 even fields lies below this but for one time in 10,000.
CHI_SQUARE_64 = 112.0


def order(n: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    return permuted(np.arange(n), n, seed=seed, epoch=epoch)


@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_holds_each_thing_once(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(order(n, seed=seed, epoch=epoch)), np.arange(n))


@given(n=st.integers(1, 3000), seed=SEEDS, data=st.data())
def test_a_place_says_the_same_alone_and_among_others(n: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    assert np.array_equal(permuted(np.array(places, int), n, seed=seed, epoch=3),
                          order(n, seed=seed, epoch=3)[places])  # fmt: skip


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    assert np.array_equal(order(999, seed=5, epoch=2), order(999, seed=5, epoch=2))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    asked = np.arange(9)
    permuted(asked, 9, seed=0, epoch=0)
    assert np.array_equal(asked, np.arange(9)), "what was asked is left as it is"


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_is_another_order(change: dict[str, int]) -> None:
    """Two orders that have nothing to do with each other agree at one place, on average (Montmort)."""
    agree = (order(10_000) == order(10_000, **change)).sum()
    assert agree <= 7


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    assert not np.array_equal(order(100, seed=1, epoch=2), order(100, seed=2, epoch=1))
    keys = {derive_key(*numbers) for numbers in ((0,), (0, 0), (1, 0), (0, 1), (1, 1), (-1,), (2**64,))}
    assert len(keys) == 6, "2^64 and 0 are one key, and no others are"


@pytest.mark.parametrize("n", [1000, 4096, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_a_thing_is_as_likely_at_every_place(n: int, seed: int) -> None:
    """Thing ``i`` at place ``p``, as counts in 8 x 8 fields over many epochs: chi-square."""
    fields = np.zeros((8, 8))
    n_epochs = 25
    for epoch in range(n_epochs):
        things = order(n, seed=seed, epoch=epoch)
        np.add.at(fields, (np.arange(n) * 8 // n, things * 8 // n), 1)
    expected = n * n_epochs / 64
    assert np.square(fields - expected).sum() / expected < CHI_SQUARE_64


def test_neighbours_are_scattered() -> None:
    """What follows a thing is no nearer to it than a thing drawn at random: n / 3 away on average."""
    n = 30_000
    away = np.abs(np.diff(order(n)))
    assert away.mean() == pytest.approx(n / 3, rel=0.02)
    assert (away == 1).mean() < 10 / n


@given(n=st.integers(1, 300), seed=SEEDS, n_epochs=st.integers(1, 5))
def test_the_stream_holds_each_thing_once_an_epoch(n: int, seed: int, n_epochs: int) -> None:
    stream = drawn(np.arange(n * n_epochs), n, seed=seed).reshape(n_epochs, n)
    assert np.array_equal(np.sort(stream, axis=1), np.tile(np.arange(n), (n_epochs, 1)))
    for epoch in range(n_epochs):
        assert np.array_equal(stream[epoch], order(n, seed=seed, epoch=epoch))


@given(
    n=st.integers(20, 100),
    world=st.integers(1, 4),
    share=st.integers(1, 12),
    start=st.integers(0, 500),
    micro=st.integers(1, 12),
)
def test_ranks_and_batches_only_cut_the_stream(
    n: int, world: int, share: int, start: int, micro: int
) -> None:
    whole = drawn(np.arange(start, start + 3 * world * share), n, seed=9)
    cut = []
    for step in range(3):
        for rank in range(world):
            first = start + (step * world + rank) * share
            positions = np.arange(first, first + share)
            cut += [drawn(positions[k : k + micro], n, seed=9) for k in range(0, share, micro)]
    assert np.array_equal(np.concatenate(cut), whole)


def test_a_corpus_of_220_million_frames_needs_no_memory() -> None:
    places = np.array([0, 1, GRID_FRAMES // 2, GRID_FRAMES - 1])
    things = permuted(places, GRID_FRAMES, seed=0, epoch=0)
    assert ((things >= 0) & (things < GRID_FRAMES)).all()
    assert len(set(things.tolist())) == len(places)
    far = 10**5 * GRID_FRAMES + places  # a hundred thousand epochs on
    assert np.array_equal(drawn(far, GRID_FRAMES, seed=0), permuted(places, GRID_FRAMES, seed=0, epoch=10**5))
    some = permuted(np.arange(200_000) * 1100, GRID_FRAMES, seed=0, epoch=0)
    assert len(np.unique(some)) == len(some)
    counts, _ = np.histogram(some, bins=64, range=(0, GRID_FRAMES))
    expected = len(some) / 64
    assert np.square(counts - expected).sum() / expected < CHI_SQUARE_64
