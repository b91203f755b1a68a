"""Are the lips closed at p, b and m?

When these are said is known from GRID's word times: one of 51 words is said at a time, so a word tells its
sounds. Bin, place, blue, by, please and the letters b and p begin with closed lips, the letter m ends with
them. In other corpora a recogniser finds them: ``stages.evaluate.phonemes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shards.schema import VIDEO_FPS
from stages.metrics.pixels import Series

CLOSED_AT_START = frozenset({"bin", "place", "blue", "by", "please", "b", "p"})
CLOSED_AT_END = frozenset({"m"})
REACH_FRAMES = 3  # on each side: word times are rounded to frames, and lips close before the burst
# In units of the pupil distance. In true clips of GRID the least opening within reach is below it at 98 % of
# the instants, and at half of random instants of speech. MediaPipe gives closed lips 0.002 to 0.015.
CLOSED_OPENING = 0.02


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it is said, in seconds from the clip's start."""

    start: float
    end: float
    text: str


def find_closures(words: Iterable[Word]) -> list[int]:
    """Frames in which a p, b or m closes the lips, in order."""
    closures = []
    for word in words:
        if word.text in CLOSED_AT_START:
            closures.append(round(word.start * VIDEO_FPS))
        if word.text in CLOSED_AT_END:
            closures.append(round(word.end * VIDEO_FPS))
    return sorted(closures)


def count_closed_share(openings: Series, truth: Series, closures: Sequence[int]) -> float:
    """Share of these frames with closed lips: an opening (T,) below CLOSED_OPENING within REACH_FRAMES.

    Only openings of frames in which ``truth`` (T,) is known too count, so that a generated mouth and the true
    one are judged at the same instants. Instants beyond the end, and those without such a frame within reach,
    are left out. nan when none is left.
    """
    is_known = np.isfinite(openings) & np.isfinite(truth)
    is_closed = []
    for frame in closures:
        if frame >= len(openings):
            continue
        reach = slice(max(0, frame - REACH_FRAMES), frame + REACH_FRAMES + 1)
        nearby = openings[reach][is_known[reach]]
        if len(nearby):
            is_closed.append(bool(nearby.min() < CLOSED_OPENING))
    return float(np.mean(is_closed)) if is_closed else float("nan")
