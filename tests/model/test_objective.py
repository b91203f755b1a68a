"""What the network is shown in training, and the loss, compared with the formulas in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import Batch
from model.denoiser import embed_noise_level
from model.objective import compute_losses
from model.recipe import LossParams, Recipe
from tests.model.worlds import N_MELS, SIZE, TINY

B = 2
# One box per sample, of unequal areas, and lips that reach out of it.
MASKS, LIPS = ((8, 15, 4, 12), (9, 16, 2, 5)), ((7, 12, 6, 10), (10, 13, 3, 9))  # rows, then columns
# lip weight, over the mask
WEIGHTS = [(0.0, True), (0.0, False), (0.5, True), (0.5, False), (2.0, True), (2.0, False)]


def make_boxes(boxes: tuple[tuple[int, int, int, int], ...]) -> Tensor:
    """(B, 1, H, W): 1 inside."""
    masks = torch.zeros(B, 1, SIZE, SIZE)
    for mask, (y0, y1, x0, x1) in zip(masks, boxes, strict=True):
        mask[:, y0:y1, x0:x1] = 1
    return masks


def make_batch() -> Batch:
    """A batch of noise in which no two pictures are alike."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    y_0, previous, identity, context, epsilon = (draw(B, 3, SIZE, SIZE) for _ in range(5))
    return Batch(
        y_0=y_0,
        previous=previous,
        identity=identity,
        context=context,
        mask=make_boxes(MASKS),
        lips=make_boxes(LIPS),
        mels=draw(B, TINY.network.audio.rows, N_MELS),
        speech=None,
        has_audio=torch.tensor([True, False]),
        gamma=torch.tensor([0.2, 0.9]),
        epsilon=epsilon,
        dropout_keys=torch.tensor([3, 7], dtype=torch.int32),
    )


def record(prediction: Tensor, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Callable[..., Tensor]:
    """A network that predicts the same whatever it is shown, which goes to ``calls``."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return prediction

    return forward


def compute_target(batch: Batch, recipe: Recipe) -> NDArray[np.float64]:
    """The noise, or v of the change from the base: (B, 3, H, W)."""
    y_0, epsilon, gamma = (part.double().numpy() for part in (batch.y_0, batch.epsilon, batch.gamma))
    if recipe.noise.target == "epsilon":
        return epsilon
    if recipe.noise.base == "identity":
        y_0 = y_0 - batch.identity.double().numpy()
    signal, noise = np.sqrt(gamma)[:, None, None, None], np.sqrt(1 - gamma)[:, None, None, None]
    return np.asarray(signal * epsilon - noise * y_0, np.float64)


@pytest.mark.parametrize("mask_channel", [True, False])
def test_the_network_is_shown_noise_in_the_mask_and_the_batchs_context_around_it(mask_channel: bool) -> None:
    recipe = replace(TINY, network=replace(TINY.network, mask_channel=mask_channel))
    batch, calls = make_batch(), list[tuple[tuple[Any, ...], dict[str, Any]]]()
    compute_losses(record(torch.zeros(B, 3, SIZE, SIZE), calls), batch, recipe)
    [((x, noise_level, mels), keywords)] = calls
    images = x.double().numpy()
    assert x.shape == (B, 10 if mask_channel else 9, SIZE, SIZE)
    for k, (y0, y1, x0, x1) in enumerate(MASKS):
        gamma = float(batch.gamma[k])
        expected = batch.context[k].double().numpy().copy()
        noisy = np.sqrt(gamma) * batch.y_0[k].numpy() + np.sqrt(1 - gamma) * batch.epsilon[k].numpy()
        expected[:, y0:y1, x0:x1] = noisy[:, y0:y1, x0:x1]
        outside = np.ones((SIZE, SIZE), bool)
        outside[y0:y1, x0:x1] = False
        assert np.array_equal(images[k, :3, outside], expected[:, outside].T), "to the last bit"
        assert images[k, :3] == pytest.approx(expected, abs=1e-5)
    assert torch.equal(x[:, 3:6], batch.previous) and torch.equal(x[:, 6:9], batch.identity)
    assert torch.equal(x[:, 9:], batch.mask if mask_channel else x[:, :0])
    assert torch.equal(noise_level, embed_noise_level(batch.gamma, recipe.noise.embedding))
    assert mels is batch.mels
    expected_keywords = {name: getattr(batch, name) for name in ("speech", "has_audio", "dropout_keys")}
    assert keywords == expected_keywords, "the same objects"


@pytest.mark.parametrize(("lip_weight", "over_mask"), WEIGHTS)
def test_the_loss_is_the_weighted_mean_of_squares_in_the_mask(lip_weight: float, over_mask: bool) -> None:
    """A pixel of the lips counts 1 + ``lip_weight`` times, and in the mean's divisor only over the mask."""
    recipe = replace(TINY, loss=LossParams(over_mask=over_mask, lip_weight=lip_weight))
    batch = make_batch()
    prediction = torch.randn(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    losses = compute_losses(record(prediction, []), batch, recipe)
    squares = (prediction.double().numpy() - compute_target(batch, recipe)) ** 2
    for k, ((y0, y1, x0, x1), lips) in enumerate(zip(MASKS, LIPS, strict=True)):
        weights = np.ones((SIZE, SIZE))
        weights[lips[0] : lips[1], lips[2] : lips[3]] += lip_weight
        squares_in_mask, weights_in_mask = squares[k, :, y0:y1, x0:x1], weights[y0:y1, x0:x1]
        divisor = weights_in_mask.sum() if over_mask else SIZE**2
        assert float(losses[k]) == pytest.approx((weights_in_mask * squares_in_mask).sum() / (3 * divisor))
    assert losses.shape == (B,)


@pytest.mark.parametrize(("target", "base"), [("epsilon", "none"), ("v", "none"), ("v", "identity")])
def test_only_a_network_that_predicts_the_target_in_the_mask_has_no_loss(target: str, base: str) -> None:
    noise = replace(TINY.noise, target=target, base=base)  # type: ignore[arg-type]
    recipe, batch = replace(TINY, noise=noise), make_batch()
    prediction = torch.from_numpy(compute_target(batch, recipe)).float()
    outside = batch.mask.expand_as(prediction) == 0
    prediction[outside] = 9.0  # nobody looks there
    assert compute_losses(record(prediction, []), batch, recipe).tolist() == pytest.approx([0, 0], abs=1e-10)
    prediction[:, :, 10, 4] += 1.0  # in both masks
    assert (compute_losses(record(prediction, []), batch, recipe) > 1e-3).all()


def test_noisy_samples_weigh_as_the_recipes_limit_of_the_snr_says() -> None:
    batch = make_batch()
    prediction = torch.randn(B, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    limited = replace(TINY, noise=replace(TINY.noise, min_snr=1.0))
    plain, weighted = (compute_losses(record(prediction, []), batch, recipe) for recipe in (TINY, limited))
    snr = np.array([0.2 / 0.8, 0.9 / 0.1])
    assert (weighted / plain).tolist() == pytest.approx(np.minimum(snr, 1) / (snr + 1)), "of v"
