"""Samplers on distributions whose exact denoiser is a closed formula."""

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
    heun_steps,
    noise_levels,
    run_steps,
    sample,
)

LINEAR = NoiseParams(schedule="linear", steps=2000, beta_start=1e-6, beta_end=0.01)
COSINE = NoiseParams(schedule="cosine", steps=1000)
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
DETERMINISTIC: tuple[SamplerName, ...] = ("ddim", "dpm++2m", "heun")
MEAN, STD = 0.3, 0.5

SHIFTED = NoiseParams(schedule="cosine", steps=1000, log_snr_shift=-3.0)
each_schedule = pytest.mark.parametrize("params", [COSINE, LINEAR], ids=["cosine", "linear"])
each_table = pytest.mark.parametrize("params", [COSINE, LINEAR, SHIFTED], ids=["cosine", "linear", "shifted"])
each_sampler = pytest.mark.parametrize("name", NAMES)


def gaussian(mean: float, std: float) -> Denoise:
    """E[y_0 | y] where every pixel is drawn from N(mean, std^2)."""

    def denoise(y: Tensor, gamma: float) -> Tensor:
        weight = math.sqrt(gamma) * std**2 / (gamma * std**2 + 1 - gamma)
        return mean + weight * (y - math.sqrt(gamma) * mean)

    return denoise


def gaussian_flow(y: Tensor, gamma: Tensor, gamma_next: Tensor) -> Tensor:
    """Where the probability flow of that Gaussian takes y: as many standard deviations from the mean."""
    deviations = (y - gamma.sqrt() * MEAN) / (gamma * STD**2 + 1 - gamma).sqrt()
    return gamma_next.sqrt() * MEAN + (gamma_next * STD**2 + 1 - gamma_next).sqrt() * deviations


def make_noise(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Noise]:
    """Start noise, and the noise of each step."""
    generator = torch.Generator().manual_seed(seed)

    def noise(_: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return noise(0), noise


def no_noise(step: int) -> Tensor:
    raise AssertionError(f"noise requested at step {step}")


def count_evaluations(name: SamplerName, n: int) -> int:
    """How often a sampler calls the denoiser in n steps."""
    return 2 * n - 1 if name == "heun" else n


def has_same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def compute_exact_std(name: SamplerName, gammas: Tensor) -> float:
    """Standard deviation of the samples of N(0, STD^2), computed without random numbers.

    The sampler is linear here, so it is run once on unit pulses: pixel k gets only the k-th noise.
    """
    pulses = torch.eye(len(gammas), dtype=torch.float64)[:, None, None, None, :]
    weights = sample(name, gaussian(0, STD), pulses[0], gammas, noise=lambda i: pulses[i + 1])
    return weights.square().sum().sqrt().item()


# Noise levels


@each_table
@pytest.mark.parametrize("n", [1, 2, 7, 25, 100, 999, 1000, 3000])
def test_levels_rise_from_the_trained_noise_to_exactly_clean(params: NoiseParams, n: int) -> None:
    levels = noise_levels(params, n)
    assert levels.shape == (n + 1,)
    assert levels.dtype == torch.float64
    assert levels[0].item() == gammas(params)[-1]
    assert levels[-1].item() == 1.0
    assert (levels.diff() > 0).all()


@each_table
def test_as_many_levels_as_trained_steps_are_the_trained_schedule(params: NoiseParams) -> None:
    assert np.array_equal(noise_levels(params, params.steps)[:-1].flip(0).numpy(), gammas(params))


@each_table
def test_levels_of_half_the_steps_are_every_other_trained_one(params: NoiseParams) -> None:
    halved = noise_levels(params, params.steps // 2)
    assert torch.equal(halved, noise_levels(params, params.steps)[::2])


def test_a_new_cosine_schedule_has_our_levels_and_a_new_linear_one_stops_short_of_the_trained_noise() -> None:
    new_cosine = gammas(NoiseParams(schedule="cosine", steps=100))[::-1]
    assert np.allclose(noise_levels(COSINE, 100)[1:-1], new_cosine[1:], rtol=1e-9), (
        "all but the noisiest, clamped"
    )
    new_linear = gammas(NoiseParams(schedule="linear", steps=100, beta_start=1e-6, beta_end=0.01))
    assert new_linear[-1] == pytest.approx(0.6, abs=0.01)
    assert noise_levels(LINEAR, 100)[0] < 1e-4


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_step_is_an_error_that_says_so(n: int) -> None:
    with pytest.raises(ValueError, match=f"^noise_levels: {n} steps, expected at least 1$"):
        noise_levels(COSINE, n)


# Distributions of the samples


@each_schedule
@each_sampler
def test_a_gaussian_whose_denoiser_is_known_is_recovered(name: SamplerName, params: NoiseParams) -> None:
    y, noise = make_noise((5, 1, 100, 100), seed=0)
    images = sample(name, gaussian(MEAN, STD), y, noise_levels(params, 500), noise=noise)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert images.std().item() == pytest.approx(STD, abs=0.015)


@each_schedule
def test_the_error_shrinks_with_more_steps_and_all_samplers_end_at_the_same_gaussian(
    params: NoiseParams,
) -> None:
    counts = [5, 10, 20, 80, 320, params.steps]
    errors = {
        name: [abs(compute_exact_std(name, noise_levels(params, n)) - STD) for n in counts] for name in NAMES
    }
    for name in NAMES:
        assert errors[name] == sorted(errors[name], reverse=True)
        assert errors[name][-1] < 0.003
    for ancestral, ddim_error, dpm, heun_error in zip(*(errors[name] for name in NAMES), strict=True):
        assert dpm < ddim_error < ancestral
        assert heun_error < ddim_error


@each_schedule
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_any_eta_ends_at_the_same_gaussian(params: NoiseParams, eta: float) -> None:
    y, noise = make_noise((1, 1, 200, 200), seed=1)
    steps = ddim(noise_levels(params, 500).tolist(), eta=eta)
    images = run_steps(steps, gaussian(MEAN, STD), y, noise=noise, known_pixels=None)
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

    def exact(y: Tensor, gamma: float) -> Tensor:
        variance = gamma * stds**2 + 1 - gamma
        offset = y - math.sqrt(gamma) * means
        posterior = (weights.log() - variance.log() / 2 - offset.square() / (2 * variance)).softmax(dim=0)
        return (posterior * (means + math.sqrt(gamma) * stds**2 / variance * offset)).sum(dim=0)

    y, noise = make_noise((1, 1, 200, 200), seed=2)
    images = sample(name, exact, y, noise_levels(params, 250), noise=noise)
    low, high = images[images < -0.1], images[images >= -0.1]
    assert len(low) / images.numel() == pytest.approx(0.3, abs=0.012)
    assert (low.mean().item(), high.mean().item()) == pytest.approx((-0.6, 0.5), abs=0.015)
    assert (low.std().item(), high.std().item()) == pytest.approx((0.1, 0.2), abs=0.025)


# Comparison with written-out formulas


def compute_flow_errors(name: SamplerName, counts: list[int]) -> list[float]:
    """Largest distance from the probability flow between two inner levels, for each number of steps."""
    y = torch.linspace(-2, 2, 101, dtype=torch.float64).reshape(1, 1, 1, -1)
    errors = []
    for n in counts:
        ladder = torch.sigmoid(2 * torch.linspace(-4, 4, n + 1, dtype=torch.float64))  # lambda from -4 to 4
        images = sample(name, gaussian(MEAN, STD), y, ladder, noise=no_noise)
        errors.append((images - gaussian_flow(y, ladder[0], ladder[-1])).abs().max().item())
    return errors


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++2m", 2), ("heun", 2)])
def test_twice_the_steps_halve_the_error_of_ddim_and_quarter_that_of_dpm_solver_and_heun(
    name: SamplerName, order: int
) -> None:
    errors = compute_flow_errors(name, [32, 64, 128, 256])
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order] * 3, abs=0.1)


@each_schedule
@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 0.01), ("dpm++2m", 0.001), ("heun", 0.001)])
def test_each_noise_goes_where_the_probability_flow_takes_it(
    name: SamplerName, tolerance: float, params: NoiseParams
) -> None:
    y = torch.linspace(-3, 3, 101, dtype=torch.float64).reshape(1, 1, 1, -1)
    ladder = noise_levels(params, 500)
    images = sample(name, gaussian(MEAN, STD), y, ladder, noise=no_noise)
    torch.testing.assert_close(images, gaussian_flow(y, ladder[0], ladder[-1]), atol=tolerance, rtol=0)


@each_schedule
def test_ancestral_is_equation_6_with_the_posteriors_variance(params: NoiseParams) -> None:
    """y_{t-1} = (y_t - beta_t / sqrt(1 - alpha-bar_t) epsilon) / sqrt(alpha_t) + sqrt(beta-tilde_t) z."""
    shape = (2, 3, 4, 4)
    start, noise = make_noise(shape, seed=3, dtype=torch.float64)
    zs = [noise(i) for i in range(params.steps)]
    beta = betas(params)
    alpha = 1 - beta
    alpha_bar = np.cumprod(alpha)
    denoise = gaussian(MEAN, STD)

    y = start
    for i, t in enumerate(reversed(range(params.steps))):
        y_0 = denoise(y, float(alpha_bar[t]))
        epsilon = (y - math.sqrt(alpha_bar[t]) * y_0) / math.sqrt(1 - alpha_bar[t])
        mean = (y - beta[t] / math.sqrt(1 - alpha_bar[t]) * epsilon) / math.sqrt(alpha[t])
        alpha_bar_before = alpha_bar[t - 1] if t else 1.0
        beta_tilde = (1 - alpha_bar_before) / (1 - alpha_bar[t]) * beta[t]
        y = mean + math.sqrt(beta_tilde) * zs[i]

    ours = sample("ancestral", denoise, start, noise_levels(params, params.steps), noise=lambda i: zs[i])
    torch.testing.assert_close(ours, y, atol=1e-9, rtol=0)


@each_schedule
@pytest.mark.parametrize("n", [1, 3, 20, 1000])
def test_ancestral_weights_are_the_posterior_mean_of_an_estimate(params: NoiseParams, n: int) -> None:
    """q(y_{t-1} | y_t, y_0) of Ho et al. 2020, eq. 7, for any spacing: alpha_t = gamma_t / gamma_{t-1}."""
    ladder = noise_levels(params, n).tolist()
    for (g, g_next), step in zip(pairwise(ladder), ddim(ladder, eta=1.0), strict=True):
        alpha = g / g_next
        beta = 1 - alpha
        assert step.gamma == g
        assert step.y_0 == pytest.approx(math.sqrt(g_next) * beta / (1 - g), abs=1e-11)
        assert step.y == pytest.approx(math.sqrt(alpha) * (1 - g_next) / (1 - g), abs=1e-11)
        assert step.sigma == pytest.approx(math.sqrt((1 - g_next) / (1 - g) * beta), abs=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("g", "g_next"), [(2.4e-9, 2.4e-6), (0.2, 0.3), (0.99991, 0.99996), (0.99996, 1.0)])
def test_a_perfect_estimate_gets_exactly_the_noise_of_the_next_level(
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


def test_dpm_solvers_second_order_is_exact_where_estimates_are_linear_in_lambda() -> None:
    """Its weights are those of the line through two estimates, Taylor's first term (Lu et al., eq. 12)."""
    lams = (-0.7, 0.1, 0.4)
    before, g, g_next = (1 / (1 + math.exp(-2 * lam)) for lam in lams)
    step = dpm_solver_step(before, g, g_next)
    assert step.y_0 + step.y_0_before == pytest.approx(ddim_step(g, g_next, 0.0).y_0)
    # An estimate that is lambda itself: the sum is its value half a step on.
    weighted = (step.y_0 * lams[1] + step.y_0_before * lams[0]) / (step.y_0 + step.y_0_before)
    assert weighted == pytest.approx((lams[1] + lams[2]) / 2)


def test_heun_is_algorithm_1_of_karras_in_the_angle_between_image_and_noise() -> None:
    """Line by line, with s(t) = cos t and sigma(t) = tan t: derivatives of s and sigma are written out."""

    def derivative(x: Tensor, t: float) -> Tensor:
        s, sigma, s_dot, sigma_dot = math.cos(t), math.tan(t), -math.sin(t), 1 / math.cos(t) ** 2
        y_0 = gaussian(MEAN, STD)(x, math.cos(t) ** 2)  # D(x / s; sigma)
        return (sigma_dot / sigma + s_dot / s) * x - sigma_dot * s / sigma * y_0

    start = torch.linspace(-2, 2, 11, dtype=torch.float64).reshape(1, 1, 1, -1)
    times = [1.5, 1.1, 0.6, 0.2]
    x = start
    for t, t_next in pairwise(times):
        d = derivative(x, t)
        euler = x + (t_next - t) * d
        x = x + (t_next - t) * (d / 2 + derivative(euler, t_next) / 2)
    ladder = torch.tensor(times, dtype=torch.float64).cos().square()
    ours = sample("heun", gaussian(MEAN, STD), start, ladder, noise=no_noise)
    torch.testing.assert_close(ours, x, atol=1e-12, rtol=0)


def test_heun_evaluates_each_inner_level_twice_and_its_last_step_is_ddim() -> None:
    ladder = noise_levels(COSINE, 4).tolist()
    steps = SAMPLERS["heun"](ladder)
    assert [step.gamma for step in steps] == [ladder[0], *(g for g in ladder[1:4] for _ in range(2))]
    assert steps[-1] == ddim_step(ladder[3], 1.0, eta=0.0)
    assert [len(heun_steps(g, g_next)) for g, g_next in pairwise(ladder)] == [2, 2, 2, 1]


# The known region


@each_sampler
@pytest.mark.parametrize("mask_type", [torch.bool, torch.float32, torch.uint8])
def test_the_known_region_is_exact_at_every_call_and_at_the_end(
    name: SamplerName, mask_type: torch.dtype
) -> None:
    shape = (2, 3, 8, 8)
    y, noise = make_noise(shape, seed=4)
    y_0 = noise(0) * 1e3
    y_0[..., :2] = -0.0
    to_make = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    to_make[0, :, 2:5, 1:7] = True
    to_make[1, :, 6:, :3] = True
    outside = ~to_make.expand(shape)
    states = []

    def denoise(y: Tensor, gamma: float) -> Tensor:
        states.append(y.clone())
        return gaussian(MEAN, STD)(y, gamma)

    known_pixels = KnownPixels(mask=to_make.to(mask_type), y_0=y_0)
    image = sample(name, denoise, y, noise_levels(COSINE, 12), noise=noise, known_pixels=known_pixels)
    assert len(states) == count_evaluations(name, 12)
    for state in (*states, image):
        assert has_same_bits(state[outside], y_0[outside])
        assert not (state == y_0)[~outside].any()


@each_sampler
def test_known_pixels_change_nothing_inside_the_mask_where_pixels_are_independent(name: SamplerName) -> None:
    shape = (2, 3, 8, 8)
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)) < 0.5
    images = []
    for known_pixels in (None, KnownPixels(mask=mask, y_0=torch.full(shape, 7.0))):
        y, noise = make_noise(shape, seed=6)
        images.append(
            sample(
                name, gaussian(MEAN, STD), y, noise_levels(LINEAR, 9), noise=noise, known_pixels=known_pixels
            )
        )
    inside = mask.expand(shape)
    assert has_same_bits(images[0][inside], images[1][inside])


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 4)])
def test_a_mask_that_does_not_fit_its_images_is_an_error_that_names_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"^KnownPixels: y_0 of \(2, 3, 8, 8\) needs a mask of \(2, 1, 8, 8\), got"
    ):
        KnownPixels(mask=torch.ones(shape), y_0=torch.zeros(2, 3, 8, 8))


# Guarantees to the caller


@each_sampler
def test_a_batch_is_bit_for_bit_its_images_alone(name: SamplerName) -> None:
    """Also with fresh noise in every step, if each image has its own."""
    n_images, n = 3, 20
    start, _ = make_noise((n_images, 3, 5, 7), seed=7)
    zs, _ = make_noise((n, n_images, 3, 5, 7), seed=8)
    batch = sample(name, gaussian(MEAN, STD), start, noise_levels(COSINE, n), noise=lambda i: zs[i])
    for k in range(n_images):
        alone = slice(k, k + 1)
        image = sample(
            name,
            gaussian(MEAN, STD),
            start[alone],
            noise_levels(COSINE, n),
            noise=lambda i, alone=alone: zs[i, alone],  # type: ignore[misc]
        )
        assert has_same_bits(image, batch[alone])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_request_no_noise(name: SamplerName) -> None:
    y, _ = make_noise((1, 1, 2, 2), seed=9)
    sample(name, gaussian(MEAN, STD), y, noise_levels(COSINE, 10), noise=no_noise)


def test_ancestral_requests_the_noise_of_each_step_once_and_none_for_the_last() -> None:
    requests = []

    def noise(step: int) -> Tensor:
        requests.append(step)
        return torch.zeros(1, 1, 2, 2)

    sample("ancestral", gaussian(MEAN, STD), torch.zeros(1, 1, 2, 2), noise_levels(COSINE, 10), noise=noise)
    assert requests == list(range(9))


@each_schedule
@each_sampler
def test_the_last_step_returns_its_estimate_and_a_single_step_the_only_one(
    name: SamplerName, params: NoiseParams
) -> None:
    for n in (1, 2, 10):
        y, noise = make_noise((2, 3, 4, 4), seed=10)
        estimates: list[Tensor] = []

        def denoise(y: Tensor, gamma: float, estimates: list[Tensor] = estimates) -> Tensor:
            estimates.append(gaussian(MEAN, STD)(y, gamma))
            return estimates[-1]

        image = sample(name, denoise, y, noise_levels(params, n), noise=noise)
        assert len(estimates) == count_evaluations(name, n)
        assert torch.equal(image, estimates[-1])


@each_schedule
@each_sampler
def test_the_denoiser_gets_every_noise_level_exactly_and_in_order(
    name: SamplerName, params: NoiseParams
) -> None:
    calls: list[float] = []

    def denoise(y: Tensor, gamma: float) -> Tensor:
        calls.append(gamma)
        return y

    y, noise = make_noise((3, 1, 2, 2), seed=11, dtype=torch.float64)
    sample(name, denoise, y, noise_levels(params, 6), noise=noise)
    assert list(dict.fromkeys(calls)) == noise_levels(params, 6)[:-1].tolist()
    assert calls == [step.gamma for step in SAMPLERS[name](noise_levels(params, 6).tolist())]
    assert len(calls) == count_evaluations(name, 6)


@each_schedule
@each_sampler
def test_any_number_of_steps_stays_finite_in_float32_for_a_wrong_network_too(
    name: SamplerName, params: NoiseParams
) -> None:
    """It predicts epsilon = 0: at the noisiest level its estimate is the noise, 20,000 times as strong."""

    def denoise(y: Tensor, gamma: float) -> Tensor:
        return (y / math.sqrt(gamma)).clamp(-1, 1)

    for n in (*range(1, 31), 50, 100, 250, 500, 999, 1000):
        y, noise = make_noise((1, 1, 2, 2), seed=n)
        image = sample(name, denoise, y, noise_levels(params, n), noise=noise)
        assert image.dtype == torch.float32
        assert image.abs().max() <= 1, f"{n} steps"


@each_schedule
@each_sampler
def test_the_weights_of_every_number_of_steps_are_finite(name: SamplerName, params: NoiseParams) -> None:
    for n in (*range(1, 101), *range(150, 1001, 50), params.steps, 2 * params.steps):
        for step in SAMPLERS[name](noise_levels(params, n).tolist()):
            total = step.y + step.y_0 + step.y_before + step.y_0_before + step.sigma
            assert math.isfinite(total), f"{n} steps: {step}"


def test_a_step_uses_the_images_own_dtype_and_builds_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y, noise = make_noise((1, 1, 2, 2), seed=12, dtype=dtype)
        for name in NAMES:
            image = sample(name, lambda y, _: y * weight.to(y.dtype), y, noise_levels(COSINE, 3), noise=noise)
            assert image.dtype == dtype
            assert not image.requires_grad


@each_sampler
def test_a_denoiser_may_write_its_output_into_the_same_memory_every_time(name: SamplerName) -> None:
    """As a network captured in a CUDA graph does."""
    memory = torch.empty(1, 1, 4, 4)

    def denoise(y: Tensor, gamma: float) -> Tensor:
        return memory.copy_(gaussian(MEAN, STD)(y, gamma))

    images = []
    for denoiser in (denoise, gaussian(MEAN, STD)):
        y, noise = make_noise((1, 1, 4, 4), seed=14)
        images.append(sample(name, denoiser, y, noise_levels(COSINE, 8), noise=noise))
    assert has_same_bits(*images)


@each_sampler
def test_no_step_waits_for_the_device(name: SamplerName) -> None:
    """Tensors on the meta device have no values, so reading one back would fail."""
    with torch.device("meta"):
        y, mask = torch.empty(2, 3, 4, 4), torch.empty(2, 1, 4, 4)
    known_pixels = KnownPixels(mask=mask, y_0=y)
    image = sample(
        name, gaussian(MEAN, STD), y, noise_levels(COSINE, 5), noise=lambda _: y, known_pixels=known_pixels
    )
    assert image.shape == y.shape and image.dtype == y.dtype and image.is_meta


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    for name in NAMES:
        y, noise = make_noise((1, 1, 2, 2), seed=13)
        sample(name, gaussian(MEAN, STD), y, noise_levels(COSINE, 5), noise=noise)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_step_from_pure_noise_preserves_none_of_it() -> None:
    assert ddim_step(gammas(COSINE)[-1].item(), 1.0, eta=1.0) == Step(
        gammas(COSINE)[-1].item(), y=0.0, y_0=1.0
    )
