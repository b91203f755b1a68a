"""Pixel metrics of generated frames against the ground truth: PSNR, and SSIM (Wang et al. 2004).

Frames are RGB, uint8. All arithmetic is in float: the difference of two uint8 arrays wraps, and unrelated
noise would score 27.9 dB instead of 7.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frames

Boxes = NDArray[np.integer]  # (T, 4): x0 y0 x1 y1, x1 and y1 exclusive
Series = NDArray[np.float64]  # (T,)

PEAK = 255
# Mean squared error of rounding to whole levels. A smaller one is scored as this, 58.9 dB: an exact copy
# would be infinitely good, and a mean over clips could not count it.
ROUNDING_ERROR = 1 / 12
# Wang et al. 2004, section III-C.
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
WINDOW, SIGMA = 11, 1.5
MARGIN = WINDOW // 2  # pixels at the image border where no whole window fits


def crop_boxes(frames: Frames, boxes: Boxes) -> Iterator[Frames]:
    """The box of each frame: (h, w, 3)."""
    for frame, (x0, y0, x1, y1) in zip(frames, boxes.tolist(), strict=True):
        yield frame[y0:y1, x0:x1]


def squared_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean squared error of two arrays of the same shape. OpenCV sums in double, and integers exactly."""
    assert a.shape == b.shape, f"{a.shape} and {b.shape}"
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return float(cv2.norm(a.ravel(), b.ravel(), cv2.NORM_L2SQR)) / a.size


def squared_errors(generated: Frames, truth: Frames, boxes: Boxes | None = None) -> Series:
    """Mean squared error of each frame, (T,): of whole frames, or of their boxes."""
    pairs = (
        zip(generated, truth, strict=True)
        if boxes is None
        else zip(crop_boxes(generated, boxes), crop_boxes(truth, boxes), strict=True)
    )
    return np.array([squared_error(a, b) for a, b in pairs])


def compute_psnr(errors: float | Series) -> float:
    """Peak signal-to-noise ratio, dB, from the mean squared error of one frame or of each of many.

    Errors are averaged first, so a clip with one copied frame is not infinitely good. Infinite when no pixel
    differs.
    """
    mean = float(np.mean(errors))
    return float(10 * np.log10(PEAK**2 / mean)) if mean else float("inf")


def score_psnr(errors: float | Series) -> float:
    """As ``compute_psnr``, and 58.9 dB at most: for means over clips."""
    return compute_psnr(max(float(np.mean(errors)), ROUNDING_ERROR))


def score_psnr_by_frame(errors: Series) -> Series:
    """``score_psnr`` of each frame alone, (T,)."""
    return np.asarray(10 * np.log10(PEAK**2 / np.maximum(errors, ROUNDING_ERROR)))


def ssim_map(a: Frames, b: Frames) -> NDArray[np.float64]:
    """SSIM of two images (H, W, 3) at each pixel where a whole window fits: (H - 10, W - 10, 3).

    In float64: in float32 the variance of a uniform area is rounding error, and the score is off by 1e-6 and
    more.
    """
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F)

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred = cv2.sepFilter2D(values, -1, kernel, kernel)
        return np.asarray(blurred[MARGIN:-MARGIN, MARGIN:-MARGIN])

    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    variances = local_mean(x * x + y * y) - squares
    covariance = local_mean(x * y) - product
    return np.asarray((2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2)))


def ssim_by_frame(generated: Frames, truth: Frames, boxes: Boxes) -> tuple[Series, Series]:
    """SSIM of each whole frame and of each box on its own, both (T,); nan where no window fits.

    Windows without a difference score exactly 1, so only windows near a difference are computed: a quarter
    of a frame that was re-drawn in its box. The windows of a box are those of the frame that lie within it.
    """
    frame_scores, box_scores = [], []
    height, width = truth.shape[1:3]
    for a, b, (x0, y0, x1, y1) in zip(generated, truth, boxes.tolist(), strict=True):
        scores = np.ones((max(0, height - 2 * MARGIN), max(0, width - 2 * MARGIN), 3))
        differs = a != b
        if scores.size and differs.any():
            rows = _find_window_range(differs.reshape(height, -1).any(axis=1))
            columns = _find_window_range(differs.any(axis=0).any(axis=-1))
            scores[rows.start : rows.stop - 2 * MARGIN, columns.start : columns.stop - 2 * MARGIN] = ssim_map(
                a[rows, columns], b[rows, columns]
            )
        inside = scores[y0 : max(y0, y1 - 2 * MARGIN), x0 : max(x0, x1 - 2 * MARGIN)]
        frame_scores.append(scores.mean() if scores.size else np.nan)
        box_scores.append(inside.mean() if inside.size else np.nan)
    return np.array(frame_scores), np.array(box_scores)


def _find_window_range(differs: NDArray[np.bool_]) -> slice:
    """Along one axis: the pixels of all windows that contain a pixel that differs."""
    (indices,) = np.nonzero(differs)
    return slice(max(0, int(indices[0]) - 2 * MARGIN), min(len(differs), int(indices[-1]) + 1 + 2 * MARGIN))
