"""Random numbers depend on seed, sample and purpose alone; an epoch's order holds each item exactly once."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.dropout import dropout_mask, keys_to_int32, layer_salt
from shards.rng import Purpose, derive_key, derive_sample_keys, epoch_order, normals, permute, uniforms

CPU = torch.device("cpu")
POSITIONS = np.arange(4000)
SEEDS = st.integers(0, 2**64)
GRID_FRAMES = 220_000_000  # more than any corpus we know of
# The chi-square statistic of 64 equally likely cells exceeds this one time in 10,000.
CHI_SQUARE_64 = 112.0


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def make_order(n: int, *, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    return permute(np.arange(n), n, seed=seed, epoch=epoch)


# --- random numbers of a sample -------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**64), positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True)
)
def test_a_samples_numbers_are_the_same_alone_and_in_a_batch(seed: int, positions: list[int]) -> None:
    keys = derive_sample_keys(seed, positions, Purpose.SCALARS)
    assert len(set(keys.tolist())) == len(positions)

    def draw(keys: NDArray[np.uint64]) -> tuple[Any, Any, Any]:
        mask = dropout_mask(keys_to_int32(keys, CPU), layer_salt(1), (4, 3), 0.5)
        return uniforms(keys, 5), normals(keys, (3, 2), CPU), mask

    together = draw(keys)
    for i, position in enumerate(positions):
        alone = draw(derive_sample_keys(seed, [position], Purpose.SCALARS))
        assert np.array_equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])
        assert torch.equal(alone[2][0], together[2][i])


def test_the_generators_of_torch_and_numpy_do_not_advance() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    keys = derive_sample_keys(0, POSITIONS, Purpose.EPSILON)
    uniforms(keys, 2)
    normals(keys[:9], (2, 2), CPU)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_seeds_samples_and_purposes_are_uncorrelated() -> None:
    """The correlation of 4000 independent pairs has a deviation of 0.016; four times that is 0.063."""
    streams = [uniforms(derive_sample_keys(0, POSITIONS, purpose), 1) for purpose in Purpose]
    streams += [uniforms(derive_sample_keys(seed, POSITIONS, Purpose.ORDER), 1) for seed in (1, 2)]
    for one, other in combinations(streams, 2):
        assert abs(correlation(one, other)) < 0.063
    for stream in streams:
        assert abs(correlation(stream[1:], stream[:-1])) < 0.063
    columns = uniforms(derive_sample_keys(0, POSITIONS, Purpose.SCALARS), 12)
    for i, j in combinations(range(12), 2):
        assert abs(correlation(columns[:, i], columns[:, j])) < 0.063


def test_uniforms_are_uniform() -> None:
    values = uniforms(derive_sample_keys(3, POSITIONS, Purpose.SCALARS), 16)
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    expected = values.size / 64
    assert np.square(counts - expected).sum() / expected < CHI_SQUARE_64


def test_normals_have_mean_0_and_standard_deviation_1() -> None:
    values = normals(derive_sample_keys(0, np.arange(64), Purpose.EPSILON), (3, 32, 32), CPU)
    n = values.numel()
    assert abs(values.mean().item()) < 4 / n**0.5
    assert abs(values.std().item() - 1) < 4 / (2 * n) ** 0.5
    assert abs(values.pow(4).mean().item() - 3) < 4 * (96 / n) ** 0.5, "the fourth moment of a normal is 3"
    for one, other in zip(values[1:], values[:-1], strict=True):
        assert abs(correlation(one.numpy(), other.numpy())) < 0.08


# --- the order of an epoch ------------------------------------------------------------------------


@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_an_epoch_holds_each_item_once(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(make_order(n, seed=seed, epoch=epoch)), np.arange(n))


@given(n=st.integers(1, 3000), seed=SEEDS, data=st.data())
def test_a_place_has_the_same_item_alone_and_among_others(n: int, seed: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    assert np.array_equal(permute(np.array(places, int), n, seed=seed, epoch=3),
                          make_order(n, seed=seed, epoch=3)[places])  # fmt: skip


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    assert np.array_equal(make_order(999, seed=5, epoch=2), make_order(999, seed=5, epoch=2))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    places = np.arange(9)
    permute(places, 9, seed=0, epoch=0)
    assert np.array_equal(places, np.arange(9)), "the argument is not modified"


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_is_another_order(change: dict[str, int]) -> None:
    """Two independent orders agree at one place, on average (Montmort)."""
    n_equal = (make_order(10_000) == make_order(10_000, **change)).sum()
    assert n_equal <= 7


def test_seed_and_epoch_are_not_interchangeable() -> None:
    assert not np.array_equal(make_order(100, seed=1, epoch=2), make_order(100, seed=2, epoch=1))
    keys = {derive_key(*numbers) for numbers in ((0,), (0, 0), (1, 0), (0, 1), (1, 1), (-1,), (2**64,))}
    assert len(keys) == 6, "2^64 and 0 are one key, and no others are"


@pytest.mark.parametrize("n", [1000, 4096, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_an_item_is_equally_likely_at_every_place(n: int, seed: int) -> None:
    """Item ``i`` at place ``p``, counted in 8 x 8 cells over many epochs: chi-square."""
    cells = np.zeros((8, 8))
    n_epochs = 25
    for epoch in range(n_epochs):
        items = make_order(n, seed=seed, epoch=epoch)
        np.add.at(cells, (np.arange(n) * 8 // n, items * 8 // n), 1)
    expected = n * n_epochs / 64
    assert np.square(cells - expected).sum() / expected < CHI_SQUARE_64


def test_neighbours_are_scattered() -> None:
    """Successive items are as far apart as two random ones: n / 3 on average."""
    n = 30_000
    distances = np.abs(np.diff(make_order(n)))
    assert distances.mean() == pytest.approx(n / 3, rel=0.02)
    assert (distances == 1).mean() < 10 / n


@given(n=st.integers(1, 300), seed=SEEDS, n_epochs=st.integers(1, 5))
def test_the_sequence_holds_each_item_once_an_epoch(n: int, seed: int, n_epochs: int) -> None:
    sequence = epoch_order(np.arange(n * n_epochs), n, seed=seed).reshape(n_epochs, n)
    assert np.array_equal(np.sort(sequence, axis=1), np.tile(np.arange(n), (n_epochs, 1)))
    for epoch in range(n_epochs):
        assert np.array_equal(sequence[epoch], make_order(n, seed=seed, epoch=epoch))


@given(
    n=st.integers(20, 100),
    world=st.integers(1, 4),
    share=st.integers(1, 12),
    start=st.integers(0, 500),
    micro=st.integers(1, 12),
)
def test_ranks_and_batches_only_divide_the_sequence(
    n: int, world: int, share: int, start: int, micro: int
) -> None:
    whole = epoch_order(np.arange(start, start + 3 * world * share), n, seed=9)
    pieces = []
    for step in range(3):
        for rank in range(world):
            first = start + (step * world + rank) * share
            positions = np.arange(first, first + share)
            pieces += [epoch_order(positions[k : k + micro], n, seed=9) for k in range(0, share, micro)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_corpus_of_220_million_frames_needs_no_memory() -> None:
    places = np.array([0, 1, GRID_FRAMES // 2, GRID_FRAMES - 1])
    items = permute(places, GRID_FRAMES, seed=0, epoch=0)
    assert ((items >= 0) & (items < GRID_FRAMES)).all()
    assert len(set(items.tolist())) == len(places)
    far = 10**5 * GRID_FRAMES + places  # a hundred thousand epochs on
    expected_far = permute(places, GRID_FRAMES, seed=0, epoch=10**5)
    assert np.array_equal(epoch_order(far, GRID_FRAMES, seed=0), expected_far)
    some = permute(np.arange(200_000) * 1100, GRID_FRAMES, seed=0, epoch=0)
    assert len(np.unique(some)) == len(some)
    counts, _ = np.histogram(some, bins=64, range=(0, GRID_FRAMES))
    expected = len(some) / 64
    assert np.square(counts - expected).sum() / expected < CHI_SQUARE_64
