"""Audio obedience: does a mouth follow the speech it was given, or the one that the source's mouth spoke?

Clip A is drawn to clip B's speech. A plain correlation of its mouth's opening with B's proves little: speech
of one corpus shares its timing, and another clip's true opening may correlate 0.5 with it. So what both
truths share is taken out of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 2000
# Below this share of a signal's spread, what is left of it when another is taken out is rounding.
ROUNDING = 1e-6


def centred(signal: ArrayLike) -> NDArray[np.float64]:
    """A signal less its mean."""
    values = np.asarray(signal, np.float64)
    return np.asarray(values - values.mean())


def residual(signal: ArrayLike, given: ArrayLike) -> NDArray[np.float64]:
    """What is left of a signal (T,) when its straight-line dependence on another (T,) is taken out."""
    y, x = centred(signal), centred(given)
    spread = float(x @ x)
    return np.asarray(y if spread == 0 else y - x * (float(x @ y) / spread))


def partial_correlation(a: ArrayLike, b: ArrayLike, given: ArrayLike) -> float:
    """Pearson's correlation of a and b once ``given`` is taken out of both; 0 where nothing is left."""
    left_a, left_b = residual(a, given), residual(b, given)
    size_a, size_b = (float(np.linalg.norm(left)) for left in (left_a, left_b))
    whole_a, whole_b = (float(np.linalg.norm(centred(whole))) for whole in (a, b))
    if size_a <= ROUNDING * whole_a or size_b <= ROUNDING * whole_b:
        return 0.0
    return float(left_a @ left_b) / (size_a * size_b)


def audio_obedience(drawn: ArrayLike, speech: ArrayLike, source: ArrayLike) -> float:
    """Of one dubbed clip, from mouth openings (T,): as drawn, of the speech's own clip, of the source.

    1 for the truth of the speech, 0 for a network that hears nothing, -1 for a copy of the source.
    """
    return partial_correlation(drawn, speech, source) - partial_correlation(drawn, source, speech)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over clips with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.n}"


def mean_of(values: Sequence[float], *, seed: int = 0) -> Mean:
    """Over clips; with fewer than two, or all alike, the interval is the mean itself."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Mean(mean, mean, mean, len(values))
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = found.confidence_interval
    return Mean(mean, float(interval.low), float(interval.high), len(values))
