"""Fit a video to speech of another length: which source frame the output shows when.

Times are whole ticks of the video's own time base, so frames keep the source's exact time stamps. Where a
picture stands for long, it is shown again and again, since the speech goes on and so must the mouth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, pairwise, takewhile
from statistics import median_low
from typing import Literal

from shards.schema import VIDEO_FPS
from stages.media.presentation import TIME_TOLERANCE

Fit = Literal["trim", "hold", "silence", "bounce"]

# A frame that lasts longer is repeated as often as a network draws. A shorter one, such as where a camera
# has lost two or three, stays as it is: so most videos have their own frames alone.
MAX_FRAME_SECONDS = Fraction(3, 20)
REPEAT_SECONDS = Fraction(1, VIDEO_FPS)


@dataclass(frozen=True, slots=True)
class FrameTiming:
    """One frame of the output."""

    source: int  # index of the source frame
    at: int  # ticks from the output's start
    ticks: int  # duration


def compute_output_seconds(fit: Fit, video: Fraction, speech: Fraction) -> Fraction:
    """Duration of the output, of the video's and the speech's.

    trim: the shorter of the two. hold: the longer; the last frame stays (and its mouth goes on speaking),
    or the audio is silent. silence: the video's; what is left of it after the speech is silent. bounce: the
    speech's; the video plays forwards, backwards, forwards and so on, without the jump of starting over.
    """
    if fit == "trim":
        return min(video, speech)
    if fit == "hold":
        return max(video, speech)
    return video if fit == "silence" else speech


def schedule_frames(
    stamps: Sequence[int], fit: Fit, *, seconds: Fraction, time_base: Fraction, step: int
) -> Iterator[FrameTiming]:
    """The frames of an output of ``seconds``. ``stamps`` are ticks, strictly increasing.

    ``step`` is the duration in ticks of each repetition of a frame that is held. Frames that last for longer
    than MAX_FRAME_SECONDS are repeated every REPEAT_SECONDS, about.
    """
    for frame in _schedule_sources(stamps, fit, seconds, time_base, step):
        lasts, n_repeats = frame.ticks * time_base, 1
        if lasts > MAX_FRAME_SECONDS:
            n_repeats = min(round(lasts / REPEAT_SECONDS), frame.ticks)
        starts = [frame.at + round(Fraction(k * frame.ticks, n_repeats)) for k in range(n_repeats + 1)]
        for at, end in pairwise(starts):
            yield FrameTiming(frame.source, at, end - at)


def refine_time_base(time_base: Fraction) -> Fraction:
    """A time base of which a frame lasts MAX_FRAME_SECONDS or less: the same, or one of shorter ticks."""
    if time_base <= MAX_FRAME_SECONDS:
        return time_base
    return time_base / math.ceil(time_base / REPEAT_SECONDS)


def _schedule_sources(
    stamps: Sequence[int], fit: Fit, seconds: Fraction, time_base: Fraction, step: int
) -> Iterator[FrameTiming]:
    """The frames of ``schedule_frames``, each as long as it stands."""
    end = seconds / time_base
    last_start = (seconds - TIME_TOLERANCE) / time_base
    starts = _generate_starts(stamps, fit, step)
    source, at = next(starts)
    for next_source, next_at in takewhile(lambda start: start[1] < last_start, starts):
        yield FrameTiming(source, at, next_at - at)
        source, at = next_source, next_at
    yield FrameTiming(source, at, max(1, round(end) - at))


def _generate_starts(stamps: Sequence[int], fit: Fit, step: int) -> Iterator[tuple[int, int]]:
    """Pairs (source frame, tick at which it appears): one pass for trim and silence, else endless."""
    yield from enumerate(stamps)
    if fit in ("trim", "silence"):
        return
    last, turn, length = len(stamps) - 1, stamps[-1], stamps[-1] - stamps[0]
    if fit == "hold" or not length:
        yield from ((last, turn + k * step) for k in count(1))
    # Time is mirrored at the last frame's stamp, then at the first one's, and so on.
    for leg in count():
        start = turn + leg * length
        if leg % 2 == 0:
            yield from ((k, start + turn - stamps[k]) for k in range(last - 1, -1, -1))
        else:
            yield from ((k, start + stamps[k] - stamps[0]) for k in range(1, last + 1))


def compute_median_step(stamps: Sequence[int], time_base: Fraction, fps: Fraction) -> int:
    """The median duration of a frame in ticks; of a single frame, by ``fps``."""
    steps = [later - earlier for earlier, later in pairwise(stamps)]
    return median_low(steps) if steps else max(1, round(1 / (fps * time_base)))
