"""Samplers: from noise to images with any ``denoise(y, gamma) -> y_0``. No networks, no frames.

After each evaluation of the denoiser, the next image is a weighted sum of the image y, its clean estimate
y_0, both of the evaluation before, and fresh noise z. A sampler is therefore a list of weights, one ``Step``
per evaluation; a method that evaluates the denoiser twice between two noise levels returns two. The weights
are computed in float64 on the host in advance, and one loop applies them: it never waits for the device, and
a CUDA graph may capture its body.

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

Noise = Callable[[int], Tensor]  # number of a step -> its fresh standard normal noise, (B, C, H, W)


class Denoise(Protocol):
    """Noisy images y (B, C, H, W), all at the noise level gamma -> clean estimates, shaped as y.

    ``gamma`` is exactly the ``gamma`` of one of the sampler's steps. It is a number on the host, so that a
    denoiser can look up what it has computed for a level in advance. A sampler may evaluate a level several
    times, or levels between the ones that it was given. Whether estimates are clamped to the images' range is
    up to the denoiser.
    """

    def __call__(self, y: Tensor, gamma: float, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class KnownPixels:
    """Pixels that are not generated: outside the mask the image is the clean ``y_0`` at every noise level."""

    mask: Tensor  # (B, 1, H, W), bool or 0/1; 1 = to generate
    y_0: Tensor  # (B, C, H, W), of y's dtype

    def __post_init__(self) -> None:
        n_images, _, *size = self.y_0.shape
        if self.mask.shape != (n_images, 1, *size):
            raise ValueError(
                f"KnownPixels: y_0 of {tuple(self.y_0.shape)} needs a mask of {(n_images, 1, *size)}, "
                f"got {tuple(self.mask.shape)}"
            )

    def pin(self, y: Tensor) -> Tensor:
        """y inside the mask, y_0 outside, bit for bit: (B, C, H, W)."""
        return torch.where(self.mask.bool(), y, self.y_0)


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of the denoiser at ``gamma``, and the weights of the sum that is the next y."""

    gamma: float
    y: float
    y_0: float
    sigma: float = 0.0  # of fresh noise z
    y_before: float = 0.0  # of y at the evaluation before
    y_0_before: float = 0.0  # of y_0 at the evaluation before

    def weights(self) -> tuple[float, float, float, float, float]:
        """Of y, y_0, z, y before and y_0 before: for a compiler, which would compile anew for each number."""
        return self.y, self.y_0, self.sigma, self.y_before, self.y_0_before


def noise_levels(params: denoiser.NoiseParams, n: int) -> Tensor:
    """Noise levels for n steps, increasing from the noisiest trained to exactly 1 (clean): (n + 1,) float64.

    They are at evenly spaced times of the trained schedule, interpolated between its steps; the network is
    trained there too. (Only with more steps than the schedule has are some levels cleaner than trained.)
    The authors' code builds a new schedule of n steps instead. For the cosine schedule that is nearly the
    same; the linear one then stops short of the trained noise: 100 steps end at gamma 0.6, more image than
    noise.
    """
    if n < 1:
        raise ValueError(f"noise_levels: {n} steps, expected at least 1")
    trained = np.concatenate([[1.0], denoiser.gammas(params)])  # at times 0 (clean), 1, ..., T
    times = np.linspace(params.steps, 0, n + 1)
    return torch.from_numpy(np.interp(times, np.arange(params.steps + 1), trained))


def ddim_step(gamma: float, gamma_next: float, eta: float) -> Step:
    """Song et al. 2021, eq. 12 and 16: y' = sqrt(gamma') y_0 + sqrt(1 - gamma' - sigma^2) epsilon + sigma z.

    eta = 1 is ancestral DDPM, eq. 6 of the paper with its misprint corrected: the posterior of y' given y and
    the estimate y_0, with its own variance (beta-tilde) and alpha_t = gamma / gamma'.
    """
    fresh_share = eta**2 * (1 - gamma / gamma_next) / (1 - gamma)  # of the next level's noise; at most 1
    sigma = math.sqrt((1 - gamma_next) * fresh_share)  # eq. 16
    # sqrt(1 - gamma' - sigma^2), in a form that is exactly 0 at gamma' = 1
    epsilon = math.sqrt((1 - gamma_next) * (1 - fresh_share))
    y = epsilon / math.sqrt(1 - gamma)  # epsilon = (y - sqrt(gamma) y_0) / sqrt(1 - gamma)
    return Step(gamma, y=y, y_0=math.sqrt(gamma_next) - math.sqrt(gamma) * y, sigma=sigma)


def ddim(gammas: Sequence[float], eta: float) -> list[Step]:
    """From deterministic (eta = 0) to ancestral (eta = 1)."""
    return [ddim_step(*pair, eta) for pair in pairwise(gammas)]


def half_log_snr(gamma: float) -> float:
    """lambda = log(sqrt(gamma) / sqrt(1 - gamma)), finite for 0 < gamma < 1."""
    return (math.log(gamma) - math.log1p(-gamma)) / 2


def dpm_solver_step(gamma_before: float | None, gamma: float, gamma_next: float) -> Step:
    """Lu et al. 2022, DPM-Solver++, algorithm 2: second order, from this estimate and the one before.

    First order is DDIM, where -sqrt(gamma') expm1(-h) is the weight of y_0. It is used for the first step,
    and for the one to gamma' = 1, where lambda is infinite: that one returns the estimate itself.
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


def angle(gamma: float) -> float:
    """t of y = cos(t) y_0 + sin(t) epsilon: from 0 (clean) to pi / 2 (pure noise)."""
    return math.atan2(math.sqrt(1 - gamma), math.sqrt(gamma))


def heun_steps(gamma: float, gamma_next: float) -> list[Step]:
    """Karras et al. 2022, algorithm 1 without churn: an Euler step to gamma', then the trapezoidal rule.

    Time is t = ``angle(gamma)``, with s(t) = cos t and sigma(t) = tan t. The derivative of the probability
    flow (line 4) is then d = (cos(t) y - y_0) / sin(t): v of Salimans & Ho 2022, bounded at pure noise. The
    step to gamma' = 1 is first order: DDIM, which returns the estimate itself.
    """
    if gamma_next == 1:
        return [ddim_step(gamma, gamma_next, eta=0.0)]
    t, t_next = angle(gamma), angle(gamma_next)
    h = t_next - t
    d_y, d_y_0 = 1 / math.tan(t), -1 / math.sin(t)  # d = d_y y + d_y_0 y_0
    d_y_next, d_y_0_next = 1 / math.tan(t_next), -1 / math.sin(t_next)
    return [
        Step(gamma, y=1 + h * d_y, y_0=h * d_y_0),  # y + h d
        Step(  # y_before + h / 2 (d_before + d)
            gamma_next,
            y=h / 2 * d_y_next,
            y_0=h / 2 * d_y_0_next,
            y_before=1 + h / 2 * d_y,
            y_0_before=h / 2 * d_y_0,
        ),
    ]


def heun(gammas: Sequence[float]) -> list[Step]:
    """Heun's method: second order, 2 n - 1 evaluations for n steps."""
    return [step for pair in pairwise(gammas) for step in heun_steps(*pair)]


Sampler = Callable[[Sequence[float]], list[Step]]
SAMPLERS: dict[SamplerName, Sampler] = {
    "ancestral": partial(ddim, eta=1.0),
    "ddim": partial(ddim, eta=0.0),
    "dpm++2m": dpm_solver,
    "heun": heun,
}


class Advance(Protocol):
    """One step, a call of the denoiser included: the next y and this step's estimate, (B, C, H, W) each.

    ``y_before`` and ``y_0_before`` are those of the step before; ``noise`` is fresh, or None where the step
    takes none. What is returned must stay as it is while later steps run.
    """

    def __call__(
        self, step: Step, y: Tensor, y_before: Tensor, y_0_before: Tensor, noise: Tensor | None, /
    ) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def apply_steps(steps: Sequence[Step], advance: Advance, y: Tensor, *, noise: Noise) -> Tensor:
    """Apply the steps to y, (B, C, H, W). ``noise`` is called once for each step that adds noise."""
    y_before = y_0_before = y  # placeholders: the first step gives them no weight
    for i, step in enumerate(steps):
        y_next, y_0 = advance(step, y, y_before, y_0_before, noise(i) if step.sigma else None)
        y_before, y_0_before, y = y, y_0, y_next
    return y


def run_steps(
    steps: Sequence[Step], denoise: Denoise, y: Tensor, *, noise: Noise, known_pixels: KnownPixels | None
) -> Tensor:
    """Apply the steps to y, (B, C, H, W). ``noise`` is called once for each step that adds noise."""

    def advance(
        step: Step, y: Tensor, y_before: Tensor, y_0_before: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y_0 = denoise(y, step.gamma)
        y_next = step.y * y + step.y_0 * y_0
        if step.y_before:
            y_next = y_next + step.y_before * y_before
        if step.y_0_before:
            y_next = y_next + step.y_0_before * y_0_before
        if noise is not None:
            y_next = y_next + step.sigma * noise
        # a copy: a denoiser may write its next output into the same memory
        return known_pixels.pin(y_next) if known_pixels else y_next, y_0.clone()

    return apply_steps(steps, advance, known_pixels.pin(y) if known_pixels else y, noise=noise)


def sample(
    name: SamplerName,
    denoise: Denoise,
    y: Tensor,
    gammas: Tensor,
    *,
    noise: Noise,
    known_pixels: KnownPixels | None = None,
) -> Tensor:
    """From start noise y at gammas[0], (B, C, H, W), to clean images; ``gammas`` as from ``noise_levels``."""
    return run_steps(SAMPLERS[name](gammas.tolist()), denoise, y, noise=noise, known_pixels=known_pixels)
