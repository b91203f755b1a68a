"""Flicker and drift are detected, and other changes are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.metrics.identity import drift, identity_distances
from stages.metrics.motion import second_difference, smoothness

T, SIZE = 20, 64
BOXES = np.tile([16, 24, 48, 56], (T, 1))
MIDDLE = np.s_[32:48, 24:40]  # of the box, where the lips are


def draw_talking_face(seed: int = 0) -> NDArray[np.uint8]:
    """A still face whose mouth moves."""
    rng = np.random.default_rng(seed)
    face = cv2.GaussianBlur(rng.integers(60, 200, (SIZE, SIZE, 3)).astype(np.uint8), (0, 0), 3)
    frames = np.repeat(face[None], T, axis=0)
    for k in range(T):
        frames[k][MIDDLE] = 100 + 60 * np.sin(0.7 * k)
    return frames


def change_boxes(frames: NDArray[np.uint8], change: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Add a change (T, 1, 1, 3) inside the boxes alone."""
    changed = frames.astype(float)
    changed[:, 24:56, 16:48] += change
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def test_a_steady_fade_has_no_second_difference_and_a_jump_has() -> None:
    frames = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    frames += (np.arange(5, dtype=np.uint8) * 9)[:, None, None, None]
    assert second_difference(frames, BOXES[:5]) == 0, "a steady fade has none"
    frames[2] += 4
    assert second_difference(frames, BOXES[:5]) == pytest.approx((4 + 8 + 4) / 3)
    assert np.isnan(second_difference(frames[:2], BOXES[:2]))


def test_smoothness_is_1_for_the_truth_more_for_flicker_and_0_for_a_frozen_mouth() -> None:
    truth = draw_talking_face()
    assert smoothness(truth, truth, BOXES) == 1
    rng = np.random.default_rng(1)
    flickers = [
        smoothness(change_boxes(truth, rng.normal(0, strength, (T, 1, 1, 3))), truth, BOXES)
        for strength in (1, 4, 16)
    ]
    assert 1 < flickers[0] < flickers[1] < flickers[2]
    frozen = np.repeat(truth[:1], T, axis=0)
    assert smoothness(frozen, truth, BOXES) == 0
    assert np.isnan(smoothness(truth, frozen, BOXES)), "not defined when the ground truth is still"
    slow = np.stack([cv2.addWeighted(truth[max(0, k - 1)], 0.5, truth[k], 0.5, 0) for k in range(T)])
    assert smoothness(slow, truth, BOXES) < 1, "a mouth that opens less moves less"


def test_a_face_that_gets_paler_drifts_and_a_moving_mouth_does_not() -> None:
    truth = draw_talking_face()
    still = identity_distances(truth, truth[0], BOXES)
    assert still == pytest.approx(0, abs=1e-3) and drift(still) == pytest.approx(0, abs=1e-3)
    grows = np.linspace(0, 30, T)[:, None, None, None]
    distances = identity_distances(change_boxes(truth, grows), truth[0], BOXES)
    assert np.all(np.diff(distances) > 0)
    more = identity_distances(change_boxes(truth, 2 * grows), truth[0], BOXES)
    assert drift(more) > drift(distances) > 3
    wrong = identity_distances(change_boxes(truth, np.full((T, 1, 1, 3), 20.0)), truth[0], BOXES)
    assert wrong.min() > 3 and abs(drift(wrong)) < 0.1, "a constant error is a distance, but no drift"


def test_the_distance_of_uniform_colours_is_that_of_cie_1976() -> None:
    """L* of a grey is 116 f(Y) - 16, a* and b* are zero: the distance of two greys is that of their L*."""

    def lightness(grey: int) -> float:
        linear = ((grey / 255 + 0.055) / 1.055) ** 2.4
        return float(116 * np.cbrt(linear) - 16)

    one, other = (np.full((1, SIZE, SIZE, 3), grey, np.uint8) for grey in (120, 150))
    (distance,) = identity_distances(other, one[0], BOXES[:1])
    assert distance == pytest.approx(lightness(150) - lightness(120), abs=0.02)


def test_a_single_frame_has_no_drift_and_a_short_clip_is_halved() -> None:
    assert np.isnan(drift(np.array([1.0])))
    assert drift(np.array([1.0, 2.0, 4.0])) == 3
