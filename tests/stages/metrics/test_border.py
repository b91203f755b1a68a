"""The colour at the mask's border: known colours have their known difference, and only the ring counts."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2lab

from stages.evaluate.listening import score_border
from stages.metrics.border import border_distances, compute_lab

T, SIZE = 4, 32
SKIN, DARK_SKIN = (198, 156, 136), (92, 61, 48)


def paint(colour: tuple[int, int, int] = SKIN) -> NDArray[np.uint8]:
    return np.full((T, SIZE, SIZE, 3), colour, np.uint8)


def repeat_box(*box: int) -> NDArray[np.int16]:
    return np.tile(np.array(box, np.int16), (T, 1))


BOXES = repeat_box(6, 10, 26, 28)


def test_lab_is_that_of_scikit_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 3), dtype=np.uint8)
    assert np.abs(compute_lab(pixels) - rgb2lab(pixels / 255)).max() < 0.02
    assert compute_lab(np.array([255, 255, 255], np.uint8)) == pytest.approx([100, 0, 0], abs=1e-9)
    assert compute_lab(np.array([0, 0, 0], np.uint8)) == pytest.approx([0, 0, 0], abs=1e-9)


def test_another_skin_has_the_difference_of_the_two_skins() -> None:
    source, generated = paint(DARK_SKIN), paint(DARK_SKIN)
    assert (border_distances(generated, source, BOXES) == 0).all()
    generated[:, 10:28, 6:26] = SKIN
    expected = np.linalg.norm(rgb2lab(np.array(SKIN) / 255) - rgb2lab(np.array(DARK_SKIN) / 255))
    assert border_distances(generated, source, BOXES) == pytest.approx([expected] * T, abs=0.02)
    assert expected > 30


def test_a_grey_that_is_5_lighter_has_a_difference_of_5() -> None:
    greys = compute_lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))[:, 0]
    lighter = int(np.abs(greys - greys[100] - 5).argmin())
    distances = border_distances(paint((lighter,) * 3), paint((100,) * 3), BOXES)
    assert distances == pytest.approx([5] * T, abs=0.25)


def test_only_the_outermost_three_pixels_of_the_box_count() -> None:
    source, middle, outside = paint(), paint(), paint()
    middle[:, 13:25, 9:23] = 0
    assert (border_distances(middle, source, BOXES) == 0).all()
    outside[:] = 0
    outside[:, 10:28, 6:26] = SKIN
    assert (border_distances(outside, source, BOXES) == 0).all()
    ring = np.where(outside == 0, SKIN, 0).astype(np.uint8)
    ring[:, 13:25, 9:23] = SKIN
    assert (border_distances(ring, source, BOXES) > 50).all()
    assert (border_distances(ring, source, repeat_box(6, 10, 26, 11)) > 50).all(), "a thin box is all ring"


def test_the_median_ignores_a_few_pixels_and_a_few_frames() -> None:
    source, generated = paint(), paint()
    generated[:, 10:13, 6:14] = 0
    assert (border_distances(generated, source, BOXES) == 0).all(), "less than half of the ring"
    assert score_border(np.array([1.0, 1.0, 50.0])) == 1
    assert score_border(np.array([np.nan, 2.0])) == 2 and np.isnan(score_border(np.array([np.nan])))


def test_a_side_at_the_edge_of_the_image_is_no_border() -> None:
    source, generated = paint(), paint()
    boxes = repeat_box(6, 10, 26, SIZE)
    generated[:, 29:, 9:23] = 0
    assert (border_distances(generated, source, boxes) == 0).all()
    generated = paint()
    generated[:, 10:SIZE, 6:9] = generated[:, 10:SIZE, 23:26] = generated[:, 10:13, 6:26] = 0
    assert (border_distances(generated, source, boxes) > 50).all(), "the other three sides are"
    whole = repeat_box(0, 0, SIZE, SIZE)
    assert np.isnan(border_distances(generated, source, whole)).all()
