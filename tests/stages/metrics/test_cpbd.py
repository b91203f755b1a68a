from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from stages.metrics.cpbd import cpbd, edge_widths


def score_image(image: NDArray[np.uint8]) -> float:
    height, width = image.shape[:2]
    sharpness = cpbd(image[None], np.array([[0, 0, width, height]]))
    assert np.array_equal(sharpness.frame, sharpness.box, equal_nan=True)
    return float(sharpness.frame[0])


def blur(image: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image, np.uint8)


@pytest.fixture(scope="module")
def face() -> NDArray[np.uint8]:
    return np.ascontiguousarray(data.astronaut()[:256, 100:356])


def make_ramp(width: int, low: float, high: float) -> NDArray[np.uint8]:
    """A smooth step from dark to bright, steepest in its middle: (64, 64)."""
    phase = np.clip((np.arange(64) - 30) / width, 0, 1)
    row = low + (high - low) * (1 - np.cos(np.pi * phase)) / 2
    return np.tile(row.round().astype(np.uint8), (64, 1))


@pytest.mark.parametrize("width", [2, 4, 6, 10])
def test_an_edge_is_as_wide_as_it_was_made(width: int) -> None:
    for image in (make_ramp(width, 40, 200), make_ramp(width, 200, 40)):
        assert set(np.unique(edge_widths(image[None]))) == {0, width}


@pytest.mark.parametrize(
    ("sigma", "published"),
    [(0, 0.48939512961508247), (0.7, 0.25), (1.5, 0.05085865257595773), (3, 0.0)],
)
def test_a_face_scores_as_with_the_published_package(
    face: NDArray[np.uint8], sigma: float, published: float
) -> None:
    """Values of cpbd 1.0.7, the port of the authors' program; its edges by Canny change them by 0.0014."""
    assert score_image(blur(face, sigma)) == pytest.approx(published, abs=0.002)


def test_crops_of_128_score_as_with_the_published_package(face: NDArray[np.uint8]) -> None:
    small = np.asarray(cv2.resize(face, (128, 128), interpolation=cv2.INTER_AREA), np.uint8)
    scores = [score_image(blur(small, sigma)) for sigma in (0, 0.7, 1.5, 3)]
    published = [0.46029609690444145, 0.20790629575402636, 0.04093567251461988, 0.0]
    assert scores == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("picture", ["camera", "coins", "page", "text"])
def test_more_blur_is_never_sharper(picture: str) -> None:
    image = cv2.cvtColor(getattr(data, picture)(), cv2.COLOR_GRAY2RGB)
    scores = [score_image(blur(image, sigma)) for sigma in (0, 0.5, 1, 1.5, 2, 3)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.2 and scores[-1] < 0.02


def test_hard_edges_are_all_sharp_and_a_flat_image_has_no_edges() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::8] = 255
    assert score_image(stripes) == 1
    assert np.isnan(score_image(np.full((128, 128, 3), 90, np.uint8)))


def test_wider_edges_count_as_sharp_where_the_contrast_is_low() -> None:
    """Up to a contrast of 50 a width of 5 is not noticeable, above it one of 3."""
    scores = {
        (width, contrast): score_image(
            cv2.cvtColor(make_ramp(width, 100, 100 + contrast), cv2.COLOR_GRAY2RGB)
        )
        for width in (2, 4, 6)
        for contrast in (50, 51)
    }
    assert [pair for pair, score in scores.items() if score == 1] == [(2, 50), (2, 51), (4, 50)]
    assert [pair for pair, score in scores.items() if score == 0] == [(4, 51), (6, 50), (6, 51)]


def test_a_box_is_scored_by_its_own_edges(face: NDArray[np.uint8]) -> None:
    """A blurred mouth in a sharp face: 100 x 70 is one block."""
    x0, y0, x1, y1 = box = (60, 120, 160, 190)
    soft = face.copy()
    soft[y0:y1, x0:x1] = blur(face, 3)[y0:y1, x0:x1]
    both = np.stack([face, soft])
    sharpness = cpbd(both, np.array([box, box]))
    assert sharpness.box[0] > 0.3 and sharpness.box[1] < 0.05
    assert 0 < sharpness.frame[0] - sharpness.frame[1] < 0.1
    assert np.isnan(cpbd(np.full_like(face, 90)[None], np.array([box])).box[0])
