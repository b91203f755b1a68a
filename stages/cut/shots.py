"""Find the shots of a video: how much each picture differs from the one before, and where it is a cut.

The difference is PySceneDetect's content value of brightness alone, in grey levels of 255. Hue is left out:
that of grey walls and of dark pictures is noise. Measured in pairs of consecutive pictures of 125 clips with
nothing edited, and in 1500 cuts from any clip of GRID to any other (a grey or blue wall, one face in the
middle, one light):

    ======================================  ======  =======  =======  ======
                                            least   1 %      median   most
    ======================================  ======  =======  =======  ======
    unedited: GRID, CREMA-D, addresses                       1.0       4.1
    cut from one person to another          15.6    17.8     33.9
    cut from one sentence to another of     3.2     5.9      14.7
    the same person
    ======================================  ======  =======  =======  ======

A camera that moves reaches any value, picture after picture: a cut must stand out from the pictures around
it. What is as before after three pictures was a flash, not a cut. Cuts between two pictures of one face in
one place are found by that face's points (``stages.media.jumps``), dissolves by their mixed pictures
(``stages.cut.blends``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS, Frame

MIN_CONTENT = 5.0  # grey levels; of a cut
# A cut is so many times as large as the second largest value among three pictures on each side: the largest
# may be another cut.
MIN_PROMINENCE = 2.5
PICTURES_AROUND = 3  # on each side
# At a low rate a picture is shown for several frames, whose values are 0. Pictures further away than this
# say nothing about a cut.
MAX_FRAMES_AROUND = 6
# A picture that looks as before the sudden change, after so many others, ends a flash.
MAX_FLASH_PICTURES = 3
MAX_RETURN = 0.4  # of the sudden change: what is left of it when the flash has ended
MIN_SHOT_FRAMES = 4  # of cuts that are closer together, the largest counts: they may be one, blended


@dataclass(slots=True)
class SuddenChange:
    """A picture before a sudden change, which a flash would bring back."""

    before: NDArray[np.uint8]
    content: float
    n_pictures: int = 0  # since
    n_frames: int = 0


class ContentComparison:
    """How much each picture of a video differs from the one before, by PySceneDetect's content value."""

    def __init__(self) -> None:
        self._last_shape: tuple[int, ...] = ()
        self._last: NDArray[np.uint8] | None = None
        self._last_values: deque[float] = deque(maxlen=MAX_FRAMES_AROUND)  # of frames
        self._changes: list[SuddenChange] = []
        self._compare = _make_comparison()

    def __call__(self, picture: Frame) -> float:
        """The content value of a picture (H, W, 3), RGB: 0 to 255.

        The first picture of a video has 0, one of another size infinity. The value is negative where a flash
        ends: the picture is again as it was up to MAX_FLASH_PICTURES pictures before.
        """
        thumbnail = _shrink(picture)
        last, last_shape = self._last, self._last_shape
        self._last, self._last_shape = thumbnail, picture.shape
        if last is None or last_shape != picture.shape:
            self._compare = _make_comparison()
            self._compare(thumbnail)
            self._changes = []
            self._last_values.clear()
            return 0.0 if last is None else float("inf")
        content = float(self._compare(thumbnail))
        for change in self._changes:
            change.n_frames += 1
            change.n_pictures += content > 0
        self._changes = [
            change
            for change in self._changes
            if change.n_frames <= MAX_FRAMES_AROUND and change.n_pictures <= MAX_FLASH_PICTURES
        ]
        before = [abs(value) for value in self._last_values if value][-PICTURES_AROUND:]
        if content == 0:
            pass  # the same picture, shown again
        elif any(_has_returned(thumbnail, change) for change in self._changes):
            self._changes = []
            content = -content
        elif _is_large(content, before):
            self._changes.append(SuddenChange(last, content))
        self._last_values.append(content)
        return content


def _has_returned(thumbnail: NDArray[np.uint8], change: SuddenChange) -> bool:
    compare = _make_comparison()
    compare(change.before)
    return bool(compare(thumbnail) < MAX_RETURN * change.content)


def find_shots(content: NDArray[np.float32]) -> list[int]:
    """The first frames of the shots of a video, 0 included, from its T values of ContentComparison.

    Frames that repeat a picture have 0. Empty where T is 0.
    """
    if not len(content):
        return []
    pictures = [int(frame) for frame in np.flatnonzero(content)]
    cuts: list[int] = []  # indices of pictures
    for i, frame in enumerate(pictures):
        if content[frame] < 0:
            # A flash ends, which the last cut began.
            if (
                cuts
                and i - cuts[-1] <= MAX_FLASH_PICTURES
                and frame - pictures[cuts[-1]] <= MAX_FRAMES_AROUND
            ):
                cuts.pop()
        elif frame > 0 and _stands_out(content, pictures, i):
            cuts.append(i)
    shots = [0]
    for frame in (pictures[i] for i in cuts):
        if frame - shots[-1] >= MIN_SHOT_FRAMES or shots[-1] == 0:
            shots.append(frame)
        elif content[frame] > content[shots[-1]]:
            shots[-1] = frame
    return shots


def _stands_out(content: NDArray[np.float32], pictures: Sequence[int], i: int) -> bool:
    frame = pictures[i]
    first = max(0, i - PICTURES_AROUND)
    around = [
        abs(float(content[other]))
        for other in [*pictures[first:i], *pictures[i + 1 : i + 1 + PICTURES_AROUND]]
        if abs(other - frame) <= MAX_FRAMES_AROUND and np.isfinite(content[other])
    ]
    return bool(np.isinf(content[frame])) or _is_large(float(content[frame]), around)


def _is_large(content: float, around: Sequence[float]) -> bool:
    usual = sorted(around)[-2] if len(around) > 1 else 0.0
    return content >= max(MIN_CONTENT, MIN_PROMINENCE * usual)


def _shrink(picture: Frame) -> NDArray[np.uint8]:
    """The picture as PySceneDetect scales it, in BGR."""
    from scenedetect.scene_manager import compute_downscale_factor  # type: ignore[import-untyped]

    height, width = picture.shape[:2]
    factor = compute_downscale_factor(max(width, height))
    if factor > 1:
        size = max(1, round(width / factor)), max(1, round(height / factor))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
    return np.ascontiguousarray(picture[..., ::-1])


def _make_comparison() -> Any:
    """A function of pictures in BGR: each one's content value against the one before."""
    # only here: PySceneDetect takes a fifth of a second to import, and finding shots needs none of it
    from scenedetect import ContentDetector, FrameTimecode, StatsManager  # type: ignore[import-untyped]

    detector = ContentDetector(luma_only=True)
    numbers = count()

    def compare(picture: NDArray[np.uint8]) -> float:
        timecode = FrameTimecode(next(numbers), fps=float(VIDEO_FPS))
        detector.stats_manager = StatsManager(base_timecode=timecode)  # a new one: it keeps every value
        detector.process_frame(timecode, picture)
        [content] = detector.stats_manager.get_metrics(timecode, [ContentDetector.FRAME_SCORE_KEY])
        return content or 0.0

    return compare
