"""Every random number hangs on seed, sample and purpose, and on nothing else."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.blocks import Dropout
from model.rng import Purpose, kept, keys_of, normals, salt_of, uniforms, words_of

CPU = torch.device("cpu")
POSITIONS = np.arange(4000)


def correlation(left: NDArray[Any], right: NDArray[Any]) -> float:
    return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])


@given(
    seed=st.integers(0, 2**64), positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True)
)
def test_a_samples_numbers_are_the_same_alone_and_in_a_batch(seed: int, positions: list[int]) -> None:
    keys = keys_of(seed, positions, Purpose.SCALARS)
    assert len(set(keys.tolist())) == len(positions)
    together = (
        uniforms(keys, 5),
        normals(keys, (3, 2), CPU),
        kept(words_of(keys, CPU), salt_of(1), (4, 3), 0.5),
    )
    for i, position in enumerate(positions):
        key = keys_of(seed, [position], Purpose.SCALARS)
        alone = uniforms(key, 5), normals(key, (3, 2), CPU), kept(words_of(key, CPU), salt_of(1), (4, 3), 0.5)
        assert np.array_equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])
        assert torch.equal(alone[2][0], together[2][i])


def test_no_generator_of_torch_or_numpy_is_moved() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    keys = keys_of(0, POSITIONS, Purpose.EPSILON)
    uniforms(keys, 2)
    normals(keys[:9], (2, 2), CPU)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


def test_seeds_samples_and_purposes_are_uncorrelated() -> None:
    """4000 pairs of independent numbers correlate by 0.016, give or take; four times that is 0.063."""
    streams = [uniforms(keys_of(0, POSITIONS, purpose), 1) for purpose in Purpose]
    streams += [uniforms(keys_of(seed, POSITIONS, Purpose.ORDER), 1) for seed in (1, 2)]
    for left, right in combinations(streams, 2):
        assert abs(correlation(left, right)) < 0.063
    for stream in streams:
        assert abs(correlation(stream[1:], stream[:-1])) < 0.063
    columns = uniforms(keys_of(0, POSITIONS, Purpose.SCALARS), 12)
    for i, j in combinations(range(12), 2):
        assert abs(correlation(columns[:, i], columns[:, j])) < 0.063


def test_uniforms_are_uniform() -> None:
    values = uniforms(keys_of(3, POSITIONS, Purpose.SCALARS), 16)
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    expected = values.size / 64
    assert np.square(counts - expected).sum() / expected < 112.0, "chi-square, one time in 10,000"


def test_normals_have_mean_0_and_standard_deviation_1() -> None:
    values = normals(keys_of(0, np.arange(64), Purpose.EPSILON), (3, 32, 32), CPU)
    n = values.numel()
    assert abs(values.mean().item()) < 4 / n**0.5
    assert abs(values.std().item() - 1) < 4 / (2 * n) ** 0.5
    assert abs(values.pow(4).mean().item() - 3) < 4 * (96 / n) ** 0.5, "the fourth moment of a normal is 3"
    for left, right in zip(values[1:], values[:-1], strict=True):
        assert abs(correlation(left.numpy(), right.numpy())) < 0.08


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_the_share_asked_for_is_kept(share: float) -> None:
    n_samples, shape = 40, (32, 16, 16)
    survives = kept(
        words_of(keys_of(0, np.arange(n_samples), Purpose.DROPOUT), CPU), salt_of(3), shape, share
    )
    assert survives.shape == (n_samples, *shape)
    values = survives.float()
    spread = (share * (1 - share)) ** 0.5
    assert values.mean().item() == pytest.approx(share, abs=4 * spread / values.numel() ** 0.5 + 1e-12)
    for places in (values.mean(dim=(2, 3)), values.mean(dim=(0, 1)), values.mean(dim=(1, 2, 3))):
        n_each = values.numel() / places.numel()
        assert (places - share).abs().max().item() <= 5 * spread / n_each**0.5 + 1e-12


def test_layers_and_samples_drop_different_values() -> None:
    words = words_of(keys_of(0, np.arange(16), Purpose.DROPOUT), CPU)
    layers = [kept(words, salt_of(layer), (64, 8, 8), 0.5).numpy().astype(float) for layer in range(12)]
    for left, right in combinations(layers, 2):
        assert abs(correlation(left, right)) < 0.02
    for left, right in combinations(layers[0], 2):
        assert abs(correlation(left, right)) < 0.08
    for layer in layers:  # neither along a channel, nor a row, nor a column
        assert abs(correlation(layer[:, 1:], layer[:, :-1])) < 0.02
        assert abs(correlation(layer[..., 1:, :], layer[..., :-1, :])) < 0.02
        assert abs(correlation(layer[..., 1:], layer[..., :-1])) < 0.02


def test_dropout_is_off_without_keys_and_without_a_share() -> None:
    h = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    words = words_of(keys_of(0, [0, 1], Purpose.DROPOUT), CPU)
    assert Dropout(0.5, salt=0)(h, None) is h
    assert Dropout(0.0, salt=0)(h, words) is h


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_zeroes_or_scales_and_keeps_the_mean(share: float) -> None:
    h = torch.ones(32, 16, 16, 16)
    dropped = Dropout(share, salt=5)(h, words_of(keys_of(0, np.arange(32), Purpose.DROPOUT), CPU))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)])
    deviation = (share / (1 - share) / h.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(1.0, abs=4 * deviation)


def test_dropped_values_get_no_gradient() -> None:
    h = torch.ones(2, 3, 8, 8, requires_grad=True)
    dropped = Dropout(0.5, salt=1)(h, words_of(keys_of(0, [4, 5], Purpose.DROPOUT), CPU))
    dropped.sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, torch.where(dropped > 0, 2.0, 0.0))
