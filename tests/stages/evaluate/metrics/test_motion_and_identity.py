"""Flicker and drift are told, and what is neither is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluate.metrics.identity import drift, identity_distances
from stages.evaluate.metrics.motion import smoothness, unrest

T, SIZE = 20, 64
BOXES = np.tile([16, 24, 48, 56], (T, 1))
MIDDLE = np.s_[32:48, 24:40]  # of the box: where the lips are


def talking(seed: int = 0) -> NDArray[np.uint8]:
    """A still face whose mouth moves."""
    rng = np.random.default_rng(seed)
    face = cv2.GaussianBlur(rng.integers(60, 200, (SIZE, SIZE, 3)).astype(np.uint8), (0, 0), 3)
    frames = np.repeat(face[None], T, axis=0)
    for k in range(T):
        frames[k][MIDDLE] = 100 + 60 * np.sin(0.7 * k)
    return frames


def in_boxes(frames: NDArray[np.uint8], change: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Add a change (T, 1, 1, 3) inside the boxes alone."""
    changed = frames.astype(float)
    changed[:, 24:56, 16:48] += change
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def test_unrest_is_the_second_difference_in_time() -> None:
    frames = np.zeros((5, SIZE, SIZE, 3), np.uint8)
    frames += (np.arange(5, dtype=np.uint8) * 9)[:, None, None, None]
    assert unrest(frames, BOXES[:5]) == 0, "an even fade has none"
    frames[2] += 4
    assert unrest(frames, BOXES[:5]) == pytest.approx((4 + 8 + 4) / 3)
    assert np.isnan(unrest(frames[:2], BOXES[:2]))


def test_the_truth_is_as_smooth_as_itself_flicker_is_not_and_a_frozen_mouth_is_too_smooth() -> None:
    truth = talking()
    assert smoothness(truth, truth, BOXES) == 1
    rng = np.random.default_rng(1)
    flickers = [
        smoothness(in_boxes(truth, rng.normal(0, strength, (T, 1, 1, 3))), truth, BOXES)
        for strength in (1, 4, 16)
    ]
    assert 1 < flickers[0] < flickers[1] < flickers[2]
    frozen = np.repeat(truth[:1], T, axis=0)
    assert smoothness(frozen, truth, BOXES) == 0
    assert np.isnan(smoothness(truth, frozen, BOXES)), "against a truth that is still it is not defined"
    slow = np.stack([cv2.addWeighted(truth[max(0, k - 1)], 0.5, truth[k], 0.5, 0) for k in range(T)])
    assert smoothness(slow, truth, BOXES) < 1, "a mouth that mumbles moves less"


def test_a_face_that_pales_drifts_and_a_mouth_that_moves_does_not() -> None:
    truth = talking()
    still = identity_distances(truth, truth[0], BOXES)
    assert still == pytest.approx(0, abs=1e-3) and drift(still) == pytest.approx(0, abs=1e-3)
    grows = np.linspace(0, 30, T)[:, None, None, None]
    distances = identity_distances(in_boxes(truth, grows), truth[0], BOXES)
    assert np.all(np.diff(distances) > 0)
    more = identity_distances(in_boxes(truth, 2 * grows), truth[0], BOXES)
    assert drift(more) > drift(distances) > 3
    wrong = identity_distances(in_boxes(truth, np.full((T, 1, 1, 3), 20.0)), truth[0], BOXES)
    assert wrong.min() > 3 and abs(drift(wrong)) < 0.1, "wrong from the start is a distance, but no drift"


def test_the_distance_is_cie_1976s_of_even_colours() -> None:
    """L* of a grey is 116 f(Y) - 16 and a grey has no a* and b*: so two greys are as far as their L*."""

    def lightness(grey: int) -> float:
        linear = ((grey / 255 + 0.055) / 1.055) ** 2.4
        return float(116 * np.cbrt(linear) - 16)

    one, other = (np.full((1, SIZE, SIZE, 3), grey, np.uint8) for grey in (120, 150))
    (found,) = identity_distances(other, one[0], BOXES[:1])
    assert found == pytest.approx(lightness(150) - lightness(120), abs=0.02)


def test_short_clips_have_no_drift_and_middling_ones_are_halved() -> None:
    assert np.isnan(drift(np.array([1.0])))
    assert drift(np.array([1.0, 2.0, 4.0])) == 3
