"""The samplers turn noise into what the denoiser knows, in worlds whose denoiser is a closed formula."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from model.denoiser import NoiseParams, betas, gammas
from sampler.params import SamplerName
from sampler.steps import (
    SAMPLERS,
    Denoise,
    KnownPixels,
    Noise,
    Step,
    ddim,
    ddim_step,
    dpm_solver_step,
    levels,
    sample,
    walk,
)

LINEAR = NoiseParams(schedule="linear", steps=2000, beta_start=1e-6, beta_end=0.01)
COSINE = NoiseParams(schedule="cosine", steps=1000)
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
DETERMINISTIC: tuple[SamplerName, ...] = ("ddim", "dpm++2m")
MEAN, STD = 0.3, 0.5

each_schedule = pytest.mark.parametrize("params", [COSINE, LINEAR], ids=["cosine", "linear"])
each_sampler = pytest.mark.parametrize("name", NAMES)


def gaussian(mean: float, std: float) -> Denoise:
    """E[y_0 | y] where every pixel is drawn from N(mean, std^2)."""

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        g = gamma.to(y.dtype)[:, None, None, None]
        return mean + g.sqrt() * std**2 / (g * std**2 + 1 - g) * (y - g.sqrt() * mean)

    return denoise


def gaussian_flow(y: Tensor, gamma: Tensor, gamma_next: Tensor) -> Tensor:
    """Where the probability flow of that Gaussian takes y: the same number of deviations from the mean."""
    deviations = (y - gamma.sqrt() * MEAN) / (gamma * STD**2 + 1 - gamma).sqrt()
    return gamma_next.sqrt() * MEAN + (gamma_next * STD**2 + 1 - gamma_next).sqrt() * deviations


def fresh(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Noise]:
    """Start noise, and the noise of each step."""
    generator = torch.Generator().manual_seed(seed)

    def noise(_: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return noise(0), noise


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"noise asked for at step {step}")


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def exact_std(name: SamplerName, gammas: Tensor) -> float:
    """Deviation of the samples of N(0, STD^2), without drawing any.

    The sampler is linear here, so it is run once on unit pulses: pixel k gets only the k-th noise.
    """
    pulses = torch.eye(len(gammas), dtype=torch.float64)[:, None, None, None, :]
    weights = sample(name, gaussian(0, STD), pulses[0], gammas, noise=lambda i: pulses[i + 1])
    return weights.square().sum().sqrt().item()


# Levels


@each_schedule
@pytest.mark.parametrize("n", [1, 2, 7, 25, 100, 999, 1000, 3000])
def test_levels_rise_from_the_trained_noise_to_exactly_clean(params: NoiseParams, n: int) -> None:
    found = levels(params, n)
    assert found.shape == (n + 1,)
    assert found.dtype == torch.float64
    assert found[0].item() == gammas(params)[-1]
    assert found[-1].item() == 1.0
    assert (found.diff() > 0).all()


@each_schedule
def test_as_many_levels_as_trained_steps_are_the_trained_schedule(params: NoiseParams) -> None:
    assert np.array_equal(levels(params, params.steps)[:-1].flip(0).numpy(), gammas(params))


@each_schedule
def test_levels_of_half_the_steps_are_every_other_trained_one(params: NoiseParams) -> None:
    halved = levels(params, params.steps // 2)
    assert torch.equal(halved, levels(params, params.steps)[::2])


def test_a_new_cosine_schedule_has_our_levels_and_a_new_linear_one_stops_short_of_the_trained_noise() -> None:
    new_cosine = gammas(NoiseParams(schedule="cosine", steps=100))[::-1]
    assert np.allclose(levels(COSINE, 100)[1:-1], new_cosine[1:], rtol=1e-9), "all but the noisiest, clamped"
    new_linear = gammas(NoiseParams(schedule="linear", steps=100, beta_start=1e-6, beta_end=0.01))
    assert new_linear[-1] == pytest.approx(0.6, abs=0.01)
    assert levels(LINEAR, 100)[0] < 1e-4


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_step_is_an_error_that_says_so(n: int) -> None:
    with pytest.raises(ValueError, match=f"^levels: {n} steps, expected at least 1$"):
        levels(COSINE, n)


# What is sampled


@each_schedule
@each_sampler
def test_a_gaussian_whose_denoiser_is_known_is_recovered(name: SamplerName, params: NoiseParams) -> None:
    y, noise = fresh((5, 1, 100, 100), seed=0)
    images = sample(name, gaussian(MEAN, STD), y, levels(params, 500), noise=noise)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(STD, abs=0.015)


@each_schedule
def test_the_error_shrinks_with_more_steps_and_all_samplers_end_at_the_same_gaussian(
    params: NoiseParams,
) -> None:
    counts = [5, 10, 20, 80, 320, params.steps]
    errors = {name: [abs(exact_std(name, levels(params, n)) - STD) for n in counts] for name in NAMES}
    for of_name in errors.values():
        assert of_name == sorted(of_name, reverse=True)
        assert of_name[-1] < 0.003
    for ancestral, ddim_error, dpm in zip(*(errors[name] for name in NAMES), strict=True):
        assert dpm < ddim_error < ancestral


@each_schedule
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_any_eta_ends_at_the_same_gaussian(params: NoiseParams, eta: float) -> None:
    y, noise = fresh((1, 1, 200, 200), seed=1)
    steps = ddim(levels(params, 500).tolist(), eta=eta)
    images = walk(steps, gaussian(MEAN, STD), y, noise=noise, known=None)
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(STD, abs=0.015)


@each_schedule
@each_sampler
def test_two_kinds_of_pixel_are_sampled_as_often_as_they_occur(
    name: SamplerName, params: NoiseParams
) -> None:
    """A mixture: N(-0.6, 0.1^2) with weight 0.3 and N(0.5, 0.2^2) with 0.7."""
    weights, means, stds = (
        torch.tensor(x).reshape(-1, 1, 1, 1, 1) for x in ((0.3, 0.7), (-0.6, 0.5), (0.1, 0.2))
    )

    def exact(y: Tensor, gamma: Tensor) -> Tensor:
        g = gamma[:, None, None, None]
        variance = g * stds**2 + 1 - g
        away = y - g.sqrt() * means
        belongs = (weights.log() - variance.log() / 2 - away.square() / (2 * variance)).softmax(dim=0)
        return (belongs * (means + g.sqrt() * stds**2 / variance * away)).sum(dim=0)

    y, noise = fresh((1, 1, 200, 200), seed=2)
    images = sample(name, exact, y, levels(params, 250), noise=noise)
    low, high = images[images < -0.1], images[images >= -0.1]
    assert len(low) / images.numel() == pytest.approx(0.3, abs=0.012)
    assert (low.mean().item(), high.mean().item()) == pytest.approx((-0.6, 0.5), abs=0.015)
    assert (low.std().item(), high.std().item()) == pytest.approx((0.1, 0.2), abs=0.025)


# Against formulas written out


def flow_errors(name: SamplerName, counts: list[int]) -> list[float]:
    """Largest distance from the probability flow between two inner levels, for each number of steps."""
    y = torch.linspace(-2, 2, 101, dtype=torch.float64).reshape(1, 1, 1, -1)
    errors = []
    for n in counts:
        ladder = torch.sigmoid(2 * torch.linspace(-4, 4, n + 1, dtype=torch.float64))  # lambda from -4 to 4
        there = sample(name, gaussian(MEAN, STD), y, ladder, noise=no_noise)
        errors.append((there - gaussian_flow(y, ladder[0], ladder[-1])).abs().max().item())
    return errors


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++2m", 2)])
def test_twice_the_steps_halve_the_error_of_ddim_and_quarter_that_of_dpm_solver(
    name: SamplerName, order: int
) -> None:
    errors = flow_errors(name, [32, 64, 128, 256])
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order] * 3, abs=0.1)


@each_schedule
@pytest.mark.parametrize(("name", "close"), [("ddim", 0.01), ("dpm++2m", 0.001)])
def test_each_noise_goes_where_the_probability_flow_takes_it(
    name: SamplerName, close: float, params: NoiseParams
) -> None:
    y = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(1, 1, 1, -1)
    ladder = levels(params, 500)
    images = sample(name, gaussian(MEAN, STD), y, ladder, noise=no_noise)
    torch.testing.assert_close(images, gaussian_flow(y, ladder[0], ladder[-1]), atol=close, rtol=0)


@each_schedule
def test_ancestral_is_equation_6_with_the_posteriors_variance(params: NoiseParams) -> None:
    """y_{t-1} = (y_t - beta_t / sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha_t) + sqrt(beta-tilde_t) z."""
    shape = (2, 3, 4, 4)
    start, noise = fresh(shape, seed=3, dtype=torch.float64)
    zs = [noise(i) for i in range(params.steps)]
    beta = betas(params)
    alpha = 1 - beta
    alpha_bar = np.cumprod(alpha)
    denoise = gaussian(MEAN, STD)

    y = start
    for i, t in enumerate(reversed(range(params.steps))):
        y_0 = denoise(y, torch.full((2,), alpha_bar[t], dtype=torch.float32))
        epsilon = (y - math.sqrt(alpha_bar[t]) * y_0) / math.sqrt(1 - alpha_bar[t])
        mean = (y - beta[t] / math.sqrt(1 - alpha_bar[t]) * epsilon) / math.sqrt(alpha[t])
        alpha_bar_before = alpha_bar[t - 1] if t else 1.0
        beta_tilde = (1 - alpha_bar_before) / (1 - alpha_bar[t]) * beta[t]
        y = mean + math.sqrt(beta_tilde) * zs[i]

    ours = sample("ancestral", denoise, start, levels(params, params.steps), noise=lambda i: zs[i])
    torch.testing.assert_close(ours, y, atol=1e-9, rtol=0)


@each_schedule
@pytest.mark.parametrize("n", [1, 3, 20, 1000])
def test_ancestral_weights_are_the_posterior_mean_of_an_estimate(params: NoiseParams, n: int) -> None:
    """q(y_{t-1} | y_t, y_0) of Ho et al. 2020, eq. 7, for any spacing: alpha_t = gamma_t / gamma_{t-1}."""
    ladder = levels(params, n).tolist()
    for (g, g_next), step in zip(pairwise(ladder), ddim(ladder, eta=1.0), strict=True):
        alpha = g / g_next
        beta = 1 - alpha
        assert step.gamma == g
        assert step.y_0 == pytest.approx(math.sqrt(g_next) * beta / (1 - g), abs=1e-11)
        assert step.y == pytest.approx(math.sqrt(alpha) * (1 - g_next) / (1 - g), abs=1e-11)
        assert step.sigma == pytest.approx(math.sqrt((1 - g_next) / (1 - g) * beta), abs=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("g", "g_next"), [(2.4e-9, 2.4e-6), (0.2, 0.3), (0.99991, 0.99996), (0.99996, 1.0)])
def test_a_perfect_estimate_is_left_with_exactly_the_next_levels_noise(
    g: float, g_next: float, eta: float
) -> None:
    step = ddim_step(g, g_next, eta)
    assert step.y * math.sqrt(g) + step.y_0 == pytest.approx(math.sqrt(g_next), rel=1e-12)
    variance = step.y**2 * (1 - g) + step.sigma**2
    assert variance == pytest.approx(1 - g_next, rel=1e-9, abs=1e-15)
    equation_16 = eta * math.sqrt((1 - g_next) / (1 - g)) * math.sqrt(1 - g / g_next)
    assert step.sigma == pytest.approx(equation_16, rel=1e-12)


@pytest.mark.parametrize(("g", "g_next"), [(2.4e-9, 2.4e-6), (0.2, 0.3), (0.99991, 0.99996)])
def test_dpm_solvers_first_step_is_its_own_formula_and_ddim(g: float, g_next: float) -> None:
    sigma, sigma_next = math.sqrt(1 - g), math.sqrt(1 - g_next)
    h = math.log(math.sqrt(g_next) / sigma_next) - math.log(math.sqrt(g) / sigma)
    step = dpm_solver_step(None, g, g_next)
    assert step == ddim_step(g, g_next, eta=0.0)
    assert step.y == pytest.approx(sigma_next / sigma, rel=1e-9)
    assert step.y_0 == pytest.approx(-math.sqrt(g_next) * math.expm1(-h), rel=1e-9)


def test_dpm_solvers_second_order_is_exact_where_estimates_are_straight_in_lambda() -> None:
    """Its weights are those of the line through two estimates, Taylor's first term (Lu et al., eq. 12)."""
    lams = (-0.7, 0.1, 0.4)
    before, g, g_next = (1 / (1 + math.exp(-2 * lam)) for lam in lams)
    step = dpm_solver_step(before, g, g_next)
    assert step.y_0 + step.y_0_before == pytest.approx(ddim_step(g, g_next, 0.0).y_0)
    # An estimate that is lambda itself: the sum is its value half a step on.
    weighted = (step.y_0 * lams[1] + step.y_0_before * lams[0]) / (step.y_0 + step.y_0_before)
    assert weighted == pytest.approx((lams[1] + lams[2]) / 2)


# The region that is known


@each_sampler
@pytest.mark.parametrize("mask_type", [torch.bool, torch.float32, torch.uint8])
def test_the_known_region_is_exact_at_every_call_and_at_the_end(
    name: SamplerName, mask_type: torch.dtype
) -> None:
    shape = (2, 3, 8, 8)
    y, noise = fresh(shape, seed=4)
    y_0 = noise(0) * 1e3
    y_0[..., :2] = -0.0
    to_make = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    to_make[0, :, 2:5, 1:7] = True
    to_make[1, :, 6:, :3] = True
    outside = ~to_make.expand(shape)
    seen = []

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        seen.append(y.clone())
        return gaussian(MEAN, STD)(y, gamma)

    known = KnownPixels(mask=to_make.to(mask_type), y_0=y_0)
    image = sample(name, denoise, y, levels(COSINE, 12), noise=noise, known=known)
    assert len(seen) == 12
    for state in (*seen, image):
        assert same_bits(state[outside], y_0[outside])
        assert not (state == y_0)[~outside].any()


@each_sampler
def test_what_is_known_changes_nothing_inside_where_pixels_are_independent(name: SamplerName) -> None:
    shape = (2, 3, 8, 8)
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.5
    images = []
    for known in (None, KnownPixels(mask=mask, y_0=torch.full(shape, 7.0))):
        y, noise = fresh(shape, seed=6)
        images.append(sample(name, gaussian(MEAN, STD), y, levels(LINEAR, 9), noise=noise, known=known))
    inside = mask.expand(shape)
    assert same_bits(images[0][inside], images[1][inside])


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 4)])
def test_a_mask_that_does_not_fit_its_images_is_an_error_that_names_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"^known: y_0 of \(2, 3, 8, 8\) needs a mask of \(2, 1, 8, 8\), got"
    ):
        KnownPixels(mask=torch.ones(shape), y_0=torch.zeros(2, 3, 8, 8))


# What a caller relies on


@each_sampler
def test_a_batch_is_bit_for_bit_its_images_alone(name: SamplerName) -> None:
    """Also with fresh noise in every step, if that is each image's own."""
    n_images, n = 3, 20
    start, _ = fresh((n_images, 3, 5, 7), seed=7)
    zs, _ = fresh((n, n_images, 3, 5, 7), seed=8)
    batch = sample(name, gaussian(MEAN, STD), start, levels(COSINE, n), noise=lambda i: zs[i])
    for k in range(n_images):
        alone = slice(k, k + 1)
        image = sample(
            name,
            gaussian(MEAN, STD),
            start[alone],
            levels(COSINE, n),
            noise=lambda i, alone=alone: zs[i, alone],  # type: ignore[misc]
        )
        assert same_bits(image, batch[alone])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_noise_is_never_asked_for_where_none_is_added(name: SamplerName) -> None:
    y, _ = fresh((1, 1, 2, 2), seed=9)
    sample(name, gaussian(MEAN, STD), y, levels(COSINE, 10), noise=no_noise)


def test_ancestral_asks_for_the_noise_of_each_step_once_and_for_none_in_the_last() -> None:
    asked = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1, 2, 2)

    sample("ancestral", gaussian(MEAN, STD), torch.zeros(1, 1, 2, 2), levels(COSINE, 10), noise=noise)
    assert asked == list(range(9))


@each_schedule
@each_sampler
def test_the_last_step_returns_its_estimate_and_one_step_the_first(
    name: SamplerName, params: NoiseParams
) -> None:
    for n in (1, 2, 10):
        y, noise = fresh((2, 3, 4, 4), seed=10)
        estimates: list[Tensor] = []

        def denoise(y: Tensor, gamma: Tensor, estimates: list[Tensor] = estimates) -> Tensor:
            estimates.append(gaussian(MEAN, STD)(y, gamma))
            return estimates[-1]

        image = sample(name, denoise, y, levels(params, n), noise=noise)
        assert len(estimates) == n
        assert torch.equal(image, estimates[-1])


@each_schedule
@each_sampler
def test_the_denoiser_is_told_each_images_level_in_float32(name: SamplerName, params: NoiseParams) -> None:
    told = []

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        told.append(gamma)
        return y

    y, noise = fresh((3, 1, 2, 2), seed=11, dtype=torch.float64)
    sample(name, denoise, y, levels(params, 6), noise=noise)
    assert torch.equal(torch.stack(told), levels(params, 6)[:-1, None].expand(6, 3).float())


@each_schedule
@each_sampler
def test_any_number_of_steps_stays_finite_in_float32_for_a_wrong_network_too(
    name: SamplerName, params: NoiseParams
) -> None:
    """It says epsilon = 0 always: at the noisiest level its estimate is the noise, 20,000 times as strong."""

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        return (y / gamma.sqrt()[:, None, None, None]).clamp(-1, 1)

    for n in (*range(1, 31), 50, 100, 250, 500, 999, 1000):
        y, noise = fresh((1, 1, 2, 2), seed=n)
        image = sample(name, denoise, y, levels(params, n), noise=noise)
        assert image.dtype == torch.float32
        assert image.abs().max() <= 1, f"{n} steps"


@each_schedule
@each_sampler
def test_the_weights_of_every_number_of_steps_are_finite(name: SamplerName, params: NoiseParams) -> None:
    for n in (*range(1, 101), *range(150, 1001, 50), params.steps, 2 * params.steps):
        for step in SAMPLERS[name](levels(params, n).tolist()):
            assert math.isfinite(step.y + step.y_0 + step.y_0_before + step.sigma), f"{n} steps: {step}"


def test_a_step_uses_the_images_own_dtype_and_builds_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y, noise = fresh((1, 1, 2, 2), seed=12, dtype=dtype)
        for name in NAMES:
            image = sample(name, lambda y, _: y * weight.to(y.dtype), y, levels(COSINE, 3), noise=noise)
            assert image.dtype == dtype
            assert not image.requires_grad


@each_sampler
def test_a_denoiser_may_answer_in_the_same_memory_every_time(name: SamplerName) -> None:
    """As a network captured in a CUDA graph does."""
    memory = torch.empty(1, 1, 4, 4)

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        return memory.copy_(gaussian(MEAN, STD)(y, gamma))

    images = []
    for of in (denoise, gaussian(MEAN, STD)):
        y, noise = fresh((1, 1, 4, 4), seed=14)
        images.append(sample(name, of, y, levels(COSINE, 8), noise=noise))
    assert same_bits(*images)


@each_sampler
def test_no_step_waits_for_the_device(name: SamplerName) -> None:
    """Tensors on the meta device have no values, so reading one back would fail."""
    with torch.device("meta"):
        y, mask = torch.empty(2, 3, 4, 4), torch.empty(2, 1, 4, 4)
    known = KnownPixels(mask=mask, y_0=y)
    image = sample(name, gaussian(MEAN, STD), y, levels(COSINE, 5), noise=lambda _: y, known=known)
    assert image.shape == y.shape and image.dtype == y.dtype and image.is_meta


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    for name in NAMES:
        y, noise = fresh((1, 1, 2, 2), seed=13)
        sample(name, gaussian(MEAN, STD), y, levels(COSINE, 5), noise=noise)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_step_from_pure_noise_keeps_none_of_it() -> None:
    assert ddim_step(gammas(COSINE)[-1].item(), 1.0, eta=1.0) == Step(
        gammas(COSINE)[-1].item(), y=0.0, y_0=1.0
    )
