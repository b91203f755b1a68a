"""Paste a re-drawn crop back into its source frame without a visible seam.

Coordinates are in pixels with centres at integers (OpenCV's convention), as in shards.schema. Only the
rectangle around the mask box is processed, however large the frame is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sampler.face_region import Floats, fill_outline, mask_face, smoothstep
from shards.schema import Frame

FEATHER = 6 / 128  # of the crop's side: width of the blend, from the border of the box inward
# Pixels of the rim that differ by more than this in any channel do not show the same skin; one that differs
# by as much has a weight of 1/e.
MAX_CAST = 32
CAST_SPREAD = 8 / 128  # of the crop's side: deviation of the weights by which differences around are averaged
FAR_WEIGHT = 0.1  # of the mean of all, where none is near
COARSE_PX = 4  # of the crop: what changes slowly is computed at a quarter of its size
# Share of the rim with the same skin from which colours are corrected; fully from twice this share.
MIN_SAME_SKIN = 0.25
# The re-drawn crop counts as unchanged where it differs by less than the first, as changed from the second:
# smoothed, because a network does not draw stubble, spots and the knit of a collar, but shows the same skin.
SAME_LEVELS, OTHER_LEVELS = 6.0, 16.0
TEXTURE = 2 / 128  # of the crop's side: deviation of the smoothing; what is finer is texture
# Detail of the source, finer than a crop, is skin or grain up to the first multiple of its own deviation, and
# an edge of the old mouth from the second. A normal distribution has 0.3 % beyond the first.
MEDIAN_TO_DEVIATION = 1.4826  # of a normal distribution
GRAIN_DEVIATIONS, EDGE_DEVIATIONS = 3.0, 4.0
SPREAD_DIFFERENCE = 3 / 128  # of the crop's side: pixels this close to a change count as changed


@dataclass(frozen=True, slots=True)
class Patch:
    """New pixels for a rectangle of a frame; apply with ``frame[patch.region] = patch.pixels``."""

    region: tuple[slice, slice]  # rows and columns of the frame; empty if the box is outside the frame
    pixels: Frame  # (h, w, 3)
    inside: NDArray[np.bool_]  # (h, w): inside the box, where pixels may differ from the frame's


def paste(
    frame: Frame,
    crop: Frame,
    redrawn: Frame,
    affine: NDArray[np.floating],
    box: NDArray[np.integer],
    oval: Floats | None = None,
) -> Patch:
    """Replace ``crop`` by ``redrawn`` within ``box`` in ``frame`` (H, W, 3).

    ``crop`` and ``redrawn`` are (S, S, 3), ``affine`` (2, 3) maps frame coordinates to crop coordinates, and
    ``box`` is x0 y0 x1 y1 in the crop, x1 and y1 exclusive. With ``oval`` (N, 2), the outline of the face in
    ``crop``, what is beside the face stays as well. On the border of the box and outside it no bit changes.
    Inside, the colours of ``redrawn`` are corrected, and where it shows what ``crop`` shows the frame keeps
    its own texture: an unchanged crop changes nothing. Elsewhere it keeps its grain, which no crop can carry,
    but not the edges of the mouth that is replaced.
    """
    matrix = affine.astype(np.float64)
    region = _find_region(frame.shape[:2], matrix, box)
    source = frame[region].astype(np.float32)
    if not source.size:
        return Patch(region, frame[region], np.zeros(source.shape[:2], bool))
    difference = correct_colours(crop, redrawn, box, oval) - crop
    smooth = np.asarray(cv2.GaussianBlur(difference, (0, 0), TEXTURE * len(crop)), np.float32)
    same = _compute_sameness(smooth)
    matched = crop + difference + same[..., None] * (smooth - difference)
    face = np.ones_like(same) if oval is None else mask_face(oval, float(box[1]), len(crop))
    new, detail = _resample_with_share(matched, same, matrix, region)
    old, opacity = _resample_with_share(crop.astype(np.float32), face, matrix, region)
    finer = source - old  # detail: the share of the frame's own
    finer = detail * finer + (1 - detail) * _select_grain(finer, _measure_crop_px(matrix))
    alpha = _compute_alpha(region, matrix, box, FEATHER * len(crop)) * opacity[..., 0]
    pixels = source + alpha[..., None] * (new + finer - source)
    return Patch(region, np.clip(np.rint(pixels), 0, 255).astype(np.uint8), alpha > 0)


def correct_colours(
    crop: Frame, redrawn: Frame, box: NDArray[np.integer], oval: Floats | None = None
) -> Floats:
    """``redrawn`` (S, S, 3) with the colours of ``crop`` along the rim of the box, or of the face in it.

    A network may draw a face lighter or redder than it is, on one cheek more than on the other. So what is
    added changes slowly from place to place: near the rim the mean difference of the pixels around that show
    the same skin, not a jaw that has moved, hair or a collar; far from it more and more the mean of all.
    Nothing is added if too few pixels show the same.
    """
    rim = _find_rim(box, oval, len(crop))
    difference = crop.astype(np.float32) - redrawn
    largest = _find_largest(difference)
    share = float((largest[rim] <= MAX_CAST).mean()) if rim.any() else 0.0
    if share <= MIN_SAME_SKIN:
        return redrawn.astype(np.float32)
    weight = np.asarray(rim * np.exp(-((largest / MAX_CAST) ** 2)), np.float32)
    terms = cv2.merge([*cv2.split(difference * weight[..., None]), weight])
    coarse = cv2.resize(terms, (len(crop) // COARSE_PX,) * 2, interpolation=cv2.INTER_AREA)
    mean = coarse.mean(axis=(0, 1))
    coarse = cv2.GaussianBlur(coarse, (0, 0), CAST_SPREAD * len(coarse)) + FAR_WEIGHT * mean / mean[3]
    confidence = min(1.0, share / MIN_SAME_SKIN - 1)
    added = confidence * coarse[..., :3] / coarse[..., 3:]
    smooth = cv2.resize(added, (len(crop),) * 2, interpolation=cv2.INTER_CUBIC)
    return np.asarray(redrawn + smooth, np.float32)


def _find_rim(box: NDArray[np.integer], oval: Floats | None, size: int) -> NDArray[np.bool_]:
    """The pixels along the border inside the box, or of the part of the face in it: (S, S)."""
    x0, y0, x1, y1 = (int(side) for side in box)
    inside = np.zeros((size + 2, size + 2), np.uint8)  # the crop's own edge is a border too
    inside[y0 + 1 : y1 + 1, x0 + 1 : x1 + 1] = 1
    if oval is not None:
        inside[1:-1, 1:-1] &= fill_outline(oval, size)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    return np.asarray((depth > 0) & (depth <= FEATHER * size))


def _find_region(
    size: tuple[int, ...], matrix: NDArray[np.float64], box: NDArray[np.integer]
) -> tuple[slice, slice]:
    """Rows and columns of a frame of ``size`` (H, W) whose pixel centres can be in the box."""
    x0, y0, x1, y1 = box.astype(np.float64) - 0.5
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    on_frame = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    height, width = size
    first = np.clip(np.floor(on_frame.min(axis=0)), 0, (width, height)).astype(int)
    last = np.clip(np.ceil(on_frame.max(axis=0)) + 1, first, (width, height)).astype(int)
    return slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0]))


def _compute_alpha(
    region: tuple[slice, slice], matrix: NDArray[np.float64], box: NDArray[np.integer], feather: float
) -> Floats:
    """Opacity of the re-drawn crop in each pixel of the frame's region: (h, w) in [0, 1].

    Computed from the position of the pixel's centre in the crop and not by warping a mask, so that it is
    exactly 0 on the border of the box and outside it.
    """
    y, x = np.ogrid[region]
    alpha = np.ones((1, 1))
    for axis in range(2):
        position = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2]
        low, high = box[axis] - 0.5, box[axis + 2] - 0.5
        depth = np.minimum(position - low, high - position) / min(feather, (high - low) / 4)
        alpha = alpha * smoothstep(depth)
    return np.asarray(alpha, np.float32)


def _compute_sameness(difference: Floats) -> Floats:
    """How unchanged a crop (S, S) is, from its smoothed ``difference`` (S, S, 3); 1 = the same."""
    radius = max(1, round(SPREAD_DIFFERENCE * len(difference)))
    spread = cv2.dilate(_find_largest(difference), np.ones((2 * radius + 1,) * 2, np.uint8))
    spread = cv2.GaussianBlur(spread, (0, 0), radius)
    return np.asarray(1 - smoothstep((spread - SAME_LEVELS) / (OTHER_LEVELS - SAME_LEVELS)), np.float32)


def _select_grain(finer: Floats, crop_px: float) -> Floats:
    """The grain and the texture of skin in a source's detail (h, w, 3) that is finer than its crop.

    ``crop_px`` is the side of a crop's pixel in px of the frame. What is selected is the source's own, so it
    moves with the skin and flickers no more than the source, and nothing is drawn by chance. Edges stand out
    from grain where both are smoothed: they would be a ghost of the mouth that was there.
    """
    smooth = np.asarray(cv2.GaussianBlur(finer, (0, 0), max(0.5, crop_px / 2)), np.float32)
    edge = np.maximum(_find_edges(finer, least=1.0), _find_edges(smooth, least=0.5))
    return np.asarray(finer * (1 - edge)[..., None], np.float32)


def _find_edges(finer: Floats, least: float) -> NDArray[np.floating]:
    """Where detail (h, w, 3) stands out from its deviation, of ``least`` levels or more: (h, w) in [0, 1]."""
    # From the median, so that edges do not count; of every third pixel, which is as good and faster.
    deviation = max(least, MEDIAN_TO_DEVIATION * float(np.median(np.abs(finer[::3, ::3]))))
    amplitude = np.asarray(_find_largest(finer) / deviation, np.float32)
    return smoothstep((amplitude - GRAIN_DEVIATIONS) / (EDGE_DEVIATIONS - GRAIN_DEVIATIONS))


def _find_largest(difference: Floats) -> Floats:
    """Of each pixel (h, w, 3) the largest absolute value of its channels: (h, w)."""
    channels = [np.asarray(channel, np.float32) for channel in cv2.split(np.abs(difference))]
    return functools.reduce(np.maximum, channels)  # faster than the maximum along an axis


def _measure_crop_px(matrix: NDArray[np.float64]) -> float:
    """The side of a crop's pixel, in px of the frame."""
    return 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def _resample_with_share(
    image: Floats, share: Floats, matrix: NDArray[np.float64], region: tuple[slice, slice]
) -> tuple[Floats, Floats]:
    """An image (S, S, 3) and a share in [0, 1] of each of its pixels (S, S): (h, w, 3) and (h, w, 1)."""
    resampled = _resample(np.dstack([image, share]), matrix, region)
    return resampled[..., :3], np.clip(resampled[..., 3:], 0, 1)


def _resample(image: Floats, matrix: NDArray[np.float64], region: tuple[slice, slice]) -> Floats:
    """Warp an image from the crop into the frame's region.

    Cubic interpolation when it is enlarged; when it is reduced, each pixel is the mean of enough samples to
    avoid aliasing.
    """
    rows, columns = region
    n = max(1, math.ceil(math.sqrt(abs(np.linalg.det(matrix[:, :2])))))
    fine = matrix.copy()
    # The finer grid's first sample is (n - 1) / 2 fine pixels before the region's first pixel.
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
