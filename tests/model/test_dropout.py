"""Dropout is a pure function of a sample's key and the layer, and drops the right share of the values."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.dropout import Dropout, dropout_mask, keys_to_int32, layer_salt
from shards.rng import Purpose, derive_sample_keys
from tests.shards.test_rng import correlation

CPU = torch.device("cpu")


def make_keys(n_samples: int) -> Tensor:
    return keys_to_int32(derive_sample_keys(0, np.arange(n_samples), Purpose.DROPOUT), CPU)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_a_mask_is_true_for_the_requested_share(share: float) -> None:
    n_samples, shape = 40, (32, 16, 16)
    mask = dropout_mask(make_keys(n_samples), layer_salt(3), shape, share)
    assert mask.shape == (n_samples, *shape)
    values = mask.float()
    spread = (share * (1 - share)) ** 0.5
    assert values.mean().item() == pytest.approx(share, abs=4 * spread / values.numel() ** 0.5 + 1e-12)
    for means in (values.mean(dim=(2, 3)), values.mean(dim=(0, 1)), values.mean(dim=(1, 2, 3))):
        n_each = values.numel() / means.numel()
        assert (means - share).abs().max().item() <= 5 * spread / n_each**0.5 + 1e-12


def test_layers_and_samples_drop_different_values() -> None:
    keys = make_keys(16)
    layers = [
        dropout_mask(keys, layer_salt(layer), (64, 8, 8), 0.5).numpy().astype(float) for layer in range(12)
    ]
    for one, other in combinations(layers, 2):
        assert abs(correlation(one, other)) < 0.02
    for one, other in combinations(layers[0], 2):
        assert abs(correlation(one, other)) < 0.08
    for layer in layers:  # nor are neighbours along a channel, a row or a column correlated
        assert abs(correlation(layer[:, 1:], layer[:, :-1])) < 0.02
        assert abs(correlation(layer[..., 1:, :], layer[..., :-1, :])) < 0.02
        assert abs(correlation(layer[..., 1:], layer[..., :-1])) < 0.02


def test_dropout_is_off_without_keys_and_without_a_share() -> None:
    h = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert Dropout(0.5, layer=0)(h, None) is h
    assert Dropout(0.0, layer=0)(h, make_keys(2)) is h


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_zeroes_or_scales_and_preserves_the_mean(share: float) -> None:
    h = torch.ones(32, 16, 16, 16)
    dropped = Dropout(share, layer=5)(h, make_keys(32))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - share)])
    deviation = (share / (1 - share) / h.numel()) ** 0.5
    assert dropped.mean().item() == pytest.approx(1.0, abs=4 * deviation)


def test_dropped_values_get_no_gradient() -> None:
    h = torch.ones(2, 3, 8, 8, requires_grad=True)
    keys = keys_to_int32(derive_sample_keys(0, [4, 5], Purpose.DROPOUT), CPU)
    dropped = Dropout(0.5, layer=1)(h, keys)
    dropped.sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, torch.where(dropped > 0, 2.0, 0.0))
