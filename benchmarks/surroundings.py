"""Does a pasted region fit its surroundings? Grain, texture and the seam at its border, in the full frame.

Inside the region and round it, robust amplitudes of luma: medians, so that the edges of lips and teeth do not
count, but skin does. What is inside, over what is round it, over the same of the source: 1 is a perfect fit.
Codecs, focus and light make inside and round differ in the source too, so a plain ratio would not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame

Floats = NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])  # BT.601
# Immerkaer 1996: the difference of two Laplacians, blind to edges; white noise of deviation s has 6 s.
GRAIN_KERNEL = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float64)
GRAIN_GAIN = 6.0
FINE, COARSE = 1.0, 2.0  # px, standard deviations: texture is the band between them
MEDIAN_TO_DEVIATION = 1.4826  # of a normal distribution
LEAST_DEVIATION = 0.5  # levels: less is not seen, being rounding, and counts as this much
ROUND_PX = 12.0  # crop px: as far outside the box is its surroundings
BORDER_PX = 6.0  # crop px on both sides of the border


@dataclass(frozen=True, slots=True)
class SurroundingsFit:
    """Ratios of a frame, 1 where the pasted region fits as the source's own pixels do."""

    grain: float  # inside / round, over the same of the source
    texture: float
    seam: float  # gradient of luma at the border, over that of the source


def measure_surroundings(result: Frame, source: Frame, depth: NDArray[np.floating]) -> SurroundingsFit:
    """The fit of the region in ``result`` (H, W, 3) whose ``depth`` (H, W) is positive, in px of the crop.

    ``depth`` is how far inside the box a pixel is, negative outside. A ratio is nan where there is nothing to
    compare: a box that fills the frame, or for the seam a source without any gradient.
    """
    inside, around = depth > BORDER_PX, (depth < 0) & (depth > -ROUND_PX)
    border = np.abs(depth) < BORDER_PX
    images = compute_luma(result), compute_luma(source)

    def compare(compute_band: Callable[[Floats], Floats]) -> float:
        ours, theirs = (compute_band(image) for image in images)
        ratios = [_divide(_deviation(band[inside]), _deviation(band[around])) for band in (ours, theirs)]
        return _divide(*ratios)

    gradients = [
        float(compute_gradient(image)[border].mean()) if border.any() else np.nan for image in images
    ]
    return SurroundingsFit(compare(compute_grain), compare(compute_texture), _divide(*gradients))


def compute_luma(image: Frame) -> Floats:
    """BT.601 luma (H, W) of RGB levels."""
    return np.asarray(image @ LUMA, np.float64)


def compute_grain(luma: Floats) -> Floats:
    """What only grain and the finest detail have, (H, W); white noise keeps its deviation."""
    return np.asarray(cv2.filter2D(luma, -1, GRAIN_KERNEL) / GRAIN_GAIN)


def compute_texture(luma: Floats) -> Floats:
    """The band of wavelengths around 9 px, (H, W)."""
    return np.asarray(cv2.GaussianBlur(luma, (0, 0), FINE) - cv2.GaussianBlur(luma, (0, 0), COARSE))


def compute_gradient(luma: Floats) -> Floats:
    """Length of the gradient per px, (H, W), of luma without its grain."""
    smooth = cv2.GaussianBlur(luma, (0, 0), COARSE)
    rows, columns = np.gradient(smooth)
    return np.asarray(np.hypot(rows, columns))


def _deviation(values: Floats) -> float:
    """Standard deviation, from the median, of values whose mean is 0; nan if there are none."""
    if not values.size:
        return float("nan")
    return max(LEAST_DEVIATION, MEDIAN_TO_DEVIATION * float(np.median(np.abs(values))))


def _divide(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")
