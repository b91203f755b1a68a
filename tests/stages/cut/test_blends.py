"""Blended pictures of two people are found to the frame; people who talk, cameras and lamps are none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.cut import blends
from stages.cut.blends import find_blends, find_stills, merge_stretches
from tests.media import read_rgb_frames

SIDE = 24  # frames before and after a blend
BLACK = np.zeros((SIDE + 30, 48, 64), np.uint8)


@pytest.fixture(scope="module")
def people(grid: Path) -> list[np.ndarray]:
    """Two people of one corpus before one kind of wall: thumbnails (T, 48, 64)."""
    clips = [sorted((grid / person).glob("*.mpg"))[0] for person in ("s1", "s2")]
    return [np.stack([blends.shrink(picture) for picture in read_rgb_frames(clip)]) for clip in clips]


def mix(before: np.ndarray, after: np.ndarray, n_mixed: int) -> np.ndarray:
    """SIDE pictures of one, ``n_mixed`` that go over to the other, and SIDE of that."""
    shares = np.arange(1, n_mixed + 1)[:, None, None] / (n_mixed + 1)
    mixed = before[SIDE : SIDE + n_mixed] * (1 - shares) + after[:n_mixed] * shares
    return np.concatenate([before[:SIDE], mixed, after[n_mixed : n_mixed + SIDE]]).round().astype(np.uint8)


@pytest.mark.parametrize("n_mixed", [5, 10, 20, 30])
def test_a_dissolve_from_one_person_to_another_is_found_wherever_the_chunks_border_is(
    people: list[np.ndarray], n_mixed: int
) -> None:
    pictures = mix(*people, n_mixed)
    [(begin, end)] = find_blends(pictures, 0, len(pictures))
    assert SIDE - 3 <= begin <= SIDE + n_mixed // 12 and end >= SIDE + n_mixed - n_mixed // 12
    assert end <= SIDE + n_mixed + 3
    # as in files: each chunk is given the frames of the one before and of the one after
    borders = [0, SIDE, SIDE + 2, SIDE + n_mixed // 2, len(pictures)]
    parts = [stretch for first, last in pairwise(borders) for stretch in find_blends(pictures, first, last)]
    assert merge_stretches(parts) == [(begin, end)]


@pytest.mark.parametrize("n_mixed", [5, 20])
def test_a_fade_to_black_or_from_it_is_found(people: list[np.ndarray], n_mixed: int) -> None:
    for before, after in ((people[0], BLACK), (BLACK, people[0])):
        [(begin, end)] = find_blends(mix(before, after, n_mixed), 0, 2 * SIDE + n_mixed)
        assert abs(begin - SIDE) <= 3 and abs(end - SIDE - n_mixed) <= 3


def test_people_cuts_a_camera_and_a_lamp_are_no_dissolves(people: list[np.ndarray], grid: Path) -> None:
    picture = read_rgb_frames(sorted((grid / "s1").glob("*.mpg"))[0])[0]
    height, width = picture.shape[:2]
    pan = [
        cv2.warpAffine(picture, np.array([[1.4, 0, -2.0 * k], [0, 1.4, -0.2 * height]]), (width, height))
        for k in range(50)
    ]
    lamp = [np.asarray(picture * (1 - 0.4 * min(k, 20) / 20), np.uint8) for k in range(50)]
    moved = [np.stack([blends.shrink(shown) for shown in film]) for film in (pan, lamp)]
    for pictures in (*people, mix(*people, 0), *moved):
        assert find_blends(pictures, 0, len(pictures)) == []


def test_a_picture_that_stands_too_long_is_a_stretch_and_people_never_stand(people: list[np.ndarray]) -> None:
    pictures = np.concatenate([people[0][:20], np.repeat(people[0][20:21], 40, axis=0), people[0][21:]])
    steps = [255, *(blends.measure_largest_change(a, b) for a, b in pairwise(pictures))]
    assert find_stills(np.array(steps, np.uint8), 1.0) == [(20, 60)]
    assert find_stills(np.array(steps, np.uint8), 1.6) == []
