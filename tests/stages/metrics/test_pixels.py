"""PSNR and SSIM equal published code, for boxes and whole frames, and get worse with every distortion."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stages.metrics.pixels import compute_psnr, squared_error, squared_errors, ssim_by_frame

Picture = NDArray[np.uint8]


def make_image(seed: int, height: int = 48, width: int = 64) -> Picture:
    """An image with edges and uniform areas: blurred noise with a block in it."""
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), (0, 0), 2)
    image[10:30, 20:40] = rng.integers(0, 256, 3)
    return image


def make_uniform(grey: int) -> Picture:
    return np.full((20, 30, 3), grey, np.uint8)


def add_noise(clean: Picture, strength: float, seed: int = 0) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


def blur(clean: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(clean, (0, 0), sigma))


def shift(clean: Picture, pixels: int) -> Picture:
    return np.roll(clean, pixels, axis=1)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return compute_psnr(squared_error(a, b))


def ssim(a: Picture, b: Picture) -> float:
    """SSIM of two whole images."""
    height, width = a.shape[:2]
    frame_scores, box_scores = ssim_by_frame(a[None], b[None], np.array([[0, 0, width, height]]))
    assert np.array_equal(frame_scores, box_scores, equal_nan=True)
    return float(frame_scores[0])


def published_ssim(a: Picture, b: Picture) -> float:
    """SSIM of scikit-image, with the settings of Wang et al. 2004."""
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(a, b, channel_axis=-1, **settings))


def test_psnr_of_unrelated_noise_is_8_db_because_differences_do_not_wrap() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 20, 64, 64, 3), dtype=np.uint8)
    wrapped = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    assert wrapped == pytest.approx(27.9, abs=0.1), "which is how 7.7 dB become a paper's 27.9"
    assert psnr(a, b) == pytest.approx(7.73, abs=0.02)
    # Two independent values of 0 .. n-1 differ by (n² - 1) / 6 in the square.
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / ((256**2 - 1) / 6)), abs=0.01)


def test_psnr_equals_that_of_scikit_image() -> None:
    for seed in range(5):
        a = make_image(seed)
        b = add_noise(a, 10 * (seed + 1))
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)
        assert psnr(a.astype(float), b) == pytest.approx(psnr(a, b), abs=1e-9)
    assert psnr(a, a) == np.inf
    white, black = np.full((2, 20, 64, 64, 3), [[[[[255]]]], [[[[0]]]]], np.uint8)
    assert psnr(white, black) == pytest.approx(0, abs=1e-9), "no sum overflows"


def test_a_clips_psnr_is_that_of_its_mean_error_so_one_copied_frame_does_not_make_it_infinite() -> None:
    truth = np.stack([make_image(seed) for seed in range(4)])
    generated = truth.copy()
    generated[1:] = [add_noise(frame, 20) for frame in truth[1:]]
    errors = squared_errors(generated, truth)
    assert errors[0] == 0 and compute_psnr(errors) == pytest.approx(psnr(generated, truth))


@pytest.mark.parametrize(
    "pair",
    [
        (make_image(1), add_noise(make_image(1), 8)),
        (make_image(2), blur(make_image(2), 1.5)),
        (make_image(3), make_image(4)),
        (make_uniform(0), make_uniform(1)),
        (make_uniform(255), add_noise(make_uniform(255), 1)),
        (add_noise(make_uniform(120), 7), add_noise(make_uniform(220), 7, seed=1)),
        (make_image(5, 11, 40), add_noise(make_image(5, 11, 40), 30)),  # as high as the window
    ],
)
def test_ssim_equals_that_of_scikit_image_to_a_millionth(pair: tuple[Picture, Picture]) -> None:
    assert ssim(*pair) == pytest.approx(published_ssim(*pair), abs=1e-6)


def test_ssim_by_frame_equals_that_of_whole_images_and_of_cropped_boxes() -> None:
    """Whatever differs: nothing, a corner, a box, everything."""
    truth = np.stack([make_image(seed) for seed in range(5)])
    generated = truth.copy()
    generated[1, :3, :2] ^= 255
    generated[2, 16:40, 20:50] = add_noise(truth[2], 20)[16:40, 20:50]
    generated[3] = add_noise(truth[3], 20)
    generated[4, -1, -1] ^= 255
    boxes = np.array([[18, 15, 52, 42], [0, 0, 20, 20], [18, 15, 52, 42], [30, 20, 64, 48], [40, 30, 64, 48]])
    frame_scores, box_scores = ssim_by_frame(generated, truth, boxes)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        assert frame_scores[k] == pytest.approx(published_ssim(generated[k], truth[k]), abs=1e-6)
        cut = np.s_[y0:y1, x0:x1]
        assert box_scores[k] == pytest.approx(published_ssim(generated[k][cut], truth[k][cut]), abs=1e-6)
    assert frame_scores[0] == box_scores[0] == 1


def test_a_box_smaller_than_the_window_has_no_ssim() -> None:
    frames = make_image(0)[None]
    frame_scores, box_scores = ssim_by_frame(frames, add_noise(frames, 5), np.array([[5, 5, 15, 15]]))
    assert np.isfinite(frame_scores).all() and np.isnan(box_scores).all()
    assert np.isnan(ssim(frames[0, :10], frames[0, :10]))


@pytest.mark.parametrize("distort", [add_noise, blur, shift])
def test_stronger_noise_blur_and_shift_score_worse(distort: object) -> None:
    assert callable(distort)
    clean = make_image(7)
    for metric in (psnr, ssim):
        scores = [metric(distort(clean, strength), clean) for strength in (1, 2, 4, 8)]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
        assert scores[0] < metric(clean, clean)


def test_an_error_in_the_box_counts_less_in_the_whole_frame() -> None:
    truth = np.stack([make_image(seed, 128, 128) for seed in range(3)])
    boxes = np.tile([30, 70, 100, 110], (3, 1))
    generated = truth.copy()
    generated[:, 70:110, 30:100] = add_noise(truth, 30)[:, 70:110, 30:100]
    share = 70 * 40 / 128**2
    in_boxes, in_frames = squared_errors(generated, truth, boxes), squared_errors(generated, truth)
    assert in_frames == pytest.approx(in_boxes * share)
    assert compute_psnr(in_frames) - compute_psnr(in_boxes) == pytest.approx(-10 * np.log10(share))
