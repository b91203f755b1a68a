"""PSNR and SSIM are the published figures, of boxes and of whole frames, and move the right way."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stages.evaluate.metrics.pixels import decibels, psnr, squared_errors, ssim, ssim_by_frame

Picture = NDArray[np.uint8]


def picture(seed: int, height: int = 48, width: int = 64) -> Picture:
    """Something with edges and even parts: blurred noise with a block in it."""
    rng = np.random.default_rng(seed)
    made = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), (0, 0), 2)
    made[10:30, 20:40] = rng.integers(0, 256, 3)
    return made


def even(grey: int) -> Picture:
    return np.full((20, 30, 3), grey, np.uint8)


def noisy(clean: Picture, strength: float, seed: int = 0) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


def blurred(clean: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(clean, (0, 0), sigma))


def shifted(clean: Picture, pixels: int) -> Picture:
    return np.roll(clean, pixels, axis=1)


def published_ssim(a: Picture, b: Picture) -> float:
    """scikit-image's, with the settings of Wang et al. 2004."""
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(a, b, channel_axis=-1, **settings))


def test_psnr_of_unrelated_noise_is_8_db_for_differences_do_not_wrap() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 20, 64, 64, 3), dtype=np.uint8)
    wrapped = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    assert wrapped == pytest.approx(27.9, abs=0.1), "which is how 7.7 dB become a paper's 27.9"
    assert psnr(a, b) == pytest.approx(7.73, abs=0.02)
    # Two independent values of 0 .. n-1 differ by (n² - 1) / 6 in the square.
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / ((256**2 - 1) / 6)), abs=0.01)


def test_psnr_is_scikit_images() -> None:
    for seed in range(5):
        a = picture(seed)
        b = noisy(a, 10 * (seed + 1))
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)
        assert psnr(a.astype(float), b) == pytest.approx(psnr(a, b), abs=1e-9)
    assert psnr(a, a) == np.inf
    white, black = np.full((2, 20, 64, 64, 3), [[[[[255]]]], [[[[0]]]]], np.uint8)
    assert psnr(white, black) == pytest.approx(0, abs=1e-9), "which no sum overflows"


def test_a_clips_psnr_is_of_its_mean_error_so_one_copied_frame_does_not_make_it_infinite() -> None:
    truth = np.stack([picture(seed) for seed in range(4)])
    drawn = truth.copy()
    drawn[1:] = [noisy(frame, 20) for frame in truth[1:]]
    errors = squared_errors(drawn, truth)
    assert errors[0] == 0 and decibels(errors) == pytest.approx(psnr(drawn, truth))


@pytest.mark.parametrize(
    "pair",
    [
        (picture(1), noisy(picture(1), 8)),
        (picture(2), blurred(picture(2), 1.5)),
        (picture(3), picture(4)),
        (even(0), even(1)),
        (even(255), noisy(even(255), 1)),
        (noisy(even(120), 7), noisy(even(220), 7, seed=1)),
        (picture(5, 11, 40), noisy(picture(5, 11, 40), 30)),  # as low as the window
    ],
)
def test_ssim_is_scikit_images_to_a_millionth(pair: tuple[Picture, Picture]) -> None:
    assert ssim(*pair) == pytest.approx(published_ssim(*pair), abs=1e-6)


def test_ssim_of_frames_and_boxes_is_that_of_whole_pictures_and_of_boxes_cut_out() -> None:
    """Whatever differs, and wherever: nothing, a corner, a box, everything."""
    truth = np.stack([picture(seed) for seed in range(5)])
    drawn = truth.copy()
    drawn[1, :3, :2] ^= 255
    drawn[2, 16:40, 20:50] = noisy(truth[2], 20)[16:40, 20:50]
    drawn[3] = noisy(truth[3], 20)
    drawn[4, -1, -1] ^= 255
    boxes = np.array([[18, 15, 52, 42], [0, 0, 20, 20], [18, 15, 52, 42], [30, 20, 64, 48], [40, 30, 64, 48]])
    of_frames, of_boxes = ssim_by_frame(drawn, truth, boxes)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        assert of_frames[k] == pytest.approx(published_ssim(drawn[k], truth[k]), abs=1e-6)
        cut = np.s_[y0:y1, x0:x1]
        assert of_boxes[k] == pytest.approx(published_ssim(drawn[k][cut], truth[k][cut]), abs=1e-6)
    assert of_frames[0] == of_boxes[0] == 1


def test_a_box_smaller_than_the_window_has_no_ssim() -> None:
    frames = picture(0)[None]
    of_frames, of_boxes = ssim_by_frame(frames, noisy(frames, 5), np.array([[5, 5, 15, 15]]))
    assert np.isfinite(of_frames).all() and np.isnan(of_boxes).all()
    assert np.isnan(ssim(frames[0, :10], frames[0, :10]))


@pytest.mark.parametrize("worse", [noisy, blurred, shifted])
def test_noise_blur_and_shift_cost_the_more_the_stronger_they_are(worse: object) -> None:
    assert callable(worse)
    clean = picture(7)
    for figure in (psnr, ssim):
        scores = [figure(worse(clean, strength), clean) for strength in (1, 2, 4, 8)]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
        assert scores[0] < figure(clean, clean)


def test_the_box_tells_what_the_whole_frame_hides() -> None:
    truth = np.stack([picture(seed, 128, 128) for seed in range(3)])
    boxes = np.tile([30, 70, 100, 110], (3, 1))
    drawn = truth.copy()
    drawn[:, 70:110, 30:100] = noisy(truth, 30)[:, 70:110, 30:100]
    share = 70 * 40 / 128**2
    in_boxes, in_frames = squared_errors(drawn, truth, boxes), squared_errors(drawn, truth)
    assert in_frames == pytest.approx(in_boxes * share)
    assert decibels(in_frames) - decibels(in_boxes) == pytest.approx(-10 * np.log10(share))
