"""Are the lips closed at p, b and m? When these are said is known from GRID's word times.

GRID says one of 51 words at a time, so a word tells its sounds: bin, place, blue, by, please and the letters
b and p begin with closed lips, the letter m ends with them. Other corpora need a phoneme recogniser, which
is not there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.schema import VIDEO_FPS
from stages.evaluate.metrics.pixels import Series

UNITS_PER_SECOND = 25_000  # of the times in an alignment file
CLOSED_AT_START = frozenset({"bin", "place", "blue", "by", "please", "b", "p"})
CLOSED_AT_END = frozenset({"m"})
REACH_FRAMES = 3  # on each side: word times are rounded to frames, and lips close before the burst
# In units of the pupil distance. On true clips of GRID the least opening within reach is below it at 99 % of
# the instants, and at half of random instants of speech. MediaPipe gives closed lips 0.002 to 0.015.
CLOSED_OPENING = 0.02


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it is said, in seconds from the clip's start."""

    start: float
    end: float
    text: str


def read_alignment(path: Path) -> list[Word]:
    """The words of an alignment file of GRID, ``start end word`` in each line.

    Raises OSError, and ValueError with the line that is not of this form.
    """
    words = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise ValueError(f"{path}: line {number} is {line[:80]!r}, expected start, end and word")
        start, end = (int(field) / UNITS_PER_SECOND for field in fields[:2])
        words.append(Word(start, end, fields[2]))
    return words


def find_closures(words: Iterable[Word]) -> list[int]:
    """Frames in which a p, b or m closes the lips, in order."""
    closures = []
    for word in words:
        if word.text in CLOSED_AT_START:
            closures.append(round(word.start * VIDEO_FPS))
        if word.text in CLOSED_AT_END:
            closures.append(round(word.end * VIDEO_FPS))
    return sorted(closures)


def count_closed_share(openings: Series, closures: Sequence[int]) -> float:
    """Share of these frames with closed lips: an opening (T,) below CLOSED_OPENING within REACH_FRAMES.

    Frames without a known opening within reach do not count. nan when none counts.
    """
    is_closed = []
    for frame in closures:
        nearby = openings[max(0, frame - REACH_FRAMES) : frame + REACH_FRAMES + 1]
        if np.isfinite(nearby).any():
            is_closed.append(bool(np.nanmin(nearby) < CLOSED_OPENING))
    return float(np.mean(is_closed)) if is_closed else float("nan")
