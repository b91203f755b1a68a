"""The check of a face on known differences: what is refused, and which frames are left as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shards.schema import Frame
from stages.edit.face_check import (
    FaceCheckParams,
    average_trial,
    choose_trial_instants,
    drop_misfits,
    measure_misfit,
)

PARAMS = FaceCheckParams(max_difference=4, leave_difference=6, window_frames=5)


def drop(*differences: float, params: FaceCheckParams = PARAMS) -> list[int | None]:
    """The numbers of the crops that are passed on."""
    crops = ((np.full((1, 1, 3), k, np.uint8), difference) for k, difference in enumerate(differences))
    return [None if crop is None else int(crop[0, 0, 0]) for crop in drop_misfits(crops, params)]


SQUARE = np.array([[4, 0], [28, 0], [28, 32], [4, 32]], np.float32)  # a face, from edge to edge


def paint_crop(level: int) -> Frame:
    return np.full((32, 32, 3), level, np.uint8)


def test_a_grey_that_is_5_lighter_differs_by_5_and_a_face_against_itself_by_nothing() -> None:
    source, box = paint_crop(119), np.array([2, 8, 30, 32], np.int16)  # L* 50
    assert measure_misfit(source, source, box, SQUARE) == 0
    assert measure_misfit(source, paint_crop(131), box, SQUARE) == pytest.approx(4.7, abs=0.3)


def test_what_is_drawn_beside_the_face_is_not_measured() -> None:
    source, box = paint_crop(119), np.array([2, 8, 30, 32], np.int16)
    generated = source.copy()
    generated[:, :4] = generated[:, 29:] = 255
    assert measure_misfit(source, generated, box, SQUARE) == 0
    generated[:, :29] = 255
    assert measure_misfit(source, generated, box, SQUARE) > 40


def test_a_face_that_is_not_at_the_border_has_nothing_to_measure() -> None:
    source, whole = paint_crop(119), np.array([0, 0, 32, 32], np.int16)
    assert math.isnan(measure_misfit(source, source, whole, SQUARE)), "the box has no border in the crop"
    assert math.isnan(
        measure_misfit(source, source, np.array([2, 8, 30, 32], np.int16), SQUARE[:, ::-1] / 8 + 12)
    )


def test_trials_are_spread_over_the_instants_with_a_face_and_stay_in_their_stretch() -> None:
    segments = [-1] * 10 + [0] * 50 + [-1] * 5 + [1] * 2 + [2] * 48
    runs = choose_trial_instants(segments, FaceCheckParams(trial_places=5, trial_frames=3))
    assert runs == [[20, 21, 22], [40, 41, 42], [65, 66], [85, 86, 87], [105, 106, 107]]
    # At the end of a stretch a run begins earlier; what is one run is tried once.
    assert choose_trial_instants([0, 0], FaceCheckParams()) == [[0, 1]]
    assert choose_trial_instants([-1, -1], FaceCheckParams()) == []


def test_one_place_of_five_does_not_decide_a_trial_nor_does_the_first_frame_of_a_place() -> None:
    assert average_trial([[90, 2, 4], [90, 50], [3], [0, 3, 3], [9, 1]]) == 3
    assert average_trial([[math.nan, math.nan], [7.0]]) == 7
    assert math.isnan(average_trial([])) and math.isnan(average_trial([[math.nan]]))


def test_a_face_that_fits_is_passed_on_to_the_last_frame() -> None:
    assert drop(*[3.0] * 12) == list(range(12))
    assert drop(3.0) == [0] and drop() == []
    assert drop(*[math.nan] * 7) == list(range(7)), "nothing to compare is no misfit"


def test_a_stretch_that_leaves_the_fit_is_left_out_and_a_single_frame_is_not() -> None:
    assert drop(*[2.0] * 5, 18.0, *[2.0] * 5) == list(range(11)), "one frame of five: a mean of 5.2"
    misfit = drop(*[2.0] * 6, *[20.0] * 6, *[2.0] * 6)
    assert [k for k, crop in enumerate(misfit) if crop is None] == list(range(5, 14))
    assert misfit[:5] == [0, 1, 2, 3, 4] and misfit[14:] == [14, 15, 16, 17]


def test_between_the_two_thresholds_it_stays_as_it_is() -> None:
    one = FaceCheckParams(max_difference=4, leave_difference=6, window_frames=1)
    assert drop(5, 5, 7, 5, 5, 3, 5, params=one) == [0, 1, None, None, None, 5, 6]


def test_no_more_than_half_a_window_of_crops_waits() -> None:
    read = 0

    def count() -> object:
        nonlocal read
        for _ in range(20):
            read += 1
            yield np.zeros((1, 1, 3), np.uint8), 1.0

    crops = drop_misfits(count(), PARAMS)  # type: ignore[arg-type]
    for k in range(15):
        frame: Frame | None = next(crops)
        assert frame is not None and read == k + 3
