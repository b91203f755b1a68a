"""Motion in silence, and closed lips at p, b and m, of openings and sounds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.media.pauses import EDGE_FRAMES, MIN_RUN_FRAMES, SILENT_DB, find_silent_frames, flatten_pauses
from stages.media.reference import Reference, compute_reference
from stages.metrics.closure import (
    CLOSED_OPENING,
    REACH_FRAMES,
    Word,
    count_closed_share,
    find_closures,
)
from stages.metrics.silence import measure_silent_motion

T = 75


def make_levels(*pauses: slice, loud: float = -10, quiet: float = -60) -> NDArray[np.float32]:
    """Mels (2T, 8) that are loud outside these pauses of frames."""
    levels = np.full(T, loud, np.float32)
    for pause in pauses:
        levels[pause] = quiet
    return np.repeat(levels, 2)[:, None] + np.linspace(-3, 3, 8, dtype=np.float32)


def test_pauses_are_silent_and_gaps_within_a_word_are_not() -> None:
    mels = make_levels(slice(0, 12), slice(30, 30 + MIN_RUN_FRAMES), slice(50, 50 + MIN_RUN_FRAMES - 1))
    expected = [*range(12), *range(30, 30 + MIN_RUN_FRAMES)]
    assert np.flatnonzero(find_silent_frames(mels)).tolist() == expected
    assert (find_silent_frames(mels - 15) == find_silent_frames(mels)).all(), "at any loudness"


def test_a_pause_is_silent_only_if_it_is_far_below_the_speech() -> None:
    assert not find_silent_frames(make_levels(slice(20, 40), quiet=-10 - SILENT_DB + 1)).any()
    assert find_silent_frames(make_levels(slice(20, 40), quiet=-10 - SILENT_DB - 1)).sum() == 20
    assert not find_silent_frames(np.full((2 * T, 8), -80, np.float32)).any(), "there is no speech to pause"


@pytest.mark.parametrize("seconds", [2, 4, 6, 10])
@pytest.mark.parametrize("quiet", [-33, -40, -80])
def test_a_long_pause_is_silent_also_where_0_db_follows_the_sound(seconds: int, quiet: float) -> None:
    reference = Reference(window_rows=150, max_boost_db=20)
    speech = [make_levels(slice(30, 31), quiet=-50) for _ in range(2)]
    pause = make_levels(slice(None), quiet=quiet)[: 2 * VIDEO_FPS]
    whole = np.concatenate([speech[0], *[pause] * seconds, speech[1]])
    mels = whole - compute_reference(whole.max(axis=1), reference)[:, None]
    expected = np.zeros(len(whole) // 2, bool)
    expected[T:-T] = True
    assert (find_silent_frames(whole) == expected).all()
    assert (find_silent_frames(mels, reference) == expected).all()
    assert seconds < 4 or quiet < -33 or not (find_silent_frames(mels) == expected).all(), "it is needed"


def test_rows_within_a_pause_become_its_mean_and_all_others_stay() -> None:
    rng = np.random.default_rng(0)
    mels = make_levels(slice(20, 40)) + rng.normal(0, 1, (2 * T, 8)).astype(np.float32)
    speech = rng.normal(0, 3, (2 * T, 5)).astype(np.float16)
    given = mels.copy(), speech.copy()
    is_inner = np.zeros(2 * T, bool)
    is_inner[2 * (20 + EDGE_FRAMES) : 2 * (40 - EDGE_FRAMES)] = True
    flat_mels, flat_speech = flatten_pauses(mels, speech, None)
    assert flat_speech is not None and flat_speech.dtype == np.float16 and flat_mels.dtype == np.float32
    for flat, array in ((flat_mels, mels), (flat_speech, speech)):
        assert np.array_equal(flat[~is_inner], array[~is_inner])
        assert np.allclose(flat[is_inner], array[is_inner].astype(np.float64).mean(axis=0), atol=1e-3)
        assert np.ptp(flat[is_inner], axis=0).max() == 0
    assert np.array_equal(mels, given[0]) and np.array_equal(speech, given[1])
    assert flatten_pauses(mels, None, None)[1] is None
    loud = make_levels()
    assert np.array_equal(flatten_pauses(loud, None, None)[0], loud), "there is no pause"


def test_motion_is_measured_between_silent_frames_alone() -> None:
    is_silent = np.zeros(T, bool)
    is_silent[10:21] = True
    openings = np.where(is_silent, 0.01 * (np.arange(T) % 2), np.arange(T))
    still = np.zeros(T)
    assert measure_silent_motion(openings, still, is_silent) == pytest.approx(0.25), "per second"
    assert measure_silent_motion(still, openings, is_silent) == 0
    unknown = still.copy()
    unknown[10:21] = np.nan
    assert np.isnan(measure_silent_motion(openings, unknown, is_silent)), "in the same frames or not at all"
    assert np.isnan(measure_silent_motion(openings, still, np.zeros(T, bool)))


def test_lips_close_at_the_start_of_b_and_p_and_at_the_end_of_m() -> None:
    times = [("sil", 0, 0.4), ("place", 0.4, 0.6), ("blue", 0.6, 0.8), ("in", 0.8, 0.92), ("m", 0.92, 1.184)]
    words = [Word(start, end, text) for text, start, end in times]
    assert find_closures(words) == [10, 15, 30]


def test_lips_are_closed_where_the_opening_comes_near_zero() -> None:
    openings = np.full(T, 0.3)
    openings[[20 + REACH_FRAMES, 41 + REACH_FRAMES]] = CLOSED_OPENING / 2
    truth = np.full(T, 0.3)
    assert count_closed_share(openings, truth, [20, 40]) == 0.5, "the second is a frame out of reach"
    assert count_closed_share(openings, truth, [0, T - 1, T + 100]) == 0, "past the end nothing counts"
    assert count_closed_share(openings, truth, [20, T + 1]) == 1, "also where the last frames are in reach"
    openings[60:] = np.nan
    assert count_closed_share(openings, truth, [20, 70]) == 1, "a mouth that was not found is neither"
    assert np.isnan(count_closed_share(openings, truth, [70]))
    assert np.isnan(count_closed_share(openings, truth, []))


def test_closed_lips_of_two_mouths_are_counted_in_the_frames_in_which_both_are_known() -> None:
    """Closures at 10, 30 and 50, of which one mouth is unknown at the second, the other near the third."""
    closures = [10, 30, 50]
    one, other = np.full(T, 0.3), np.full(T, 0.3)
    one[[10, 50]] = other[[30, 50]] = 0
    one[25:36] = np.nan
    assert count_closed_share(one, other, closures) == 1
    assert count_closed_share(other, one, closures) == 0.5, "closed at 50, open at 10, and 30 is left out"
    other[48:53] = np.nan
    assert count_closed_share(one, other, closures) == 0.5, "at 50 in the frames that both have"
    assert count_closed_share(other, one, closures) == 0
