"""Which part of a crop is the face's, for outlines whose area is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampler.face_region import CHIN_DROP, OPAQUE, TRANSPARENT, fill_outline, mask_face

SIZE = 128


def make_circle(radius: float, x: float = 63.5, y: float = 63.5) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    return np.stack([x + radius * np.sin(angle), y - radius * np.cos(angle)], axis=1).astype(np.float32)


def measure_radius() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.hypot(x - 63.5, y - 63.5)


@given(radius=st.floats(12, 40))
def test_it_is_opaque_within_the_outline_and_transparent_far_from_it(radius: float) -> None:
    mask, r = mask_face(make_circle(radius), top=63.5, size=SIZE), measure_radius()
    above = np.arange(SIZE)[:, None] < 58  # where the outline is not lowered
    assert mask.min() == 0 and mask.max() == 1
    assert (mask[above & (r < radius + OPAQUE * SIZE - 1.5)] == 1).all()
    assert (mask[above & (r > radius + TRANSPARENT * SIZE + 1.5)] == 0).all()
    below = np.arange(SIZE)[:, None] > 63.5 + radius + (CHIN_DROP + TRANSPARENT) * SIZE + 1.5
    assert not mask[np.broadcast_to(below, mask.shape)].any()


def test_the_chin_alone_has_room_to_drop() -> None:
    mask = mask_face(make_circle(30), top=63.5, size=SIZE)
    column = mask[:, 64]
    assert column[int(63.5 + 30 + CHIN_DROP * SIZE)] == 1
    assert mask[64, 64 + 30 + 9] == mask[64, 63 - 30 - 9] == 0, "the cheeks have none"


@given(radius=st.floats(5, 40), x=st.floats(30, 97), y=st.floats(30, 97))
def test_a_mirrored_outline_has_the_mirrored_mask(radius: float, x: float, y: float) -> None:
    circle = make_circle(radius, x, y)
    mirrored = circle * np.float32([-1, 1]) + np.float32([SIZE - 1, 0])
    assert mask_face(mirrored, y, SIZE) == pytest.approx(mask_face(circle, y, SIZE)[:, ::-1], abs=0.35)


@pytest.mark.parametrize("radius", [10, 25.5, 40])
def test_the_area_of_a_filled_outline_is_that_of_its_circle(radius: float) -> None:
    area = fill_outline(make_circle(radius), SIZE).sum()
    assert area == pytest.approx(
        math.pi * (radius + 0.5) ** 2, rel=0.03
    )  # OpenCV fills the border's pixels too


def test_an_outline_beyond_the_crop_is_cut_off() -> None:
    assert fill_outline(make_circle(300), SIZE).all()
    assert (mask_face(make_circle(300), 60, SIZE) == 1).all()
    assert not fill_outline(make_circle(20, -200, 64), SIZE).any()
    assert not mask_face(make_circle(20, -200, 64), 64, SIZE).any()
