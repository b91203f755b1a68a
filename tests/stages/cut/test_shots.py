"""Shots: a cut is found within a frame, whatever moves, flashes or flickers around it."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from shards.schema import Frame
from stages.cut.shots import ContentComparison, find_shots

CUT = 24
Effect = Callable[[int, Frame], Frame]


def draw_room(seed: int) -> Frame:
    """A picture with soft shapes, (120, 160, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(40, 200, (9, 16, 3)).astype(np.float32)
    return (
        np.asarray(cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC)).clip(0, 255).astype(np.uint8)
    )


def film(*seeds: int, effect: Effect = lambda k, picture: picture, repeat: int = 1) -> np.ndarray:
    """Content values of shots of CUT frames each, of one room each; pictures are shown ``repeat`` times."""
    compare = ContentComparison()
    values = []
    for number, seed in enumerate(seeds):
        room = draw_room(seed)
        for k in range(number * CUT, (number + 1) * CUT):
            values.append(compare(effect(k // repeat, room)))
    return np.array(values, np.float32)


def move(k: int, picture: Frame, pixels: float = 2) -> Frame:
    """As from a hand-held camera that never rests."""
    matrix = np.array([[1, 0, pixels * np.sin(1.1 * k)], [0, 1, pixels * np.cos(0.8 * k)]])
    return np.asarray(cv2.warpAffine(picture, matrix, (160, 120), borderMode=cv2.BORDER_REFLECT), np.uint8)


def flash(k: int, picture: Frame) -> Frame:
    light = {5: 90, 17: 80, 18: 80, 32: 80, 33: 50, 34: 20}.get(k, 0)
    return np.minimum(picture.astype(int) + light, 255).astype(np.uint8)


def grain(k: int, picture: Frame) -> Frame:
    noise = np.random.default_rng(k).normal(0, 8, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("effect", [lambda k, picture: picture, move, flash, grain])
@pytest.mark.parametrize("repeat", [1, 2])
def test_cuts_are_found_and_motion_flashes_and_grain_are_none(effect: Effect, repeat: int) -> None:
    assert find_shots(film(1, 1, effect=effect, repeat=repeat)) == [0]
    assert find_shots(film(1, 2, 3, effect=effect, repeat=repeat)) == [0, CUT, 2 * CUT]


def test_a_blended_cut_is_one_and_a_size_that_changes_is_always_one() -> None:
    compare = ContentComparison()
    before, after = draw_room(1), draw_room(2)
    mixed = cv2.addWeighted(before, 0.5, after, 0.5, 0).astype(np.uint8)
    pictures = [*[before] * 9, mixed, *[after] * 9, *[after[:100]] * 3]
    values = np.array([compare(picture) for picture in pictures], np.float32)
    assert values[0] == 0 and np.isinf(values[19])
    assert find_shots(values) in ([0, 9, 19], [0, 10, 19])
    assert find_shots(np.zeros(0, np.float32)) == []


def test_the_value_is_that_of_pyscenedetect() -> None:
    from scenedetect import ContentDetector, FrameTimecode, StatsManager
    from scenedetect.scene_manager import compute_downscale_factor

    rooms = [np.asarray(cv2.resize(draw_room(seed), (1280, 720)), np.uint8) for seed in (1, 2)]
    detector, stats = ContentDetector(luma_only=True), StatsManager(FrameTimecode(0, 25.0))
    detector.stats_manager = stats
    factor = compute_downscale_factor(1280)
    for k, room in enumerate(rooms):
        small = cv2.resize(room[..., ::-1], (round(1280 / factor), round(720 / factor)))
        detector.process_frame(FrameTimecode(k, 25.0), np.asarray(small, np.uint8))
    compare = ContentComparison()
    assert [compare(room) for room in rooms][1] == stats.get_metrics(1, ["content_val"])[0] > 10
