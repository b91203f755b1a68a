from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from stages.cut.quality import HEAD, FaceQuality, measure_face, measure_pose, summarise_quality
from stages.media.faces import N_POINTS, NOSE_BASE

PHOTO = np.asarray(astronaut())  # of one face, 89 px wide, in 512 x 512
# As MediaPipe's model finds them.
PLACES = {
    4: (223.2, 126.5), 6: (224.3, 106.3), 129: (208.7, 124.4), 358: (238.4, 125.9), 33: (194.8, 100.1),
    133: (213.1, 103.1), 362: (235.9, 104.4), 263: (254.8, 103.3), 117: (190.0, 109.6), 346: (258.9, 113.2),
    127: (180.4, 100.8), 356: (269.7, 105.4), NOSE_BASE: (223.0, 132.9),
}  # fmt: skip
POINTS = np.zeros((N_POINTS, 2), np.float32)
POINTS[list(PLACES)] = list(PLACES.values())


def measure_sharpness(picture: np.ndarray) -> float:
    """Of the photo's face, in a picture with the whole photo at any size."""
    scale = len(picture) / len(PHOTO)
    return measure_face(picture, (POINTS + 0.5) * np.float32(scale) - 0.5).sharpness


def zoom(picture: np.ndarray, scale: float) -> np.ndarray:
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation))


def test_a_mouth_is_less_sharp_the_more_it_is_blurred_or_enlarged() -> None:
    blurred = [measure_sharpness(cv2.GaussianBlur(PHOTO, (0, 0), sigma)) for sigma in (1, 2, 4)]
    assert measure_sharpness(PHOTO) > 0.65 > blurred[0] > 0.5 > blurred[1] > blurred[2]
    enlarged = [measure_sharpness(zoom(zoom(PHOTO, 1 / scale), scale)) for scale in (2, 4)]
    assert measure_sharpness(PHOTO) > 0.65 > enlarged[0] > 0.5 > enlarged[1]


def test_contrast_and_a_lossless_change_of_size_leave_a_mouth_as_sharp() -> None:
    sharpness = measure_sharpness(PHOTO)
    assert measure_sharpness(PHOTO // 2 + 60) == pytest.approx(sharpness, abs=0.04)
    large = zoom(PHOTO, 4)
    sizes = [measure_sharpness(zoom(large, scale)) for scale in (1, 0.8, 0.5, 0.3)]
    assert sizes == pytest.approx([sharpness] * 4, abs=0.12)


def test_brightness_is_that_of_the_face_alone() -> None:
    picture = np.zeros_like(PHOTO)
    picture[80:180, 170:280] = 90
    assert measure_face(picture, POINTS).brightness == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize("yaw", [-50, -10, 35])
@pytest.mark.parametrize("pitch", [-25, 0, 20])
@pytest.mark.parametrize("roll", [0, 30])
def test_a_head_that_is_turned_is_measured_within_a_degree(yaw: int, pitch: int, roll: int) -> None:
    # About y, so that the front (z) turns to the person's left (x); about x, to above (y); in the picture.
    y, x, z = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), np.sin(x)], [0, -np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    head = np.array(list(HEAD.values())) @ (about_z @ about_y @ about_x).T
    noise = np.random.default_rng(0).normal(0, 0.1, (len(head), 2))
    points = np.zeros((N_POINTS, 2), np.float32)
    points[list(HEAD)] = 12 * head[:, :2] * [1, -1] + [300, 200] + noise
    assert measure_pose(points) == pytest.approx((yaw, pitch), abs=1)


def test_a_mirrored_face_is_turned_to_the_other_side() -> None:
    # To the person's own left: what is nearer moves further to the picture's right.
    left = POINTS.copy()
    left[list(HEAD), 0] += [2 * z for _, _, z in HEAD.values()]
    yaw, pitch = measure_pose(left)
    mirrored = left * [-1, 1] + [511, 0]
    for right, other in ((33, 263), (133, 362), (117, 346), (127, 356), (129, 358)):
        mirrored[[right, other]] = mirrored[[other, right]]
    assert yaw > 10
    assert measure_pose(mirrored.astype(np.float32)) == pytest.approx((-yaw, pitch), abs=1)


@pytest.mark.parametrize("shift", [(-250, 0), (0, 380), (-1e4, 1e6)])
def test_a_face_at_the_edge_or_outside_of_its_picture_has_finite_figures(shift: tuple[float, float]) -> None:
    assert np.isfinite(measure_face(PHOTO, POINTS + np.float32(shift))).all()


def test_points_in_one_place_are_no_measurement() -> None:
    quality = measure_face(PHOTO, np.full((N_POINTS, 2), 7, np.float32))
    assert np.isnan(quality).all()
    empty = dict.fromkeys(("face_width", "sharpness", "yaw", "pitch", "brightness"))
    assert summarise_quality([], []) == empty
    assert summarise_quality([20], [quality]) == empty | {"face_width": 20}


def test_a_clip_has_the_turn_that_lasts_and_not_that_of_a_glance() -> None:
    frames = [FaceQuality(0.7, 100, 3, 0)] * 95 + [FaceQuality(0.1, 120, 80, -60)] * 5
    assert summarise_quality([50.0] * 100, frames) == {
        "face_width": 50, "sharpness": 0.7, "yaw": 3, "pitch": 0, "brightness": 101,
    }  # fmt: skip
    frames += [FaceQuality(math.nan, 100, -40, -20)] * 25
    columns = summarise_quality([50.0] * 125, frames)
    assert (columns["sharpness"], columns["yaw"], columns["pitch"]) == (0.7, -40, -20)
