from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.metrics.face_crops import crop_faces, face_boxes


def draw_coordinates(size: int) -> NDArray[np.uint8]:
    """An image whose red and green are each pixel's column and row."""
    y, x = np.mgrid[:size, :size]
    return np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)


def test_the_square_around_a_face_is_the_scripts() -> None:
    """A box of 40 x 50 around (100, 90): half its side is 25, so columns 65 - 135 and rows 65 - 135."""
    boxes = np.tile([80.0, 65.0, 120.0, 115.0], (20, 1))
    crops = crop_faces([draw_coordinates(240)] * 20, boxes)
    expected = cv2.resize(draw_coordinates(240)[65:135, 65:135], (224, 224))
    assert crops.shape == (20, 224, 224, 3)
    assert np.array_equal(crops[10], expected)


def test_pixels_beyond_the_image_are_grey() -> None:
    boxes = np.tile([0.0, 0.0, 40.0, 40.0], (13, 1))
    crop = crop_faces([draw_coordinates(100)] * 13, boxes)[6]
    expected = np.full((56, 56, 3), 110, np.uint8)  # columns -8 ... 47, rows 0 ... 55
    expected[:, 8:] = draw_coordinates(100)[:56, :48]
    assert np.array_equal(crop, cv2.resize(expected, (224, 224)))


def test_the_medians_zeros_shift_the_first_and_last_squares() -> None:
    """Of 13 values six are zero at the first frame: the median is the least of the other seven."""
    centres = np.concatenate([np.arange(120, 100, -1), np.arange(100, 120)]).astype(float)
    boxes = np.stack([centres - 20, centres * 0 + 80, centres + 20, centres * 0 + 120], axis=1)
    crops = crop_faces([draw_coordinates(240)] * 40, boxes)
    columns = [float(crop[:, 111:113, 0].mean()) + 0.5 for crop in crops]
    zeros = np.zeros(6)
    padded = np.concatenate([zeros, centres, zeros])
    assert columns == pytest.approx([np.sort(padded[k : k + 13])[6] for k in range(40)], abs=0.6)
    assert columns[0] == pytest.approx(centres[6], abs=0.6)
    assert columns[-1] == pytest.approx(centres[-7], abs=0.6)
    with pytest.raises(ValueError, match="6 frames, expected 7 or more"):
        crop_faces([draw_coordinates(240)] * 6, boxes[:6])


def test_a_face_box_contains_all_points() -> None:
    points = np.random.default_rng(0).random((4, 478, 2)).astype(np.float32) * 100
    points[2, 7] = (150, 3)
    x0, y0, x1, y1 = face_boxes(points).T
    assert ((points[..., 0] >= x0[:, None]) & (points[..., 0] <= x1[:, None])).all()
    assert x1[2] == 150 and y0.shape == y1.shape == (4,)
