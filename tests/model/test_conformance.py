"""The network and the diffusion match the paper, by numbers known without our code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.audio import AudioParams
from model.blocks import Dropout, ResidualBlock, embed_sinusoidal
from model.denoiser import (
    NoiseParams,
    add_noise,
    betas,
    embed_noise_level,
    estimate_y_0,
    gammas,
    interpolate_gamma,
    log_snr,
    masked_loss,
    snr_weight,
    training_target,
)
from model.unet import UNet, UNetParams, count_parameters

LINEAR = NoiseParams(schedule="linear", steps=2000, beta_start=1e-6, beta_end=0.01)
COSINE = NoiseParams(schedule="cosine", steps=1000)
OFFICIAL_AUDIO = AudioParams(rows_after=1, normalised=False, null=False)  # 4 x 256 values
OFFICIAL = UNetParams(audio=OFFICIAL_AUDIO)
TINY = UNetParams(size=16, channels=32, multiples=(1, 2), blocks=1, attention_sizes=(), head_channels=32,
                  audio=AudioParams(n_mels=4))  # fmt: skip


@pytest.mark.parametrize(
    ("params", "count"),
    [
        (OFFICIAL, 13_698_691),  # the authors' multi-speaker JSON
        (
            replace(OFFICIAL, multiples=(1, 2, 4, 8), attention_sizes=()),
            66_655_619,
        ),  # Table 1, single speaker
        (replace(OFFICIAL, channels=128), 54_177_027),
    ],
)
def test_the_network_has_the_papers_number_of_parameters(params: UNetParams, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(params)) == count


def test_one_forward_costs_68_6_gflop() -> None:
    with torch.device("meta"):
        network = UNet(OFFICIAL).eval()
        x, gamma, audio = torch.empty(1, 9, 128, 128), torch.empty(1), torch.empty(1, 4, 256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(x, gamma, audio).shape == (1, 3, 128, 128)
    assert counter.get_total_flops() == pytest.approx(68.6e9, rel=0.01)


def test_an_untrained_network_predicts_zero_and_its_blocks_return_their_input() -> None:
    torch.manual_seed(0)
    network = UNet(TINY).eval()
    prediction = network(torch.randn(2, 9, 16, 16), torch.rand(2), torch.randn(2, 5, 4))
    assert torch.equal(prediction, torch.zeros_like(prediction))
    block = ResidualBlock(32, 32, 16, dropout=Dropout(0.5, layer=0))
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 64), torch.randn(2, 64)), x)


def test_film_applies_the_noise_level_first_and_the_audio_second_both_with_one_plus_scale() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(32, 32, 8, dropout=Dropout(0.5, layer=0)).eval()
    torch.nn.init.normal_(block.conv_out.weight)
    x, noise, audio = torch.randn(1, 32, 4, 4), torch.randn(1, 64), torch.randn(1, 64)
    t_scale, t_shift = noise.chunk(2, dim=1)
    z_scale, z_shift = audio.chunk(2, dim=1)
    h = block.norm_out(block.conv_in(torch.nn.functional.silu(block.norm_in(x))))
    h = h * (1 + t_scale[..., None, None]) + t_shift[..., None, None]
    h = h * (1 + z_scale[..., None, None]) + z_shift[..., None, None]
    expected = x + block.conv_out(torch.nn.functional.silu(h))
    torch.testing.assert_close(block(x, noise, audio), expected)


def test_the_linear_schedule_matches_its_closed_form() -> None:
    table = gammas(LINEAR)
    i = np.arange(2000)
    assert np.allclose(betas(LINEAR), 1e-6 + (0.01 - 1e-6) * i / 1999, rtol=1e-12)
    assert table[-1] == pytest.approx(4.386e-5, rel=1e-3)
    assert np.allclose(np.log(table), np.cumsum(np.log1p(-betas(LINEAR))), rtol=1e-12)


def test_the_cosine_schedule_matches_its_closed_form() -> None:
    table = gammas(COSINE)
    x = np.arange(1, 1001) / 1000
    closed = np.cos((x + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert np.allclose(table[:-1], closed[:-1], rtol=1e-9), "all but the one step whose beta is clamped"
    assert table[-1] == pytest.approx(2.4e-9, rel=0.02)
    assert betas(COSINE)[0] == pytest.approx(4.13e-5, rel=1e-2)
    assert (betas(COSINE) == 0.999).sum() == 1


@pytest.mark.parametrize("shift", [-10.0, -3.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_shift_is_added_to_the_log_snr_of_every_level(schedule: str, shift: float) -> None:
    params = NoiseParams(schedule=schedule)  # type: ignore[arg-type]
    table, shifted = gammas(params), gammas(replace(params, log_snr_shift=shift))
    assert np.allclose(np.log(shifted / (1 - shifted)), np.log(table / (1 - table)) + shift, atol=1e-8)
    assert np.array_equal(gammas(replace(params, log_snr_shift=0.0)), table)


def test_training_noise_levels_are_uniform_over_the_steps() -> None:
    table = torch.from_numpy(gammas(COSINE))
    places = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gamma = interpolate_gamma(table, places)
    assert gamma.min() > table[-1]
    assert gamma.max() < table[0]
    # Every step is equally likely: the place in the table is uniform.
    place = np.interp(gamma.numpy(), table.numpy()[::-1], np.arange(1000)[::-1])
    counts, _ = np.histogram(place, bins=50, range=(0, 999))
    assert np.abs(counts / counts.mean() - 1).max() < 0.08


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_image_and_noise_are_recovered_from_the_true_target(target: str) -> None:
    torch.manual_seed(0)
    y_0, epsilon = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    gamma = torch.tensor([0.999, 0.5, 0.1, 1e-4], dtype=torch.float64)
    y = add_noise(y_0, epsilon, gamma)
    prediction = training_target(y_0, epsilon, gamma, target)  # type: ignore[arg-type]
    estimate = estimate_y_0(y, prediction, gamma, target)  # type: ignore[arg-type]
    torch.testing.assert_close(estimate, y_0)
    signal, noise = gamma[:, None, None, None].sqrt(), (1 - gamma)[:, None, None, None].sqrt()
    torch.testing.assert_close((y - signal * estimate) / noise, epsilon)


def test_with_a_base_the_true_target_is_v_of_the_change_and_gives_the_image_back() -> None:
    torch.manual_seed(0)
    y_0, epsilon, base = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
    gamma = torch.tensor([0.999, 0.5, 0.1, 1e-4], dtype=torch.float64)
    y = add_noise(y_0, epsilon, gamma)
    prediction = training_target(y_0, epsilon, gamma, "v", base)
    torch.testing.assert_close(prediction, training_target(y_0 - base, epsilon, gamma, "v"))
    torch.testing.assert_close(estimate_y_0(y, prediction, gamma, "v", base), y_0)
    shifted = y - gamma[:, None, None, None].sqrt() * base
    torch.testing.assert_close(
        estimate_y_0(y, prediction, gamma, "v", base), base + estimate_y_0(shifted, prediction, gamma, "v")
    )


def test_without_a_prediction_the_estimate_is_the_base_in_noise_and_the_image_without() -> None:
    torch.manual_seed(0)
    y_0, epsilon, base = torch.randn(3, 2, 3, 8, 8)
    gamma = torch.tensor([1e-8, 1 - 1e-7])
    estimate = estimate_y_0(add_noise(y_0, epsilon, gamma), torch.zeros_like(y_0), gamma, "v", base)
    torch.testing.assert_close(estimate[0], base[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(estimate[1], y_0[1], atol=1e-2, rtol=0)


def test_adding_noise_preserves_the_variance_of_unit_images() -> None:
    torch.manual_seed(0)
    y_0, epsilon = torch.randn(2, 5, 3, 64, 64)
    for gamma in (0.01, 0.3, 0.99):
        y = add_noise(y_0, epsilon, torch.full((5,), gamma))
        assert y.std() == pytest.approx(1.0, abs=0.02)


def test_the_loss_does_not_depend_on_the_area_of_the_mask() -> None:
    prediction, target = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 3, 16, 16)
    losses = []
    for side in (2, 8, 16):
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., :side, :side] = 1
        losses.append(masked_loss(prediction, target, mask).item())
    assert losses == pytest.approx([0.25, 0.25, 0.25])


def test_no_gradient_comes_from_outside_the_mask() -> None:
    prediction = torch.randn(2, 3, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 4:, 2:6] = 1
    masked_loss(prediction, torch.randn(2, 3, 8, 8), mask).sum().backward()
    gradient = prediction.grad
    assert gradient is not None
    outside = (mask == 0).expand_as(prediction)
    assert torch.equal(gradient[outside], torch.zeros_like(gradient[outside]))
    assert (gradient[~outside] != 0).all()


def test_log_snr_distinguishes_levels_at_the_ends_of_the_schedule_and_gamma_does_not() -> None:
    table = torch.from_numpy(gammas(COSINE))
    low, high = table[[-2, -50]], table[[1, 50]]
    for pair in (low, high):
        distances = {}
        for embedding in ("gamma", "log_snr"):
            one, other = embed_sinusoidal(embed_noise_level(pair, embedding), 64)  # type: ignore[arg-type]
            distances[embedding] = (one - other).norm().item()
        assert distances["log_snr"] > 1.0
        assert distances["gamma"] < 0.1
    assert log_snr(torch.tensor([0.5])).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_min_snr_limits_the_weight_of_the_error_in_the_clean_image(target: str) -> None:
    """Whatever the target, weight times loss is min(SNR, limit) times the error in y_0 (Hang et al.)."""
    params = NoiseParams(target=target, min_snr=5.0)  # type: ignore[arg-type]
    gamma = torch.tensor([0.01, 0.5, 0.9, 0.999], dtype=torch.float64)
    torch.manual_seed(0)
    y_0, epsilon, error = torch.randn(3, 4, 3, 4, 4, dtype=torch.float64)
    prediction = training_target(y_0, epsilon, gamma, params.target) + 0.01 * error
    y = add_noise(y_0, epsilon, gamma)
    y_0_error = (estimate_y_0(y, prediction, gamma, params.target) - y_0).square().mean(dim=(1, 2, 3))
    loss = (0.01 * error).square().mean(dim=(1, 2, 3))
    snr = gamma / (1 - gamma)
    torch.testing.assert_close(snr_weight(gamma, params) * loss, snr.clamp(max=5.0) * y_0_error)
