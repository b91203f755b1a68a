"""A video and a speech of different lengths: which of the video's frames is shown when.

Times are whole ticks of the video's own time base, so a frame's stamp in the output is the source's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, pairwise, takewhile
from statistics import median_low
from typing import Literal

from stages.media.video import SAME_TIME

Fit = Literal["trim", "hold", "loop"]
FITS: tuple[Fit, ...] = ("trim", "hold", "loop")


@dataclass(frozen=True, slots=True)
class FrameTiming:
    """A frame of the source on the screen."""

    source: int  # which of its frames, in order of showing
    at: int  # ticks from the output's start
    ticks: int  # how long


def output_seconds(fit: Fit, video: Fraction, speech: Fraction) -> Fraction:
    """How long the output lasts.

    trim: as long as the shorter of both. hold: as long as the longer; the last picture stands (and its
    mouth goes on speaking), or the sound is silent. loop: as long as the speech; the video runs to its
    end, backwards to its start and so on, which has no jump as starting over would have.
    """
    if fit == "trim":
        return min(video, speech)
    return max(video, speech) if fit == "hold" else speech


def showings(
    stamps: Sequence[int], fit: Fit, *, seconds: Fraction, time_base: Fraction, step: int
) -> Iterator[FrameTiming]:
    """What is shown when in an output of so many ``seconds``. ``stamps`` are ticks and rise strictly.

    ``step`` is how long a held frame counts as shown, in ticks.
    """
    end = seconds / time_base
    last_start = (seconds - SAME_TIME) / time_base
    starts = _starts(stamps, fit, step)
    source, at = next(starts)
    for next_source, next_at in takewhile(lambda start: start[1] < last_start, starts):
        yield FrameTiming(source, at, next_at - at)
        source, at = next_source, next_at
    yield FrameTiming(source, at, max(1, round(end) - at))


def _starts(stamps: Sequence[int], fit: Fit, step: int) -> Iterator[tuple[int, int]]:
    """(frame, tick from which it is shown): once through where the video is trimmed, else for ever."""
    yield from enumerate(stamps)
    if fit == "trim":
        return
    last, turn, length = len(stamps) - 1, stamps[-1], stamps[-1] - stamps[0]
    if fit == "hold" or not length:
        yield from ((last, turn + k * step) for k in count(1))
    # Mirrored in time about the last frame's stamp, then about the first's, and so on.
    for leg in count():
        start = turn + leg * length
        if leg % 2 == 0:
            yield from ((k, start + turn - stamps[k]) for k in range(last - 1, -1, -1))
        else:
            yield from ((k, start + stamps[k] - stamps[0]) for k in range(1, last + 1))


def usual_step(stamps: Sequence[int], time_base: Fraction, fps: Fraction) -> int:
    """Ticks for which a frame is usually shown: by the stamps, or of a single frame by ``fps``."""
    steps = [right - left for left, right in pairwise(stamps)]
    return median_low(steps) if steps else max(1, round(1 / (fps * time_base)))
