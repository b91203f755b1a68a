"""The colour just inside the mask's border: whose skin does the generated region continue?

A network that paints the skin of its training people onto another face leaves an edge. There the source has
skin too, in the same place, and it moves little when somebody speaks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame, Frames
from stages.metrics.pixels import PEAK, Boxes, Series

RING = 3  # px inside the border
# IEC 61966-2-1: sRGB to CIE XYZ, relative to the white point D65.
LEVELS = np.arange(PEAK + 1) / PEAK
LINEAR = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
RGB_TO_XYZ /= RGB_TO_XYZ.sum(axis=1, keepdims=True)
# CIE 15: where the cube root becomes a line.
EPSILON, KAPPA = (6 / 29) ** 3, (29 / 3) ** 3


def compute_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE L*a*b* of sRGB pixels (..., 3)."""
    xyz = LINEAR[pixels] @ RGB_TO_XYZ.T
    root = np.where(xyz > EPSILON, np.cbrt(xyz), (KAPPA * xyz + 16) / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def border_distances(generated: Frames, source: Frames, boxes: Boxes) -> Series:
    """Median ΔE*ab (CIE 1976) of each frame's ring from the source's pixels in the same places: (T,).

    The ring is the outermost 3 px of the box; a side of the box that is the image's own edge borders on
    nothing and has none. nan where no pixel is left. About 2 is just visible.
    """
    return np.array(
        [
            measure_difference(image, truth, find_ring(truth.shape[:2], *box))
            for image, truth, box in zip(generated, source, boxes.tolist(), strict=True)
        ]
    )


def find_ring(size: tuple[int, ...], x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    """The ring of a box in an image of ``size`` (H, W)."""
    height, width = size
    in_ring = np.zeros((height, width), bool)
    in_ring[y0:y1, x0:x1] = True
    left, right = (x0 + RING if x0 > 0 else 0), (x1 - RING if x1 < width else width)
    top, bottom = (y0 + RING if y0 > 0 else 0), (y1 - RING if y1 < height else height)
    in_ring[top : max(top, bottom), left : max(left, right)] = False
    return in_ring


def measure_difference(image: Frame, truth: Frame, where: NDArray[np.bool_]) -> float:
    """Median ΔE*ab of the pixels of ``image`` (H, W, 3) ``where`` (H, W) says; nan if there are none."""
    if not where.any():
        return float("nan")
    difference = compute_lab(image[where]) - compute_lab(truth[where])
    return float(np.median(np.linalg.norm(difference, axis=-1)))
