from __future__ import annotations

import numpy as np
import pytest
import python_speech_features
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.metrics.lse import (
    Lse,
    Skipped,
    compute_lse,
    count_windows,
    mean_distances,
    score_embeddings,
)
from stages.metrics.mfcc import mfcc

RNG = np.random.default_rng


def make_noise(n_samples: int, seed: int = 0) -> NDArray[np.int16]:
    return RNG(seed).integers(-8000, 8000, n_samples).astype(np.int16)


@pytest.mark.parametrize("n_samples", [48_000, 47_777, 401, 400, 399, 10])
def test_cepstra_are_those_of_python_speech_features(n_samples: int) -> None:
    tone = (9000 * np.sin(np.arange(n_samples) / 7)).astype(np.int16)
    for sound in (make_noise(n_samples), tone, np.zeros(n_samples, np.int16)):
        expected = python_speech_features.mfcc(sound, 16_000)
        cepstra = mfcc(sound)
        assert cepstra.shape == expected.shape
        assert np.abs(cepstra - expected).max() < 1e-5


def test_three_seconds_have_299_mfcc_columns() -> None:
    assert mfcc(make_noise(48_000)).shape == (299, 13)


def test_one_window_fewer_is_compared_than_fit() -> None:
    assert [count_windows(length, length * 640) for length in (5, 6, 75, 100)] == [0, 1, 70, 95]
    assert count_windows(75, 640 * 20 + 639) == count_windows(20, 48_000) == 15, "the shorter counts"


def test_a_window_is_five_frames_and_their_mfcc_columns() -> None:
    frames = np.zeros((30, 8, 8, 3), np.uint8)
    frames[..., 0] = np.arange(30)[:, None, None]  # red: the frame's number
    sound = make_noise(30 * 640)
    frame_windows: list[Tensor] = []
    mfcc_windows: list[Tensor] = []

    def embed_lips(windows: Tensor) -> Tensor:
        frame_windows.extend(windows)
        return torch.zeros(len(windows), 2)

    def embed_speech(windows: Tensor) -> Tensor:
        mfcc_windows.extend(windows)
        return torch.zeros(len(windows), 2)

    result = compute_lse(frames, sound, embed_lips, embed_speech)
    assert isinstance(result, Lse)
    assert result.n_windows == len(frame_windows) == len(mfcc_windows) == 25
    columns = mfcc(sound).T
    for v in (0, 19, 20, 24):  # across a batch boundary
        assert frame_windows[v].shape == (3, 5, 224, 224)
        assert frame_windows[v][:, :, 100, 100].tolist() == [[0] * 5, [0] * 5, list(range(v, v + 5))], (
            "BGR, 0 - 255"
        )
        assert np.allclose(mfcc_windows[v][0], columns[:, 4 * v : 4 * v + 20], atol=1e-4)


def test_distances_are_those_of_torch_with_zeros_at_the_ends() -> None:
    lips, speech = RNG(0).normal(size=(2, 40, 1024)).astype(np.float32)
    zeros = torch.zeros(15, 1024)
    padded = torch.cat([zeros, torch.from_numpy(speech), zeros])
    expected = [
        torch.nn.functional.pairwise_distance(torch.from_numpy(lips), padded[k : k + 40]).mean().item()
        for k in range(31)
    ]
    assert mean_distances(lips, speech) == pytest.approx(expected, abs=1e-4)
    result = score_embeddings(lips, speech)
    assert result.distance == pytest.approx(min(expected), abs=1e-4)
    assert result.confidence == pytest.approx(
        torch.tensor(expected).median().item() - min(expected), abs=1e-4
    )
    assert result.distance_at_zero == pytest.approx(expected[15], abs=1e-4)


def test_equal_embeddings_of_lips_and_speech_have_distance_zero() -> None:
    embeddings = RNG(0).normal(size=(40, 64)).astype(np.float32)
    result = score_embeddings(embeddings, embeddings)
    assert result.offset == 0
    assert result.distance == result.distance_at_zero == pytest.approx(0, abs=1e-4)
    assert result.confidence > 5


def draw_frames(opening: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A face that gets brighter as its mouth opens."""
    return np.broadcast_to((opening * 200)[:, None, None, None], (len(opening), 16, 16, 3)).astype(np.uint8)


def make_sound(opening: NDArray[np.float64]) -> NDArray[np.int16]:
    """Noise whose loudness in decibels follows the mouth."""
    loudness = np.repeat(10 ** (opening * 2), 640)
    return (RNG(9).choice([-50, 50], len(loudness)) * loudness).astype(np.int16)


def embed_brightness(windows: Tensor) -> Tensor:
    return windows.mean(dim=(1, 3, 4)) / 200


def embed_loudness(windows: Tensor) -> Tensor:
    energy = windows[:, 0, 0].unflatten(1, (5, 4)).mean(dim=2)
    return (energy - np.log(50**2 * 400 * 0.97)) / np.log(10**4)


@pytest.mark.parametrize("ahead", [-7, -1, 0, 1, 4])
def test_a_planted_offset_is_found_with_its_sign(ahead: int) -> None:
    """Positive is early sound: the lips match it ``ahead`` frames later."""
    opening = RNG(1).random(90)
    frames, sound = draw_frames(opening[10:80]), make_sound(opening[10 + ahead : 80 + ahead])
    result = compute_lse(frames, sound, embed_brightness, embed_loudness)
    assert isinstance(result, Lse)
    assert result.offset == ahead
    assert (result.distance < result.distance_at_zero) == (ahead != 0)


def test_other_speech_scores_worse() -> None:
    own, other = RNG(2).random((2, 70))
    scores = [
        compute_lse(draw_frames(own), make_sound(opening), embed_brightness, embed_loudness)
        for opening in (own, other)
    ]
    assert isinstance(scores[0], Lse) and isinstance(scores[1], Lse)
    assert scores[0].distance < 0.7 * scores[1].distance
    assert scores[0].confidence > 2 * scores[1].confidence


@pytest.mark.parametrize(("n_frames", "n_samples"), [(5, 48_000), (75, 3839), (0, 0)])
def test_a_clip_too_short_is_skipped_with_a_reason(n_frames: int, n_samples: int) -> None:
    result = compute_lse(
        np.zeros((n_frames, 8, 8, 3), np.uint8), make_noise(n_samples), embed_brightness, embed_loudness
    )
    assert isinstance(result, Skipped)
    assert result.reason == (
        f"{n_frames} frames and {n_samples} samples of sound: more than 5 frames of both are needed"
    )
