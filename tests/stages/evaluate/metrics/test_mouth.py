"""Openings, distances, correlation and lag of mouths whose movement is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluate.metrics.mouth import Mouths, correlation, lag_frames, mouth_distance, openings
from stages.evaluate.metrics.obedience import audio_obedience

T, N_LIPS = 75, 40


def mouths(apart: NDArray[np.float64], *, pupils: float = 32.0, dx: float = 0.0) -> Mouths:
    """Lips that are so far apart, in px, in a face whose pupils are so far apart."""
    lips = np.zeros((len(apart), N_LIPS, 2), np.float32)
    lips[:, :, 0] = np.linspace(50, 78, N_LIPS) + dx
    lips[:, :, 1] = 87
    lips[:, 0, :] = lips[:, 1, :] = [64 + dx, 87]
    lips[:, 1, 1] += apart
    eyes = np.tile(np.array([[64 - pupils / 2, 53], [64 + pupils / 2, 53]], np.float32), (len(apart), 1, 1))
    return Mouths(lips, eyes)


def speech(seed: int, n_frames: int = T) -> NDArray[np.float64]:
    """An opening that comes and goes as in speech: no negative ones, and neighbours are alike."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 8)
    return np.abs(np.convolve(noise, np.hanning(9), "valid")) * 3


def test_an_opening_is_told_in_pupils_distances_whatever_the_crops_size() -> None:
    apart = speech(0)
    assert openings(mouths(apart)) == pytest.approx(apart / 32, abs=1e-5)
    half = Mouths(mouths(apart).lips / 2, mouths(apart).pupils / 2)
    assert openings(half) == pytest.approx(openings(mouths(apart)), abs=1e-5)


def test_a_mouth_in_the_wrong_place_is_as_far_as_it_was_moved() -> None:
    truth, moved = mouths(speech(0)), mouths(speech(0), dx=4)
    assert mouth_distance(truth, truth).px == 0
    assert mouth_distance(moved, truth).px == pytest.approx(4, abs=1e-5)
    assert mouth_distance(moved, truth).pupils == pytest.approx(4 / 32, abs=1e-5)


def test_frames_without_a_face_take_part_in_nothing() -> None:
    truth, drawn = mouths(speech(0)), mouths(speech(0), dx=4)
    drawn.lips[10:20], drawn.pupils[10:20] = np.nan, np.nan
    assert mouth_distance(drawn, truth).px == pytest.approx(4, abs=1e-5)
    assert correlation(openings(drawn), openings(truth)) == pytest.approx(1)
    assert lag_frames(openings(drawn), openings(truth)) == 0
    drawn.lips[:], drawn.pupils[:] = np.nan, np.nan
    assert np.isnan(mouth_distance(drawn, truth).px) and np.isnan(
        correlation(openings(drawn), openings(truth))
    )
    assert np.isnan(lag_frames(openings(drawn), openings(truth)))


def test_a_still_mouth_has_no_correlation_and_no_lag() -> None:
    still = np.full(T, 0.2)
    assert np.isnan(correlation(still, speech(0))) and np.isnan(lag_frames(still, speech(0)))


@pytest.mark.parametrize("late", [-7, -1, 0, 3, 10])
def test_a_planted_offset_is_found_with_its_sign(late: int) -> None:
    """Positive: what is drawn at frame k is what was to be seen ``late`` frames before."""
    long = speech(1, T + 40)
    truth, drawn = long[20 : 20 + T], long[20 - late : 20 - late + T]
    assert lag_frames(drawn, truth) == late
    rng = np.random.default_rng(2)
    assert lag_frames(drawn + rng.normal(0, 0.3, T), truth) == late
    if late:
        assert correlation(drawn, truth) < correlation(truth, truth)


def test_a_dubbed_clip_of_a_face_that_says_what_it_hears_obeys_and_its_copy_does_not() -> None:
    heard, own = openings(mouths(speech(3))), openings(mouths(speech(4)))
    assert audio_obedience(heard, heard, own) == pytest.approx(1)
    assert audio_obedience(own, heard, own) == pytest.approx(-1)
    assert correlation(heard, heard) == pytest.approx(1)
    assert abs(correlation(own, heard)) < 0.5
