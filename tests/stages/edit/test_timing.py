from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.edit.timing import (
    Fit,
    FrameTiming,
    compute_median_step,
    compute_output_seconds,
    refine_time_base,
    schedule_frames,
)

MS = Fraction(1, 1000)
rising = st.lists(st.integers(5, 90), max_size=12).map(lambda steps: [0, *np.cumsum(steps).tolist()])


def schedule(stamps: list[int], fit: Fit, seconds: float, step: int = 40) -> list[FrameTiming]:
    return list(schedule_frames(stamps, fit, seconds=Fraction(seconds), time_base=MS, step=step))


def test_the_fit_decides_how_long_the_output_is() -> None:
    short, long = Fraction(2), Fraction(3)
    assert [compute_output_seconds("trim", *pair) for pair in ((short, long), (long, short))] == [2, 2]
    assert [compute_output_seconds("hold", *pair) for pair in ((short, long), (long, short))] == [3, 3]
    assert [compute_output_seconds("bounce", video=video, speech=speech) for video, speech in
            ((short, long), (long, short))] == [3, 2]  # fmt: skip
    assert [compute_output_seconds("silence", *pair) for pair in ((short, long), (long, short))] == [2, 3]


@given(stamps=rising, fit=st.sampled_from(get_args(Fit)), ms=st.integers(1, 900))
def test_frames_follow_one_another_without_a_gap_until_the_end(stamps: list[int], fit: Fit, ms: int) -> None:
    frames = schedule(stamps, fit, Fraction(ms, 1000))
    assert frames[0].source == 0 and frames[0].at == stamps[0]
    assert all(frame.ticks >= 1 for frame in frames)
    assert all(left.at + left.ticks == right.at for left, right in pairwise(frames))
    assert frames[-1].at + frames[-1].ticks == max(ms, frames[-1].at + 1)
    # The first pass shows the video at its own time stamps.
    own = [stamp for stamp in stamps if stamp < ms - Fraction(1, 2)] or stamps[:1]
    assert [(frame.source, frame.at) for frame in frames[: len(own)]] == list(enumerate(own))
    if fit in ("trim", "silence"):  # only the last frame may last for long
        assert all(frame.source == len(own) - 1 for frame in frames[len(own) :])
        assert len(frames) == len(own) or ms - own[-1] > 150


@given(stamps=rising, ms=st.integers(1, 900))
def test_a_bounce_is_a_mirror_in_time(stamps: list[int], ms: int) -> None:
    """Each frame is shown at its own time stamp, with time mirrored at the ends."""
    length = stamps[-1]
    for frame in schedule(stamps, "bounce", Fraction(ms, 1000)):
        if length:
            folded = length - abs(length - frame.at % (2 * length))
            assert folded == stamps[frame.source]


def test_a_held_frame_is_repeated_in_steps() -> None:
    frames = schedule([0, 40, 80], "hold", 0.21)
    assert [(f.source, f.at, f.ticks) for f in frames] == [
        (0, 0, 40), (1, 40, 40), (2, 80, 40), (2, 120, 40), (2, 160, 40), (2, 200, 10)
    ]  # fmt: skip
    assert [f.source for f in schedule([0], "bounce", 0.1)] == [0, 0, 0]


@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_frame_that_stands_for_long_is_repeated_at_25_fps_and_others_are_not(fit: Fit) -> None:
    """Frames of a second, as of slides, and one of a tenth."""
    frames = schedule([0, 1000, 2000, 2100, 2140], fit, 2.18)
    assert frames[:26] == [FrameTiming(k // 25, 40 * k, 40) for k in range(26)]
    assert [(f.source, f.at, f.ticks) for f in frames[50:]] == [(2, 2000, 100), (3, 2100, 40), (4, 2140, 40)]
    backwards = schedule([0, 1000, 1040], "bounce", 2.08)
    assert [f.source for f in backwards] == [0] * 25 + [1, 2] + [1] * 25
    assert max(f.ticks for f in backwards) <= 40


def test_a_photo_is_shown_at_25_fps_also_where_a_tick_is_long() -> None:
    time_base = refine_time_base(Fraction(1))
    frames = list(schedule_frames([0], "trim", seconds=Fraction(5), time_base=time_base, step=1))
    assert [(f.source, f.at * time_base) for f in frames] == [(0, Fraction(k, 25)) for k in range(125)]
    for usual in (Fraction(1, 25), Fraction(1, 12), Fraction(1, 1000), Fraction(1, 10)):
        assert refine_time_base(usual) == usual


def test_an_end_within_rounding_of_a_frame_does_not_show_it() -> None:
    assert len(schedule([0, 40, 80], "trim", Fraction(803, 10_000))) == 2
    assert len(schedule([0, 40, 80], "trim", Fraction(81, 1000))) == 3


@pytest.mark.parametrize(("stamps", "step"), [([0, 33, 67, 100], 33), ([0], 40), ([0, 10, 50, 90, 130], 40)])
def test_the_step_is_the_median(stamps: list[int], step: int) -> None:
    assert compute_median_step(stamps, MS, Fraction(25)) == step
