"""Noise schedules, prediction targets and the loss. Depends on gamma only, not on sampler steps or frames.

``gamma`` is the paper's alpha-bar, the share of signal power: y = sqrt(gamma) y_0 + sqrt(1 - gamma) eps
(eq. 3 and 4). The network is also trained on noise levels between the steps of the schedule, so a sampler may
take any number of steps.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

Schedule = Literal["linear", "cosine"]
Target = Literal["epsilon", "v"]
Base = Literal["none", "identity"]
NoiseEmbedding = Literal["gamma", "log_snr"]

MAX_BETA = 0.999
MIN_SHARE = 1e-15  # of signal or noise at each level, since both are divided by
COSINE_OFFSET = 0.008
# log-SNR of the training levels is within +-20, and down to -30 if they are shifted; sinusoidal embeddings
# distinguish values of about 0 to 1000.
LOG_SNR_SCALE = 25.0
LOG_SNR_LIMIT = 30.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NoiseParams:
    """The diffusion: noise schedule, prediction target, embedding of the noise level."""

    schedule: Schedule = "cosine"
    steps: int = Field(default=1000, ge=2, le=100_000)  # a table of floats; noise levels lie between too
    beta_start: float = Field(default=1e-6, gt=0, lt=1)  # of the linear schedule
    beta_end: float = Field(default=0.01, gt=0, lt=1)
    # Added to the log-SNR of every level (Hoogeboom et al. 2023, simple diffusion, 3.1). The opening of the
    # mouth shows in hundreds of pixels, so the noisy frame itself tells it at 9 of 10 levels of the cosine
    # schedule (at a log-SNR above -4); the network needs the audio at the others only. With less than 0 there
    # are more of these.
    log_snr_shift: float = Field(default=0.0, ge=-10, le=0)
    target: Target = "epsilon"
    # What the network predicts a change of. `identity`: of the identity frame, so that what it does not know
    # of a person stays as that frame shows it; needs the target `v`.
    base: Base = "none"
    # The paper's code embeds gamma in [0, 1] unscaled: 17 of 64 channels vary, and the two ends of the
    # schedule get nearly the same embedding. log-SNR spreads them.
    embedding: NoiseEmbedding = "log_snr"
    # Weight min(SNR, this) / SNR for epsilon (Hang et al. 2023); 0 switches it off.
    min_snr: float = Field(default=0.0, ge=0, le=1000)

    def __post_init__(self) -> None:
        if self.base != "none" and self.target != "v":
            raise ValueError(
                f"base {self.base!r} needs the target 'v', got {self.target!r}: the noise is the same for "
                "every base"
            )
        most, least = gammas(self)[[0, -1]]
        if most > 1 - MIN_SHARE or least < MIN_SHARE:
            raise ValueError(
                f"the noise schedule goes from {1 - most:.3g} of noise to {least:.3g} of signal, expected at "
                f"least {MIN_SHARE:g} of each"
            )


def betas(params: NoiseParams) -> NDArray[np.float64]:
    """Noise variances of the discrete schedule before any shift, (T,)."""
    if params.schedule == "linear":
        return np.linspace(params.beta_start, params.beta_end, params.steps)
    edges = np.arange(params.steps + 1) / params.steps
    signal = np.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    clamped: NDArray[np.float64] = np.minimum(1 - signal[1:] / signal[:-1], MAX_BETA)
    return clamped


def gammas(params: NoiseParams) -> NDArray[np.float64]:
    """alpha-bar after each step, (T,), decreasing: the cumulative product of 1 - beta, shifted in log-SNR."""
    signal = np.asarray(np.cumprod(1 - betas(params)), np.float64)
    if not params.log_snr_shift:
        return signal
    noise = (1 - signal) * math.exp(-params.log_snr_shift)
    return signal / (signal + noise)


def interpolate_gamma(table: Tensor, places: Tensor) -> Tensor:
    """Noise levels for training, (B,), from numbers in [0, 1), in the dtype of ``table``.

    Uniform over the steps t >= 1, and between gamma_t and gamma_{t-1}.
    """
    t = places * (len(table) - 1)
    step = t.long().clamp(max=len(table) - 2)
    return torch.lerp(table[step], table[step + 1], (t - step).to(table.dtype))


def log_snr(gamma: Tensor) -> Tensor:
    """log(gamma / (1 - gamma)), clamped so that float32 is precise at both ends of the schedule."""
    return torch.logit(gamma.double()).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).to(gamma.dtype)


def embed_noise_level(gamma: Tensor, embedding: NoiseEmbedding) -> Tensor:
    """The number that the network's sinusoidal embedding takes for a noise level, (B,)."""
    return gamma if embedding == "gamma" else LOG_SNR_SCALE * log_snr(gamma)


def _to_image_dims(gamma: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return gamma[:, None, None, None]


def add_noise(y_0: Tensor, epsilon: Tensor, gamma: Tensor) -> Tensor:
    """y of eq. 4: (B, C, H, W), (B, C, H, W), (B,) -> (B, C, H, W)."""
    return _to_image_dims(gamma).sqrt() * y_0 + _to_image_dims(1 - gamma).sqrt() * epsilon


def training_target(
    y_0: Tensor, epsilon: Tensor, gamma: Tensor, target: Target, base: Tensor | None = None
) -> Tensor:
    """The noise, or v = sqrt(gamma) eps - sqrt(1 - gamma) y_0 (Salimans & Ho 2022).

    With a ``base`` (B, C, H, W) it is v of the change, y_0 - base.
    """
    if target == "epsilon":
        return epsilon
    if base is not None:
        y_0 = y_0 - base
    return _to_image_dims(gamma).sqrt() * epsilon - _to_image_dims(1 - gamma).sqrt() * y_0


def estimate_y_0(
    y: Tensor, prediction: Tensor, gamma: Tensor, target: Target, base: Tensor | None = None
) -> Tensor:
    """The clean image that follows from the network's prediction.

    With a ``base`` (B, C, H, W): base + the change that follows for y - sqrt(gamma) base. Without noise that
    is ``y`` whatever the base; the more noise, the more of the base is in it.
    """
    if target == "epsilon":
        return (y - _to_image_dims(1 - gamma).sqrt() * prediction) / _to_image_dims(gamma).sqrt()
    y_0 = _to_image_dims(gamma).sqrt() * y - _to_image_dims(1 - gamma).sqrt() * prediction
    return y_0 if base is None else y_0 + _to_image_dims(1 - gamma) * base


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean square over the pixels of the mask, per sample: (B, C, H, W), the same, (B, 1, H, W) -> (B,).

    The authors' code divides by all pixels, so its loss and its gradient grow with the mask. ``weight``
    (B, 1, H, W) makes some pixels count more; the mean is divided by it as well.
    """
    weighted_mask = mask if weight is None else mask * weight
    area = weighted_mask.sum(dim=(1, 2, 3)) * prediction.shape[1]
    return (weighted_mask * (prediction - target).square()).sum(dim=(1, 2, 3)) / area.clamp(min=1)


def snr_weight(gamma: Tensor, params: NoiseParams) -> Tensor:
    """Weight of each sample's loss by its noise level, (B,)."""
    if not params.min_snr:
        return torch.ones_like(gamma)
    snr = gamma / (1 - gamma)
    clamped = snr.clamp(max=params.min_snr)
    return clamped / snr if params.target == "epsilon" else clamped / (snr + 1)
