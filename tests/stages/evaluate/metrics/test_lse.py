from __future__ import annotations

import numpy as np
import pytest
import python_speech_features
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.evaluate.metrics.lse import (
    Lse,
    Skipped,
    lse,
    score,
    shift_means,
    window_count,
)
from stages.evaluate.metrics.mfcc import mfcc

RNG = np.random.default_rng


def noise(n_samples: int, seed: int = 0) -> NDArray[np.int16]:
    return RNG(seed).integers(-8000, 8000, n_samples).astype(np.int16)


@pytest.mark.parametrize("n_samples", [48_000, 47_777, 401, 400, 399, 10])
def test_cepstra_are_those_of_python_speech_features(n_samples: int) -> None:
    tone = (9000 * np.sin(np.arange(n_samples) / 7)).astype(np.int16)
    for sound in (noise(n_samples), tone, np.zeros(n_samples, np.int16)):
        expected = python_speech_features.mfcc(sound, 16_000)
        found = mfcc(sound)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-5


def test_three_seconds_have_299_columns() -> None:
    assert mfcc(noise(48_000)).shape == (299, 13)


def test_one_window_fewer_is_compared_than_fit() -> None:
    assert [window_count(length, length * 640) for length in (5, 6, 75, 100)] == [0, 1, 70, 95]
    assert window_count(75, 640 * 20 + 639) == window_count(20, 48_000) == 15, "the shorter counts"


def test_the_network_sees_five_frames_and_hears_the_columns_that_go_with_them() -> None:
    frames = np.zeros((30, 8, 8, 3), np.uint8)
    frames[..., 0] = np.arange(30)[:, None, None]  # red: the frame's number
    sound = noise(30 * 640)
    shown: list[Tensor] = []
    played: list[Tensor] = []

    def lips(windows: Tensor) -> Tensor:
        shown.extend(windows)
        return torch.zeros(len(windows), 2)

    def speech(windows: Tensor) -> Tensor:
        played.extend(windows)
        return torch.zeros(len(windows), 2)

    found = lse(frames, sound, lips, speech)
    assert isinstance(found, Lse) and found.n_windows == len(shown) == len(played) == 25
    columns = mfcc(sound).T
    for v in (0, 19, 20, 24):  # over the end of a batch
        assert shown[v].shape == (3, 5, 224, 224)
        assert shown[v][:, :, 100, 100].tolist() == [[0] * 5, [0] * 5, list(range(v, v + 5))], "BGR, 0 - 255"
        assert np.allclose(played[v][0], columns[:, 4 * v : 4 * v + 20], atol=1e-4)


def test_distances_are_torchs_with_zeros_at_the_ends() -> None:
    seen, heard = RNG(0).normal(size=(2, 40, 1024)).astype(np.float32)
    nothing = torch.zeros(15, 1024)
    padded = torch.cat([nothing, torch.from_numpy(heard), nothing])
    expected = [
        torch.nn.functional.pairwise_distance(torch.from_numpy(seen), padded[k : k + 40]).mean().item()
        for k in range(31)
    ]
    assert shift_means(seen, heard) == pytest.approx(expected, abs=1e-4)
    found = score(seen, heard)
    assert found.distance == pytest.approx(min(expected), abs=1e-4)
    assert found.confidence == pytest.approx(torch.tensor(expected).median().item() - min(expected), abs=1e-4)
    assert found.distance_at_zero == pytest.approx(expected[15], abs=1e-4)


def test_lips_and_speech_alike_are_at_no_distance() -> None:
    seen = RNG(0).normal(size=(40, 64)).astype(np.float32)
    found = score(seen, seen)
    assert found.offset == 0
    assert found.distance == found.distance_at_zero == pytest.approx(0, abs=1e-4)
    assert found.confidence > 5


def talking(opening: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A face that is the brighter the wider its mouth."""
    return np.broadcast_to((opening * 200)[:, None, None, None], (len(opening), 16, 16, 3)).astype(np.uint8)


def speaking(opening: NDArray[np.float64]) -> NDArray[np.int16]:
    """Noise whose loudness in decibel goes with the mouth."""
    loudness = np.repeat(10 ** (opening * 2), 640)
    return (RNG(9).choice([-50, 50], len(loudness)) * loudness).astype(np.int16)


def brightness(windows: Tensor) -> Tensor:
    return windows.mean(dim=(1, 3, 4)) / 200


def loudness(windows: Tensor) -> Tensor:
    energy = windows[:, 0, 0].unflatten(1, (5, 4)).mean(dim=2)
    return (energy - np.log(50**2 * 400 * 0.97)) / np.log(10**4)


@pytest.mark.parametrize("ahead", [-7, -1, 0, 1, 4])
def test_a_planted_offset_is_found_with_its_sign(ahead: int) -> None:
    """Positive is sound that runs ahead: what is heard now, the lips say ``ahead`` frames later."""
    opening = RNG(1).random(90)
    frames, sound = talking(opening[10:80]), speaking(opening[10 + ahead : 80 + ahead])
    found = lse(frames, sound, brightness, loudness)
    assert isinstance(found, Lse)
    assert found.offset == ahead
    assert (found.distance < found.distance_at_zero) == (ahead != 0)


def test_other_speech_scores_worse() -> None:
    own, other = RNG(2).random((2, 70))
    scores = [lse(talking(own), speaking(words), brightness, loudness) for words in (own, other)]
    assert isinstance(scores[0], Lse) and isinstance(scores[1], Lse)
    assert scores[0].distance < 0.7 * scores[1].distance
    assert scores[0].confidence > 2 * scores[1].confidence


@pytest.mark.parametrize(("n_frames", "n_samples"), [(5, 48_000), (75, 3839), (0, 0)])
def test_a_clip_too_short_is_skipped_with_a_reason(n_frames: int, n_samples: int) -> None:
    found = lse(np.zeros((n_frames, 8, 8, 3), np.uint8), noise(n_samples), brightness, loudness)
    assert isinstance(found, Skipped)
    assert found.reason == (
        f"{n_frames} frames and {n_samples} samples of sound: more than 5 frames of both are needed"
    )
