"""Blended pictures of two people are found to the frame; people who talk, cameras and lamps are none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.cut import blends
from stages.cut.blends import (
    add_same_pictures,
    count_same_before,
    find_blends,
    find_stills,
    merge_stretches,
)
from tests.conftest import real_clips
from tests.media import read_rgb_frames

SIDE = 36  # frames before and after a blend
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


@pytest.mark.parametrize("n_mixed", [1, 2, 3, 5, 10, 20, 30])
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


def test_people_cuts_a_caption_and_a_lamp_are_no_dissolves(people: list[np.ndarray], grid: Path) -> None:
    picture = read_rgb_frames(sorted((grid / "s1").glob("*.mpg"))[0])[0]
    side = np.linspace(1, 0.5, picture.shape[1])[None, :, None]
    lamp, caption = [], []
    for k in range(100):
        share = min(max(k - 40, 0), 10) / 10
        lamp.append(np.asarray(picture * (1 - share + share * side), np.uint8))
        titled = picture.astype(np.float32)
        titled[-len(titled) // 6 :] *= 1 - share
        caption.append(titled.astype(np.uint8))
    changed = [np.stack([blends.shrink(frame) for frame in film]) for film in (lamp, caption)]
    for pictures in (*people, mix(*people, 0), *changed):
        assert find_blends(pictures, 0, len(pictures)) == []


@pytest.mark.parametrize(("pixels", "zoom"), [(0.25, 0.0), (1.0, 0.0), (4.0, 0.0), (0.0, 0.002), (0.0, 0.01)])
def test_a_camera_that_moves_over_a_room_shows_no_dissolves(pixels: float, zoom: float) -> None:
    """``pixels`` and ``zoom`` a frame."""
    clip = sorted(real_clips("us_gov").rglob("*.mp4"))[0]
    pictures = []
    for k, frame in enumerate(read_rgb_frames(clip)[:90]):
        height, width = frame.shape[:2]
        scale = 1.25 + zoom * k
        matrix = np.array(
            [[scale, 0, -pixels * k - (scale - 1) * width / 3], [0, scale, (1 - scale) * height / 3]]
        )
        pictures.append(blends.shrink(cv2.warpAffine(frame, matrix, (width, height))))
    assert find_blends(np.stack(pictures), 0, len(pictures)) == []


def find_stills_by_chunks(
    pictures: np.ndarray, borders: list[int], max_seconds: float
) -> list[tuple[int, int]]:
    """As files are worked on: each chunk is compared with the frames right before it, and no others."""
    same_since = np.arange(len(pictures))
    for first, last in pairwise(borders):
        earliest = max(first - blends.MAX_FRAMES, 0)
        same = [count_same_before(pictures[earliest:last], k - earliest) for k in range(first, last)]
        add_same_pictures(same_since, first, np.array(same))
    return find_stills(same_since, max_seconds)


@pytest.mark.parametrize("borders", [[0, 130], [0, 21, 60, 130], [0, 50, 100, 130]])
def test_a_picture_that_stands_too_long_is_a_stretch_wherever_the_chunks_border_is(
    people: list[np.ndarray], borders: list[int]
) -> None:
    pictures = np.concatenate([people[0][:20], np.repeat(people[0][20:21], 80, axis=0), people[0][21:51]])
    assert find_stills_by_chunks(pictures, borders, 1.0) == [(20, 100)]
    assert find_stills_by_chunks(pictures, borders, 3.1) == [(20, 100)]
    assert find_stills_by_chunks(pictures, borders, 3.2) == []


def test_people_and_slow_changes_of_light_are_no_stills(people: list[np.ndarray], grid: Path) -> None:
    # A small face in a large room changes few fields, and little from one frame to the next.
    room = np.full((360, 640, 3), 90, np.uint8)
    talking = []
    for frame in read_rgb_frames(sorted((grid / "s1").glob("*.mpg"))[0]):
        room[100:133, 300:341] = cv2.resize(frame, (41, 33), interpolation=cv2.INTER_AREA)
        talking.append(blends.shrink(room))
    dawn = np.arange(60, 140, dtype=np.uint8)[:, None, None] + np.zeros((48, 64), np.uint8)
    for pictures in (*people, np.stack(talking), dawn):
        assert find_stills_by_chunks(pictures, [0, 40, len(pictures)], 1.0) == []
