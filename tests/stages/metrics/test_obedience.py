"""Audio obedience of mouths whose obedience is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.metrics.obedience import (
    audio_obedience,
    bootstrap_mean,
    bootstrap_ratio,
    partial_correlation,
)

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


@pytest.mark.parametrize("n", [5, 8, 23])
def test_the_interval_of_few_clips_covers_nearly_as_often(n: int) -> None:
    rng = np.random.default_rng(n)
    normal = [bootstrap_mean(rng.normal(0.3, 1, n).tolist()) for _ in range(300)]
    skewed = [bootstrap_mean(rng.exponential(0.3, n).tolist()) for _ in range(300)]
    ratios = [bootstrap_ratio(rng.normal(0.3, 0.3, n), rng.uniform(0.8, 1.2, n)) for _ in range(300)]
    shares = [np.mean([mean.low < 0.3 < mean.high for mean in means]) for means in (normal, skewed, ratios)]
    assert 0.91 <= shares[0] <= 0.98 and 0.84 <= shares[1] <= 0.97 and 0.91 <= shares[2] <= 0.98


def test_a_few_clips_or_equal_ones_have_no_interval() -> None:
    for values in ([0.4], [0.4, 0.5, 0.6, 0.7], [0.4] * 9):
        mean = bootstrap_mean(values)
        assert (mean.value, mean.low, mean.high, mean.n) == (np.mean(values), None, None, len(values))
    assert str(bootstrap_mean([0.4])) == "+0.40, n = 1"


def test_the_interval_of_a_share_is_within_0_and_1() -> None:
    closed, closures = [0, 0, 0, 0, 0, 2], [2, 3, 2, 3, 2, 2]
    few = bootstrap_ratio(closed, closures)
    assert few is not None and few.low == 0 and few.high is not None and few.value < few.high < 1
    most = bootstrap_ratio(np.subtract(closures, closed), closures)
    assert most is not None and most.high == 1 and most.low is not None and 0 < most.low < most.value


def test_clips_of_five_people_are_resampled_by_person() -> None:
    """People differ, and 20 clips of each of six say little more than six clips."""
    rng = np.random.default_rng(5)
    n_inside = {"people": 0, "clips": 0}
    speakers = [f"s{k // 20}" for k in range(120)]
    for _ in range(100):
        values = np.repeat(rng.normal(size=6), 20) + rng.normal(size=120)
        for name, people in (("people", speakers), ("clips", None)):
            mean = bootstrap_mean(values.tolist(), speakers=people)
            n_inside[name] += mean.low < 0 < mean.high
    assert n_inside["people"] >= 88 and n_inside["clips"] < 60
    few = bootstrap_mean(values[:80].tolist(), speakers=speakers[:80])
    assert few == bootstrap_mean(values[:80].tolist()), "of four people the clips are"
