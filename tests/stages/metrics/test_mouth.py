"""Openings, distances, correlation and lag of mouths with a known movement."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.metrics.mouth import Mouths, correlation, lag_frames, mouth_distance, openings
from stages.metrics.obedience import audio_obedience

T, N_LIPS = 75, 40


def make_mouths(lip_distance: NDArray[np.float64], *, pupils: float = 32.0, dx: float = 0.0) -> Mouths:
    """Lips and pupils at these distances, px."""
    lips = np.zeros((len(lip_distance), N_LIPS, 2), np.float32)
    lips[:, :, 0] = np.linspace(50, 78, N_LIPS) + dx
    lips[:, :, 1] = 87
    lips[:, 0, :] = lips[:, 1, :] = [64 + dx, 87]
    lips[:, 1, 1] += lip_distance
    eyes = np.tile(
        np.array([[64 - pupils / 2, 53], [64 + pupils / 2, 53]], np.float32), (len(lip_distance), 1, 1)
    )
    return Mouths(lips, eyes)


def make_openings(seed: int, n_frames: int = T) -> NDArray[np.float64]:
    """Openings as in speech: not negative, and smooth."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 8)
    return np.abs(np.convolve(noise, np.hanning(9), "valid")) * 3


def test_openings_in_units_of_the_pupil_distance_do_not_depend_on_the_crops_size() -> None:
    lip_distance = make_openings(0)
    assert openings(make_mouths(lip_distance)) == pytest.approx(lip_distance / 32, abs=1e-5)
    half = Mouths(make_mouths(lip_distance).lips / 2, make_mouths(lip_distance).pupils / 2)
    assert openings(half) == pytest.approx(openings(make_mouths(lip_distance)), abs=1e-5)


def test_the_distance_of_a_moved_mouth_is_how_far_it_was_moved() -> None:
    truth, shifted = make_mouths(make_openings(0)), make_mouths(make_openings(0), dx=4)
    assert mouth_distance(truth, truth).px == 0
    assert mouth_distance(shifted, truth).px == pytest.approx(4, abs=1e-5)
    assert mouth_distance(shifted, truth).pupils == pytest.approx(4 / 32, abs=1e-5)


def test_frames_without_a_face_are_left_out() -> None:
    truth, generated = make_mouths(make_openings(0)), make_mouths(make_openings(0), dx=4)
    generated.lips[10:20], generated.pupils[10:20] = np.nan, np.nan
    assert mouth_distance(generated, truth).px == pytest.approx(4, abs=1e-5)
    assert correlation(openings(generated), openings(truth)) == pytest.approx(1)
    assert lag_frames(openings(generated), openings(truth)) == 0
    generated.lips[:], generated.pupils[:] = np.nan, np.nan
    assert np.isnan(mouth_distance(generated, truth).px) and np.isnan(
        correlation(openings(generated), openings(truth))
    )
    assert np.isnan(lag_frames(openings(generated), openings(truth)))


def test_a_still_mouth_has_no_correlation_and_no_lag() -> None:
    still = np.full(T, 0.2)
    assert np.isnan(correlation(still, make_openings(0))) and np.isnan(lag_frames(still, make_openings(0)))


@pytest.mark.parametrize("late", [-7, -1, 0, 3, 10])
def test_a_planted_offset_is_found_with_its_sign(late: int) -> None:
    """Positive is late: the generated mouth at frame k is the true one ``late`` frames before."""
    long = make_openings(1, T + 40)
    truth, generated = long[20 : 20 + T], long[20 - late : 20 - late + T]
    assert lag_frames(generated, truth) == late
    rng = np.random.default_rng(2)
    assert lag_frames(generated + rng.normal(0, 0.3, T), truth) == late
    if late:
        assert correlation(generated, truth) < correlation(truth, truth)


def test_a_mouth_that_follows_the_speech_obeys_and_a_copy_of_the_source_does_not() -> None:
    speech, source = openings(make_mouths(make_openings(3))), openings(make_mouths(make_openings(4)))
    assert audio_obedience(speech, speech, source) == pytest.approx(1)
    assert audio_obedience(source, speech, source) == pytest.approx(-1)
    assert correlation(speech, speech) == pytest.approx(1)
    assert abs(correlation(source, speech)) < 0.5
