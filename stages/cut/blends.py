"""Find dissolves, cross-fades and fades to black: pictures that are a mixture of those before and after.

Within a dissolve the picture in the middle is the mean of the first and the last one, field by field. What
moves is not: it has left one place and not yet reached the other, where the mean shows it in both. A light
that is turned up changes brightness and contrast alone, which are made equal before two pictures are
compared; a fade leaves hardly any contrast. docs/cutting.md has the figures.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS, Frame
from stages.media.presentation import STILL_GRID, STILL_LEVELS

Thumbnail = NDArray[np.uint8]  # (GRID height, GRID width), grey

GRID = STILL_GRID  # fields of a thumbnail: columns, rows
# Half the lengths, in frames, over which pictures are compared.
HALF_LENGTHS = (2, 4, 8, 16, 24)
MAX_FRAMES = max(HALF_LENGTHS)  # on each side of a frame that say whether it is blended
MIN_CHANGE = 5.0  # grey levels, mean over the fields: the first picture against the last
MAX_RESIDUE = 0.15  # of the change: what the middle differs from the mean of both ends; a slow pan has 0.19
# The same at the quarters: a cut with one blended picture differs by 0.25.
MAX_QUARTER_RESIDUE = 0.27
MAX_FADE_CONTRAST = 0.3  # of one end, in those of the other
MIN_CONTRAST = 1.0  # grey levels: less is black
EDGE = 0.04  # share of the other picture that is hardly seen


def shrink(picture: Frame) -> Thumbnail:
    """The mean brightness of GRID fields of a picture (H, W, 3), RGB."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, GRID, interpolation=cv2.INTER_AREA), np.uint8)


def measure_largest_change(before: Thumbnail, after: Thumbnail) -> int:
    """By how many grey levels the field changes that changes most."""
    return int(cv2.absdiff(before, after).max())


def find_blends(thumbnails: NDArray[np.uint8], first: int, last: int) -> list[tuple[int, int]]:
    """Stretches [begin, end) of blended pictures around each of the frames ``first`` to ``last - 1``.

    ``thumbnails`` are (T, rows, columns), of T successive frames; MAX_FRAMES on either side are looked at.
    Stretches are in order and apart, and may begin before ``first`` or end after ``last``.
    """
    pictures = thumbnails.astype(np.float32)
    blends = []
    for half in HALF_LENGTHS:
        for k in range(max(first, half), min(last, len(pictures) - half)):
            blend = _find_blend(pictures[k - half : k + half + 1])
            if blend is not None:
                blends.append((k - half + blend[0], k - half + blend[1]))
    return merge_stretches(blends)


def find_stills(steps: NDArray[np.uint8], max_seconds: float) -> list[tuple[int, int]]:
    """Stretches [begin, end) in which one picture is shown for longer than ``max_seconds``.

    ``steps`` are the T results of ``measure_largest_change`` against the frame before, 255 where none is.
    """
    firsts = [*np.flatnonzero(steps > STILL_LEVELS).tolist(), len(steps)]
    return [(a, b) for a, b in pairwise(firsts) if (b - a) / VIDEO_FPS > max_seconds]


def merge_stretches(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same frames in stretches [begin, end) that are in order and apart."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(stretches):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def _find_blend(pictures: NDArray[np.float32]) -> tuple[int, int] | None:
    """Which of 2 n + 1 pictures are mixtures of the first and the last, [begin, end); None: nothing is."""
    half = len(pictures) // 2
    before, middle, after = pictures[0], pictures[half], pictures[-1]
    change = float(np.abs(after - before).mean())
    if change < MIN_CHANGE or np.abs(middle - (before + after) / 2).mean() > MAX_RESIDUE * change:
        return None
    if not _is_another_picture(before, after):
        return None
    quarter = half // 2
    for k in (quarter, len(pictures) - 1 - quarter):
        share = k / (len(pictures) - 1)
        mixture = (1 - share) * before + share * after
        if np.abs(pictures[k] - mixture).mean() > MAX_QUARTER_RESIDUE * change:
            return None
    difference = (after - before).ravel()
    shares = (pictures - before).reshape(len(pictures), -1) @ difference / (difference @ difference)
    blended = np.flatnonzero((shares > EDGE) & (shares < 1 - EDGE))
    return int(blended[0]), int(blended[-1]) + 1


def _is_another_picture(before: NDArray[np.float32], after: NDArray[np.float32]) -> bool:
    """Whether the change is more than one of brightness and contrast, or a fade."""
    a, b = before - before.mean(), after - after.mean()
    low, high = sorted((float(a.std()), float(b.std())))
    if low <= max(MAX_FADE_CONTRAST * high, MIN_CONTRAST):
        return high > MIN_CONTRAST
    middle = np.sqrt(low * high)
    return bool(np.abs(b * (middle / b.std()) - a * (middle / a.std())).mean() >= MIN_CHANGE)
