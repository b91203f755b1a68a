"""A re-drawn crop back into the frame that it was cut from, so that nobody sees where it begins.

All in pixels whose centres are whole numbers (OpenCV's convention), as in shards.schema. Only the
rectangle around the box is worked on, however large the frame is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame

Floats = NDArray[np.float32]

FEATHER = 6 / 128  # of the crop's side: over so much the re-drawn fades in, from the box's border inward
# Two pixels that differ by more than this, in any colour, do not show the same skin.
MAX_CAST = 32
CAST_SPREAD = 8.0  # levels around the median within which a difference counts as the cast
# A cast is believed from this share of the border on, and wholly from twice as much.
MIN_SAME_SKIN = 0.25
# Where the re-drawn differs by less than the first, it shows what the source shows, from the second on not.
SAME_LEVELS, OTHER_LEVELS = 6.0, 18.0
SPREAD_DIFFERENCE = 5 / 128  # of the crop's side: so far around a difference nothing counts as the same


@dataclass(frozen=True, slots=True)
class Patch:
    """A rectangle of a frame as it is to be; ``frame[patch.where] = patch.pixels`` puts it in."""

    where: tuple[slice, slice]  # rows and columns of the frame; none where the box lies beyond it
    pixels: Frame
    inside: NDArray[np.bool_]  # (h, w): where pixels may differ from the frame's, which is inside the box


def paste(
    frame: Frame, crop: Frame, redrawn: Frame, affine: NDArray[np.floating], box: NDArray[np.integer]
) -> Patch:
    """What becomes of ``frame`` (H, W, 3) when ``redrawn`` takes the place of ``crop`` in ``box``.

    ``crop`` and ``redrawn`` are (S, S, 3), ``affine`` (2, 3) leads from the frame to them, ``box`` is
    x0 y0 x1 y1 in them, x1 and y1 exclusive. On the box's border and outside it not a bit changes. Inside,
    a colour cast of the re-drawn is taken off, and where it shows what the crop shows the frame keeps its
    own, finer detail: so a crop that was not changed changes nothing.
    """
    matrix = affine.astype(np.float64)
    where = _rectangle(frame.shape[:2], matrix, box)
    source = frame[where].astype(np.float32)
    if not source.size:
        return Patch(where, frame[where], np.zeros(source.shape[:2], bool))
    alpha = _alpha(where, matrix, box, FEATHER * len(crop))
    matched = redrawn + colour_cast(crop, redrawn, box)
    same = _sameness(crop, matched)
    new, old = (_resampled(image, matrix, where) for image in (matched, crop.astype(np.float32)))
    kept = np.clip(_resampled(same, matrix, where), 0, 1)[..., None]
    pixels = source + alpha[..., None] * (new + kept * (source - old) - source)
    return Patch(where, np.clip(np.rint(pixels), 0, 255).astype(np.uint8), alpha > 0)


def colour_cast(crop: Frame, redrawn: Frame, box: NDArray[np.integer]) -> Floats:
    """What must be added to ``redrawn`` to have the colours of ``crop``: (3,), at most MAX_CAST each.

    Seen along the border inside the box, and there only where both show the same skin: a jaw that has
    moved, hair or a collar tell nothing. Where too little of it is the same, nothing is added.
    """
    x0, y0, x1, y1 = (int(side) for side in box)
    width = max(1, round(FEATHER * len(crop)))
    border = np.ones((y1 - y0, x1 - x0), bool)
    border[width:-width, width:-width] = False
    difference = (crop[y0:y1, x0:x1].astype(np.int16) - redrawn[y0:y1, x0:x1])[border]
    same = difference[(np.abs(difference) <= MAX_CAST).all(axis=1)]
    share = len(same) / len(difference)
    if share <= MIN_SAME_SKIN:
        return np.zeros(3, np.float32)
    # Not the median itself, which is a whole number and would flicker between two.
    near = same[(np.abs(same - np.median(same, axis=0)) <= CAST_SPREAD).all(axis=1)]
    if not len(near):
        return np.zeros(3, np.float32)
    belief = min(1.0, share / MIN_SAME_SKIN - 1)
    return np.asarray(belief * near.mean(axis=0), np.float32)


def _rectangle(
    size: tuple[int, ...], matrix: NDArray[np.float64], box: NDArray[np.integer]
) -> tuple[slice, slice]:
    """Rows and columns of a frame of ``size`` (H, W) whose pixels' centres may lie in the box."""
    x0, y0, x1, y1 = box.astype(np.float64) - 0.5
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    on_frame = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    height, width = size
    first = np.clip(np.floor(on_frame.min(axis=0)), 0, (width, height)).astype(int)
    last = np.clip(np.ceil(on_frame.max(axis=0)) + 1, first, (width, height)).astype(int)
    return slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))


def _alpha(
    where: tuple[slice, slice], matrix: NDArray[np.float64], box: NDArray[np.integer], feather: float
) -> Floats:
    """How much of the re-drawn is to be seen in each pixel of the frame's rectangle: (h, w) in [0, 1].

    Found from where a pixel's centre falls in the crop, not by warping a mask: so it is nothing, and not
    almost nothing, on the box's border and outside it.
    """
    y, x = np.ogrid[where]
    alpha = np.ones((1, 1))
    for axis in range(2):
        at = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2]
        low, high = box[axis] - 0.5, box[axis + 2] - 0.5
        depth = np.minimum(at - low, high - at) / min(feather, (high - low) / 4)
        alpha = alpha * _smoothstep(depth)
    return np.asarray(alpha, np.float32)


def _smoothstep(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 up to 0, 1 from 1 on, without a corner between."""
    t = np.clip(x, 0, 1)
    eased: NDArray[np.floating] = t * t * (3 - 2 * t)
    return eased


def _sameness(crop: Frame, matched: Floats) -> Floats:
    """How surely both show the same, in each pixel of the crop: (S, S) in [0, 1]."""
    difference = np.abs(matched - crop).max(axis=2)
    reach = max(1, round(SPREAD_DIFFERENCE * len(crop)))
    widest = cv2.dilate(difference, np.ones((reach, reach), np.uint8))
    widest = cv2.GaussianBlur(widest, (0, 0), reach / 3)
    return np.asarray(1 - _smoothstep((widest - SAME_LEVELS) / (OTHER_LEVELS - SAME_LEVELS)), np.float32)


def _resampled(image: Floats, matrix: NDArray[np.float64], where: tuple[slice, slice]) -> Floats:
    """An image of the crop as it lies in the frame's rectangle.

    Cubic where it grows. Where it shrinks each pixel is the mean of enough samples to skip nothing.
    """
    rows, columns = where
    n = max(1, math.ceil(math.sqrt(abs(np.linalg.det(matrix[:, :2])))))
    fine = matrix.copy()
    # The finer grid's first sample lies half a fine pixel before the rectangle's first pixel.
    fine[:, 2] += matrix[:, :2] @ (np.array([columns.start, rows.start]) - (n - 1) / (2 * n))
    fine[:, :2] /= n
    height, width = rows.stop - rows.start, columns.stop - columns.start
    large = cv2.warpAffine(
        image,
        fine,
        (width * n, height * n),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if n == 1:
        return np.asarray(large, np.float32)
    return np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.float32)
