"""Audio obedience of mouths whose obedience is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluate.metrics.obedience import audio_obedience, bootstrap_mean, partial_correlation

T = 75


def make_pair(seed: int, shared: float = 0.7) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Openings of two clips that share much of their timing, as GRID's do."""
    rng = np.random.default_rng(seed)
    timing = rng.normal(size=T)
    return tuple(shared * timing + (1 - shared) * rng.normal(size=T) for _ in range(2))  # type: ignore[return-value]


def test_the_ground_truth_scores_1_and_a_copy_of_the_source_minus_1() -> None:
    source, speech = make_pair(0)
    assert np.corrcoef(source, speech)[0, 1] > 0.5, "a plain correlation would favour the copy"
    assert audio_obedience(speech, speech, source) == pytest.approx(1)
    assert audio_obedience(source, speech, source) == pytest.approx(-1)
    assert audio_obedience(3 * speech + 5, speech, source) == pytest.approx(1), "at any scale"


def test_a_network_that_ignores_audio_scores_0() -> None:
    """One whose mouth moves at random, and one that follows only the shared timing."""
    random, timing = [], []
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        source, speech = make_pair(seed)
        random.append(audio_obedience(rng.normal(size=T), speech, source))
        timing.append(audio_obedience(source + speech + 0.1 * rng.normal(size=T), speech, source))
    for scores in (random, timing):
        mean = bootstrap_mean(scores)
        assert abs(mean.value) < 0.03
        assert mean.low < 0 < mean.high


def test_a_still_mouth_scores_0() -> None:
    source, speech = make_pair(1)
    assert audio_obedience(np.ones(T), speech, source) == 0


def test_more_noise_is_less_obedience() -> None:
    rng = np.random.default_rng(0)
    source, speech = make_pair(2)
    noise = rng.normal(size=T)
    scores = [audio_obedience(speech + strength * noise, speech, source) for strength in (0, 0.3, 1, 3)]
    assert scores == sorted(scores, reverse=True)


def test_partial_correlation_is_the_textbook_formula() -> None:
    a, b, c = np.random.default_rng(3).normal(size=(3, T))
    b, a = b + 0.5 * c, a + 0.3 * b - c
    (_, ab, ac), (_, _, bc), _ = np.corrcoef([a, b, c])
    expected = (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))
    assert partial_correlation(a, b, c) == pytest.approx(expected)


def test_the_95_percent_interval_contains_the_true_mean_about_that_often() -> None:
    rng = np.random.default_rng(4)
    n_inside = 0
    for _ in range(100):
        mean = bootstrap_mean(rng.normal(0.3, 1, 30).tolist())
        n_inside += mean.low < 0.3 < mean.high
    assert 88 <= n_inside <= 99
    alone = bootstrap_mean([0.4])
    assert (alone.low, alone.value, alone.high, alone.n) == (0.4, 0.4, 0.4, 1)
