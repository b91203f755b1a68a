"""Known blur and known grain inside a region have their known ratios to what is round it."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from benchmarks.surroundings import (
    COARSE,
    FINE,
    compute_grain,
    compute_texture,
    measure_surroundings,
)

SIZE = 400
Image = np.ndarray


def make_grain(deviation: float, seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(0, deviation, (SIZE, SIZE))


def make_image(luma: Image) -> Image:
    return np.clip(np.rint(128 + luma), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def make_depth() -> Image:
    """A box in the middle, 200 px wide."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return 100.0 - np.maximum(np.abs(x - 200), np.abs(y - 200))


def band_deviation(blur: float) -> float:
    """Of unit white noise, blurred, in the band between FINE and COARSE: a product of two Gaussians of
    variance v and w sums to 1 / (2 pi (v + w))."""
    v, w = FINE**2 + blur**2, COARSE**2 + blur**2
    return math.sqrt(1 / (4 * math.pi * v) + 1 / (4 * math.pi * w) - 1 / (math.pi * (v + w)))


@pytest.mark.parametrize("deviation", [2.0, 7.0])
def test_white_noise_has_the_grain_of_its_deviation_and_the_texture_of_its_band(deviation: float) -> None:
    grain = make_grain(deviation)
    assert np.std(compute_grain(grain)) == pytest.approx(deviation, rel=0.02)
    assert np.std(compute_texture(grain)) == pytest.approx(deviation * band_deviation(0), rel=0.03)


def test_an_edge_is_no_grain() -> None:
    edge = np.where(np.arange(SIZE)[None, :] < 200, 0.0, 100.0).repeat(SIZE, axis=0).reshape(SIZE, SIZE)
    assert np.abs(compute_grain(edge)).max() == 0


def test_the_source_fits_itself_also_where_it_is_sharper_inside() -> None:
    depth = make_depth()
    source = make_image(np.where(depth > 0, 3, 1) * make_grain(4))
    fit = measure_surroundings(source, source, depth)
    assert (fit.grain, fit.texture, fit.seam) == (1, 1, 1)


def test_twice_the_grain_is_a_ratio_of_two() -> None:
    depth = make_depth()
    source, result = make_image(make_grain(4)), make_image(np.where(depth > 0, 2, 1) * make_grain(4, seed=1))
    assert measure_surroundings(result, source, depth).grain == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("blur", [0.7, 1.5])
def test_a_blurred_region_has_the_ratio_of_its_blur(blur: float) -> None:
    depth, grain = make_depth(), make_grain(16)
    result = np.where(depth > 0, cv2.GaussianBlur(grain, (0, 0), blur), grain)
    fit = measure_surroundings(make_image(result), make_image(grain), depth)
    assert fit.texture == pytest.approx(band_deviation(blur) / band_deviation(0), rel=0.06)
    assert fit.grain < fit.texture < 1


def test_a_region_of_another_level_has_a_seam() -> None:
    depth = make_depth()
    slope = np.arange(SIZE)[None, :] / 8 + np.zeros((SIZE, 1))
    source, result = make_image(slope), make_image(slope + np.where(depth > 0, 12, 0))
    assert measure_surroundings(source, source, depth).seam == 1
    assert measure_surroundings(result, source, depth).seam > 4


def test_what_is_not_there_is_nan() -> None:
    flat = make_image(np.zeros((SIZE, SIZE)))
    fit = measure_surroundings(flat, flat, np.full((SIZE, SIZE), 50.0))
    assert math.isnan(fit.grain) and math.isnan(fit.texture) and math.isnan(fit.seam)
