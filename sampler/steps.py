"""From noise to image, with any ``denoise(y, gamma) -> y_0``. Knows tensors; nothing of networks or frames.

Every sampler here moves from one noise level to the next by a weighted sum of the image y, its clean
estimate y_0, the estimate of the step before and fresh noise z. So a sampler is a list of weights, a
``Step`` each, worked out in float64 on the host before the first step, and one loop that applies them: it
never waits for the device, and a CUDA graph may capture its body.

``gamma`` is the paper's alpha-bar; the prime in gamma' (``gamma_next``) marks the next, cleaner level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model import denoiser
from sampler.params import SamplerName

Noise = Callable[[int], Tensor]  # step -> its fresh standard normal noise, (B, C, H, W)


class Denoise(Protocol):
    """Noisy images y (B, C, H, W) and their levels gamma (B,) float32 -> clean estimates, shaped as y.

    Whether estimates are clamped to the images' range is decided here, not by the sampler.
    """

    def __call__(self, y: Tensor, gamma: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """What need not be made: outside the mask the image is ``y_0`` at every level, clean, as in training."""

    mask: Tensor  # (B, 1, H, W), bool or 0/1; 1 = to generate
    y_0: Tensor  # (B, C, H, W), of y's dtype

    def __post_init__(self) -> None:
        n_images, _, *size = self.y_0.shape
        if self.mask.shape != (n_images, 1, *size):
            raise ValueError(
                f"known: y_0 of {tuple(self.y_0.shape)} needs a mask of {(n_images, 1, *size)}, "
                f"got {tuple(self.mask.shape)}"
            )

    def pin(self, y: Tensor) -> Tensor:
        """y inside the mask, y_0 outside, bit for bit: (B, C, H, W)."""
        return torch.where(self.mask.bool(), y, self.y_0)


@dataclass(frozen=True, slots=True)
class Step:
    """The move on from noise level ``gamma``; all other fields are weights of the sum that is the next y."""

    gamma: float
    y: float
    y_0: float
    sigma: float = 0.0  # of fresh noise z
    y_0_before: float = 0.0  # of the estimate one step earlier


def levels(params: denoiser.NoiseParams, n: int) -> Tensor:
    """Noise levels for n steps, increasing from the noisiest trained to exactly 1 (clean): (n + 1,) float64.

    They stand at evenly spaced times of the trained schedule, read between its steps where need be; the
    network is trained there too. (Only more steps than the schedule has ask for levels cleaner than trained.)
    The authors' code builds a new schedule of n steps instead. With the cosine that is nearly the same; with
    the linear one it stops short of the trained noise: 100 steps end at gamma 0.6, more image than noise.
    """
    if n < 1:
        raise ValueError(f"levels: {n} steps, expected at least 1")
    trained = np.concatenate([[1.0], denoiser.gammas(params)])  # at times 0 (clean), 1, ..., T
    times = np.linspace(params.steps, 0, n + 1)
    return torch.from_numpy(np.interp(times, np.arange(params.steps + 1), trained))


def ddim_step(gamma: float, gamma_next: float, eta: float) -> Step:
    """Song et al. 2021, eq. 12 and 16: y' = sqrt(gamma') y_0 + sqrt(1 - gamma' - sigma^2) epsilon + sigma z.

    eta = 1 is ancestral DDPM, eq. 6 of the paper with its misprint mended: the posterior of y' given y and
    the estimate y_0, with its own variance (beta-tilde) and alpha_t = gamma / gamma'.
    """
    fresh = eta**2 * (1 - gamma / gamma_next) / (1 - gamma)  # share of the next level's noise; at most 1
    sigma = math.sqrt((1 - gamma_next) * fresh)  # eq. 16
    kept = math.sqrt((1 - gamma_next) * (1 - fresh))  # sqrt(1 - gamma' - sigma^2), safe where gamma' is 1
    y = kept / math.sqrt(1 - gamma)  # epsilon = (y - sqrt(gamma) y_0) / sqrt(1 - gamma)
    return Step(gamma, y=y, y_0=math.sqrt(gamma_next) - math.sqrt(gamma) * y, sigma=sigma)


def ddim(gammas: Sequence[float], eta: float) -> list[Step]:
    """From deterministic (eta = 0) to ancestral (eta = 1)."""
    return [ddim_step(*pair, eta) for pair in pairwise(gammas)]


def half_log_snr(gamma: float) -> float:
    """lambda = log(sqrt(gamma) / sqrt(1 - gamma)), finite for 0 < gamma < 1."""
    return (math.log(gamma) - math.log1p(-gamma)) / 2


def dpm_solver_step(gamma_before: float | None, gamma: float, gamma_next: float) -> Step:
    """Lu et al. 2022, DPM-Solver++, algorithm 2: second order, from this estimate and the one before.

    First order is DDIM, -sqrt(gamma') expm1(-h) being its weight of y_0. It is all there is for the first
    step, and for the one to gamma' = 1, where lambda is infinite: that one returns the estimate itself.
    """
    first_order = ddim_step(gamma, gamma_next, eta=0.0)
    if gamma_before is None or gamma_next == 1:
        return first_order
    h_before = half_log_snr(gamma) - half_log_snr(gamma_before)
    h = half_log_snr(gamma_next) - half_log_snr(gamma)
    r = h_before / h
    # D = (1 + 1 / 2r) y_0 - 1 / 2r y_0_before takes the place of y_0.
    y_0 = first_order.y_0
    return replace(first_order, y_0=(1 + 1 / (2 * r)) * y_0, y_0_before=-1 / (2 * r) * y_0)


def dpm_solver(gammas: Sequence[float]) -> list[Step]:
    """DPM-Solver++(2M)."""
    befores = [None, *gammas]
    return [dpm_solver_step(before, *pair) for before, pair in zip(befores, pairwise(gammas), strict=False)]


Sampler = Callable[[Sequence[float]], list[Step]]
SAMPLERS: dict[SamplerName, Sampler] = {
    "ancestral": partial(ddim, eta=1.0),
    "ddim": partial(ddim, eta=0.0),
    "dpm++2m": dpm_solver,
}


@torch.no_grad()
def walk(
    steps: Sequence[Step], denoise: Denoise, y: Tensor, *, noise: Noise, known: KnownPixels | None
) -> Tensor:
    """Take the steps from y, (B, C, H, W). ``noise`` is asked, once, for each step that adds any."""
    y = known.pin(y) if known else y
    y_0_before = y  # no estimate, but the first step gives it no weight
    for i, step in enumerate(steps):
        gamma = torch.full(y.shape[:1], step.gamma, dtype=torch.float32, device=y.device)
        y_0 = denoise(y, gamma)
        y = step.y * y + step.y_0 * y_0
        if step.y_0_before:
            y = y + step.y_0_before * y_0_before
        if step.sigma:
            y = y + step.sigma * noise(i)
        y = known.pin(y) if known else y
        y_0_before = y_0.clone()  # a CUDA graph writes its next answer into the same memory
    return y


def sample(
    name: SamplerName,
    denoise: Denoise,
    y: Tensor,
    gammas: Tensor,
    *,
    noise: Noise,
    known: KnownPixels | None = None,
) -> Tensor:
    """From start noise y at gammas[0], (B, C, H, W), to clean images; ``gammas`` as ``levels`` gives them."""
    return walk(SAMPLERS[name](gammas.tolist()), denoise, y, noise=noise, known=known)
