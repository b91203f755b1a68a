"""What is minimised: the network's answer against the noise, on the mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.batch import Batch
from model.denoiser import add_noise, embedded, masked_loss, snr_weight, training_target
from model.recipe import Recipe

Forward = Callable[..., Tensor]


def network_input(y: Tensor, shown: Batch, recipe: Recipe) -> Tensor:
    """[noisy current | previous | identity], and the mask if the network takes it: (B, 9 or 10, H, W)."""
    channels = [y, shown.previous, shown.identity]
    if recipe.network.mask_channel:
        channels.append(shown.mask)
    return torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)


def asked(forward: Forward, y: Tensor, shown: Batch, gamma: Tensor, recipe: Recipe) -> Tensor:
    """What the network says of ``y`` at noise level ``gamma``, float32."""
    level = embedded(gamma, recipe.noise.embedding)
    x = network_input(y, shown, recipe)
    return forward(x, level, shown.mels, heard=shown.heard, words=shown.words).float()


def noised(shown: Batch) -> Tensor:
    """Noise inside the mask, the frame itself outside, as a sampler has it."""
    return torch.where(shown.mask > 0, add_noise(shown.y_0, shown.epsilon, shown.gamma), shown.y_0)


def compute_losses(forward: Forward, shown: Batch, recipe: Recipe) -> Tensor:
    """Eq. 5 on the mask, per sample: (B,)."""
    said = asked(forward, noised(shown), shown, shown.gamma, recipe)
    wanted = training_target(shown.y_0, shown.epsilon, shown.gamma, recipe.noise.target)
    weight = 1 + recipe.loss.lip_weight * shown.lips if recipe.loss.lip_weight else None
    if recipe.loss.over_mask:
        losses = masked_loss(said, wanted, shown.mask, weight)
    else:
        counted = shown.mask if weight is None else shown.mask * weight
        losses = (counted * (said - wanted).square()).mean(dim=(1, 2, 3))
    return losses * snr_weight(shown.gamma, recipe.noise)
