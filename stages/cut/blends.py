"""Find dissolves, cross-fades and fades to black: pictures that are a mixture of those before and after.

Within a dissolve every picture is a mixture of the first and the last one, field by field, and before and
after it the pictures are at rest. What moves is no mixture, unless it moves by less than a field; then it
moves on where a dissolve has ended. Light changes brightness alone, evenly or from one side, which is made
equal before two pictures are compared; a caption changes a part of the picture. docs/cutting.md has the
figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS, Frame
from stages.media.presentation import STILL_GRID, STILL_LEVELS

Thumbnail = NDArray[np.uint8]  # (GRID height, GRID width), grey

GRID = STILL_GRID  # fields of a thumbnail: columns, rows
# Half the lengths, in frames, over which pictures are compared.
HALF_LENGTHS = (2, 4, 8, 16, 24)
MAX_FRAMES = 36  # on each side of a frame that say whether it is blended: half a length, and half of that
MIN_CHANGE = 5.0  # grey levels, mean over the fields: the first picture against the last
MIN_CHANGED_LEVELS, MIN_CHANGED_SHARE = 3.0, 0.4  # of the fields; people before one wall have 0.55 or more
MAX_RESIDUE = 0.1  # of the change: what the middle differs from a mixture of both ends
MAX_QUARTER_RESIDUE = 0.2  # the same at the quarters
MIN_MIDDLE_SHARE = 0.25  # of either end in the middle
MAX_MOVE = 0.12  # of the change: how far the pictures around go on; a steady pan has 0.25 or more
LIGHT_FIELDS = (25, 19)  # columns, rows; light changes no faster than over so many fields
MAX_FADE_CONTRAST = 0.3  # of one end, in those of the other
MIN_CONTRAST = 1.0  # grey levels: less is black
EDGE = 0.04  # share of the other picture that is hardly seen


def shrink(picture: Frame) -> Thumbnail:
    """The mean brightness of GRID fields of a picture (H, W, 3), RGB."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, GRID, interpolation=cv2.INTER_AREA), np.uint8)


def count_same_before(thumbnails: Sequence[Thumbnail], k: int) -> int:
    """How many pictures right before picture ``k`` are the same as it, in every field."""
    before = k
    while before and cv2.absdiff(thumbnails[before - 1], thumbnails[k]).max() <= STILL_LEVELS:
        before -= 1
    return k - before


def find_blends(thumbnails: NDArray[np.uint8], first: int, last: int) -> list[tuple[int, int]]:
    """Stretches [begin, end) of blended pictures around each of the frames ``first`` to ``last - 1``.

    ``thumbnails`` are (T, rows, columns), of T successive frames; MAX_FRAMES on either side are looked at.
    Stretches are in order and apart, and may begin before ``first`` or end after ``last``.
    """
    pictures = thumbnails.astype(np.float32)
    blends = []
    for half in HALF_LENGTHS:
        for k in range(max(first, half), min(last, len(pictures) - half)):
            blend = _find_blend(pictures, k, half)
            if blend is not None:
                blends.append(blend)
    return merge_stretches(blends)


def add_same_pictures(same_since: NDArray[np.int64], first: int, same: NDArray[np.int64]) -> None:
    """Write since which frame each picture of a chunk is the same into ``same_since`` (T,).

    ``same`` are the chunk's results of ``count_same_before``, from the file's frame ``first`` on. A chunk is
    compared with MAX_FRAMES before it at most; what is the same as all of them goes on as the first of them.
    """
    since = np.arange(first, first + len(same)) - same
    earliest = max(first - MAX_FRAMES, 0)
    same_since[first : first + len(same)] = np.where(since == earliest, same_since[earliest], since)


def find_stills(same_since: NDArray[np.int64], max_seconds: float) -> list[tuple[int, int]]:
    """Stretches [begin, end) in which one picture is shown for longer than ``max_seconds``.

    ``same_since`` (T,) says for each frame since which one the picture is the same.
    """
    ends = np.arange(1, len(same_since) + 1)
    is_still = (ends - same_since) / VIDEO_FPS > max_seconds
    return merge_stretches(list(zip(same_since[is_still].tolist(), ends[is_still].tolist(), strict=True)))


def merge_stretches(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same frames in stretches [begin, end) that are in order and apart."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(stretches):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def _find_blend(pictures: NDArray[np.float32], k: int, half: int) -> tuple[int, int] | None:
    """Which of the pictures ``k - half`` to ``k + half`` are mixtures of these two, [begin, end), if k is."""
    before, after = pictures[k - half], pictures[k + half]
    difference = after - before
    change = float(np.abs(difference).mean())
    if change < MIN_CHANGE:
        return None

    def find_share(i: int) -> float:
        """How much of the last picture is in a mixture."""
        return float(np.vdot(pictures[i] - before, difference) / np.vdot(difference, difference))

    def measure_residue(i: int, share: float) -> float:
        return float(np.abs(pictures[i] - before - share * difference).mean()) / change

    share = find_share(k)
    if not MIN_MIDDLE_SHARE < share < 1 - MIN_MIDDLE_SHARE or measure_residue(k, share) > MAX_RESIDUE:
        return None
    if np.mean(np.abs(difference) > MIN_CHANGED_LEVELS) < MIN_CHANGED_SHARE:
        return None
    for i in (k - half + half // 2, k + half - half // 2):
        if measure_residue(i, find_share(i)) > MAX_QUARTER_RESIDUE:
            return None
    low, high = sorted((float(before.std()), float(after.std())))
    is_fade = low <= max(MAX_FADE_CONTRAST * high, MIN_CONTRAST) and high > MIN_CONTRAST
    margin = max(2, half // 2)
    around = k - half - margin, k + half + margin
    if not is_fade and (around[0] < 0 or around[1] >= len(pictures) or _is_light(before, after)):
        return None
    around = max(around[0], 0), min(around[1], len(pictures) - 1)
    if abs(find_share(around[0])) > MAX_MOVE or abs(find_share(around[1]) - 1) > MAX_MOVE:
        return None
    shares = np.array([find_share(i) for i in range(k - half, k + half + 1)])
    blended = np.flatnonzero((shares > EDGE) & (shares < 1 - EDGE))
    return k - half + int(blended[0]), k - half + int(blended[-1]) + 1


def _is_light(before: NDArray[np.float32], after: NDArray[np.float32]) -> bool:
    """Whether two pictures differ in brightness alone, which light changes smoothly over the picture."""
    a, b = (cv2.blur(picture, LIGHT_FIELDS) + 4 for picture in (before, after))  # 4: black is not divided by
    middle = np.sqrt(a * b)
    return bool(np.abs(before * middle / a - after * middle / b).mean() < MIN_CHANGE)
