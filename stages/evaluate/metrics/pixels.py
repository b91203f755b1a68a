"""How near drawn pixels are to the truth's: PSNR, and SSIM of Wang et al. 2004. Frames are RGB of uint8.

In float throughout: the difference of two uint8 arrays wraps, and unrelated noise would score 27.9 dB
instead of 7.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # (T, H, W, 3)
Boxes = NDArray[np.integer]  # (T, 4): x0 y0 x1 y1, x1 and y1 exclusive
Series = NDArray[np.float64]  # (T,)

PEAK = 255
# Wang et al. 2004, section III-C.
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
WINDOW, SIGMA = 11, 1.5
MARGIN = WINDOW // 2  # pixels at a picture's edges on which no whole window can stand


def boxed(frames: Frames, boxes: Boxes) -> Iterator[Frames]:
    """What each frame has in its box: (h, w, 3)."""
    for frame, (x0, y0, x1, y1) in zip(frames, boxes.tolist(), strict=True):
        yield frame[y0:y1, x0:x1]


def squared_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean over all elements of two arrays of one shape. OpenCV sums in double, and whole numbers exactly."""
    assert a.shape == b.shape, f"{a.shape} and {b.shape}"
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    return float(cv2.norm(a.ravel(), b.ravel(), cv2.NORM_L2SQR)) / a.size


def squared_errors(drawn: Frames, truth: Frames, boxes: Boxes | None = None) -> Series:
    """Mean squared error of each frame, (T,): of whole frames, or of their boxes."""
    pairs = (
        zip(drawn, truth, strict=True)
        if boxes is None
        else zip(boxed(drawn, boxes), boxed(truth, boxes), strict=True)
    )
    return np.array([squared_error(a, b) for a, b in pairs])


def decibels(errors: float | Series) -> float:
    """PSNR from the mean squared errors of one frame or of many: of their mean, so that a clip of which one
    frame is copied is not infinitely good. Infinite where nothing differs."""
    mean = float(np.mean(errors))
    return float(10 * np.log10(PEAK**2 / mean)) if mean else float("inf")


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal to noise ratio of two arrays of one shape, dB: 10 log10(255² / mean squared error)."""
    return decibels(squared_error(a, b))


def similarity_map(a: Frames, b: Frames) -> NDArray[np.float64]:
    """SSIM where a whole window fits: (H - 10, W - 10, 3), of two pictures (H, W, 3).

    In float64: in float32 the variance of an even part is rounding, and the score is off by 1e-6 and more.
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


def ssim(a: Frames, b: Frames) -> float:
    """Structural similarity of two pictures (H, W, 3); nan where no window fits."""
    if min(a.shape[:2]) < WINDOW:
        return float("nan")
    return float(similarity_map(a, b).mean())


def ssim_by_frame(drawn: Frames, truth: Frames, boxes: Boxes) -> tuple[Series, Series]:
    """SSIM of each whole frame and of each box cut out, (T,) both.

    Windows that see no difference score 1 exactly, so only those round about one are computed: of a frame
    that was drawn in its box, a fourth. A box's windows are those of the frame that lie within it.
    """
    of_frames, of_boxes = [], []
    height, width = truth.shape[1:3]
    for a, b, (x0, y0, x1, y1) in zip(drawn, truth, boxes.tolist(), strict=True):
        scores = np.ones((max(0, height - 2 * MARGIN), max(0, width - 2 * MARGIN), 3))
        differs = a != b
        if scores.size and differs.any():
            rows = _reach(differs.reshape(height, -1).any(axis=1))
            columns = _reach(differs.any(axis=0).any(axis=-1))
            scores[rows.start : rows.stop - 2 * MARGIN, columns.start : columns.stop - 2 * MARGIN] = (
                similarity_map(a[rows, columns], b[rows, columns])
            )
        inside = scores[y0 : max(y0, y1 - 2 * MARGIN), x0 : max(x0, x1 - 2 * MARGIN)]
        of_frames.append(scores.mean() if scores.size else np.nan)
        of_boxes.append(inside.mean() if inside.size else np.nan)
    return np.array(of_frames), np.array(of_boxes)


def _reach(differs: NDArray[np.bool_]) -> slice:
    """Of one side of a picture: all pixels of the windows that see one of those that differ."""
    (found,) = np.nonzero(differs)
    return slice(max(0, int(found[0]) - 2 * MARGIN), min(len(differs), int(found[-1]) + 1 + 2 * MARGIN))
