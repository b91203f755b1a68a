"""Noise levels, what the network is asked for, and the loss. Knows gamma; nothing of steps or frames.

``gamma`` is the paper's alpha-bar, the share of signal power: y = sqrt(gamma) y_0 + sqrt(1 - gamma) eps
(eq. 3 and 4). The network is trained on noise levels between the schedule's steps too, so a sampler may
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
NoiseEmbedding = Literal["gamma", "log_snr"]

MAX_BETA = 0.999
COSINE_OFFSET = 0.008
# log-SNR of the levels trained on lies within +-20; the sinusoids tell values of about 0 to 1000 apart.
LOG_SNR_SCALE = 25.0
LOG_SNR_LIMIT = 20.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NoiseParams:
    """The diffusion: which noise levels, which target, how the level is told to the network."""

    schedule: Schedule = "cosine"
    steps: int = Field(default=1000, ge=2)
    beta_start: float = Field(default=1e-6, gt=0, lt=1)  # of the linear schedule
    beta_end: float = Field(default=0.01, gt=0, lt=1)
    target: Target = "epsilon"
    # The paper's code gives the sinusoids gamma in [0, 1] unscaled: 17 of 64 channels vary, and the two ends
    # of the schedule look alike. log-SNR spreads them.
    embedding: NoiseEmbedding = "log_snr"
    # Weight min(SNR, this) / SNR for epsilon (Hang et al. 2023); 0 switches it off.
    min_snr: float = Field(default=0.0, ge=0)


def betas(params: NoiseParams) -> NDArray[np.float64]:
    """Noise variances of the discrete schedule, (T,)."""
    if params.schedule == "linear":
        return np.linspace(params.beta_start, params.beta_end, params.steps)
    edges = np.arange(params.steps + 1) / params.steps
    signal = np.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    clamped: NDArray[np.float64] = np.minimum(1 - signal[1:] / signal[:-1], MAX_BETA)
    return clamped


def gammas(params: NoiseParams) -> NDArray[np.float64]:
    """alpha-bar after each step, (T,), decreasing: the product of 1 - beta."""
    return np.asarray(np.cumprod(1 - betas(params)), np.float64)


def draw_gamma(table: Tensor, places: Tensor) -> Tensor:
    """Noise levels to train on, (B,), from places in [0, 1).

    Even over the steps t >= 1, and between gamma_t and gamma_{t-1}; of the table's dtype.
    """
    t = places * (len(table) - 1)
    step = t.long().clamp(max=len(table) - 2)
    return torch.lerp(table[step], table[step + 1], (t - step).to(table.dtype))


def log_snr(gamma: Tensor) -> Tensor:
    """log(gamma / (1 - gamma)), limited: the same in float32 at both ends of the schedule."""
    return torch.logit(gamma.double()).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).to(gamma.dtype)


def embedded(gamma: Tensor, how: NoiseEmbedding) -> Tensor:
    """What the network's sinusoids are given for a noise level, (B,)."""
    return gamma if how == "gamma" else LOG_SNR_SCALE * log_snr(gamma)


def _wide(gamma: Tensor) -> Tensor:
    return gamma[:, None, None, None]


def add_noise(y_0: Tensor, epsilon: Tensor, gamma: Tensor) -> Tensor:
    """y of eq. 4: (B, C, H, W), (B, C, H, W), (B,) -> (B, C, H, W)."""
    return _wide(gamma).sqrt() * y_0 + _wide(1 - gamma).sqrt() * epsilon


def training_target(y_0: Tensor, epsilon: Tensor, gamma: Tensor, target: Target) -> Tensor:
    """The noise, or v = sqrt(gamma) eps - sqrt(1 - gamma) y_0 (Salimans & Ho 2022)."""
    if target == "epsilon":
        return epsilon
    return _wide(gamma).sqrt() * epsilon - _wide(1 - gamma).sqrt() * y_0


def estimate_y_0(y: Tensor, said: Tensor, gamma: Tensor, target: Target) -> Tensor:
    """The clean image that the network's answer means."""
    if target == "epsilon":
        return (y - _wide(1 - gamma).sqrt() * said) / _wide(gamma).sqrt()
    return _wide(gamma).sqrt() * y - _wide(1 - gamma).sqrt() * said


def epsilon_of(y: Tensor, said: Tensor, gamma: Tensor, target: Target) -> Tensor:
    """The noise that the network's answer means."""
    if target == "epsilon":
        return said
    return _wide(gamma).sqrt() * said + _wide(1 - gamma).sqrt() * y


def masked_loss(said: Tensor, wanted: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean square over the mask's pixels alone, per sample: (B, C, H, W), the same, (B, 1, H, W) -> (B,).

    The authors' code divides by all pixels, so its loss and its gradient grow with the mask. ``weight``
    (B, 1, H, W) counts some pixels more; it is divided by as well.
    """
    counted = mask if weight is None else mask * weight
    area = counted.sum(dim=(1, 2, 3)) * said.shape[1]
    return (counted * (said - wanted).square()).sum(dim=(1, 2, 3)) / area.clamp(min=1)


def snr_weight(gamma: Tensor, params: NoiseParams) -> Tensor:
    """Weight of each sample's loss by its noise level, (B,)."""
    if not params.min_snr:
        return torch.ones_like(gamma)
    snr = gamma / (1 - gamma)
    limited = snr.clamp(max=params.min_snr)
    return limited / snr if params.target == "epsilon" else limited / (snr + 1)
