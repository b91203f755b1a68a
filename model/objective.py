"""The training loss: the network's prediction against the noise (or v), on the mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.batch import Batch
from model.denoiser import add_noise, embed_noise_level, masked_loss, snr_weight, training_target
from model.recipe import Recipe

Forward = Callable[..., Tensor]


def stack_channels(y: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """[noisy current | previous | identity], and the mask if the network takes it: (B, 9 or 10, H, W)."""
    channels = [y, *list_conditions(batch, recipe)]
    return torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)


def list_conditions(batch: Batch, recipe: Recipe) -> list[Tensor]:
    """The images besides the noisy ones: previous and identity, and the mask if the network takes it."""
    return [batch.previous, batch.identity] + ([batch.mask] if recipe.network.mask_channel else [])


def select_base(identity: Tensor, recipe: Recipe) -> Tensor | None:
    """What the network predicts a change of: the identity frames (B, 3, H, W), or nothing."""
    return identity if recipe.noise.base == "identity" else None


def predict(forward: Forward, y: Tensor, batch: Batch, recipe: Recipe) -> Tensor:
    """The network's prediction for ``y`` at the noise levels of the batch, float32."""
    noise_level = embed_noise_level(batch.gamma, recipe.noise.embedding)
    x = stack_channels(y, batch, recipe)
    return forward(
        x,
        noise_level,
        batch.mels,
        speech=batch.speech,
        has_audio=batch.has_audio,
        dropout_keys=batch.dropout_keys,
    ).float()


def add_noise_in_mask(batch: Batch) -> Tensor:
    """Noise inside the mask; outside it the clean frame as in sampling, or the clip's other frame."""
    return torch.where(batch.mask > 0, add_noise(batch.y_0, batch.epsilon, batch.gamma), batch.context)


def compute_losses(forward: Forward, batch: Batch, recipe: Recipe) -> Tensor:
    """Eq. 5 on the mask, per sample: (B,)."""
    prediction = predict(forward, add_noise_in_mask(batch), batch, recipe)
    base = select_base(batch.identity, recipe)
    target = training_target(batch.y_0, batch.epsilon, batch.gamma, recipe.noise.target, base)
    weight = 1 + recipe.loss.lip_weight * batch.lips if recipe.loss.lip_weight else None
    if recipe.loss.over_mask:
        losses = masked_loss(prediction, target, batch.mask, weight)
    else:
        weighted_mask = batch.mask if weight is None else batch.mask * weight
        losses = (weighted_mask * (prediction - target).square()).mean(dim=(1, 2, 3))
    return losses * snr_weight(batch.gamma, recipe.noise)
