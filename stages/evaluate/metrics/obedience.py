"""Audio obedience: does a mouth follow the speech it was generated from, or that of the source video?

Clip A is generated with clip B's speech. The plain correlation of its mouth opening with B's proves little:
clips of one corpus share their timing, and another clip's ground truth opening may correlate 0.5 with it.
So partial correlations are used: what the openings of both ground truths share is removed from each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 2000
INTERVAL_SEED = 0
# When regression leaves less than this share of a signal's norm, the residual is rounding error.
ROUNDING = 1e-6


def subtract_mean(signal: ArrayLike) -> NDArray[np.float64]:
    """A signal less its mean."""
    values = np.asarray(signal, np.float64)
    return np.asarray(values - values.mean())


def residual(signal: ArrayLike, regressor: ArrayLike) -> NDArray[np.float64]:
    """What remains of a signal (T,) after linear regression on another (T,)."""
    y, x = subtract_mean(signal), subtract_mean(regressor)
    spread = float(x @ x)
    return np.asarray(y if spread == 0 else y - x * (float(x @ y) / spread))


def partial_correlation(a: ArrayLike, b: ArrayLike, control: ArrayLike) -> float:
    """Pearson correlation of the residuals of a and b regressed on ``control``; 0 when either is empty."""
    residual_a, residual_b = residual(a, control), residual(b, control)
    size_a, size_b = (float(np.linalg.norm(values)) for values in (residual_a, residual_b))
    whole_a, whole_b = (float(np.linalg.norm(subtract_mean(signal))) for signal in (a, b))
    if size_a <= ROUNDING * whole_a or size_b <= ROUNDING * whole_b:
        return 0.0
    return float(residual_a @ residual_b) / (size_a * size_b)


def audio_obedience(generated: ArrayLike, speech: ArrayLike, source: ArrayLike) -> float:
    """Obedience of one clip with another's speech, from mouth openings (T,).

    They are those of the generated clip, of the ground truth of the speech and of the ground truth of the
    source. 1 for the ground truth of the speech, 0 for a network that ignores its audio, -1 for a copy of
    the source.
    """
    return partial_correlation(generated, speech, source) - partial_correlation(generated, source, speech)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over clips with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.n}"


def bootstrap_mean(values: Sequence[float]) -> Mean:
    """Mean over clips. With fewer than two values, or all equal, the interval is the mean itself."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Mean(mean, mean, mean, len(values))
    interval = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(INTERVAL_SEED),
    ).confidence_interval
    return Mean(mean, float(interval.low), float(interval.high), len(values))


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Mean | None:
    """Ratio of two means over the same clips, which are resampled together. None if the denominator is 0."""
    if not len(denominators) or not np.sum(denominators):
        return None
    ratio = float(np.sum(numerators) / np.sum(denominators))
    above, below = np.asarray(numerators), np.asarray(denominators)
    if len(below) < 2 or np.allclose(above, ratio * below, rtol=1e-12, atol=0):
        return Mean(ratio, ratio, ratio, len(below))
    rng = np.random.default_rng(INTERVAL_SEED)
    clips = rng.integers(len(below), size=(RESAMPLES, len(below)))
    sums = below[clips].sum(axis=1)
    # A resample in which no true mouth moves has no ratio.
    low, high = np.percentile(above[clips].sum(axis=1)[sums > 0] / sums[sums > 0], (2.5, 97.5))
    return Mean(ratio, float(low), float(high), len(below))
