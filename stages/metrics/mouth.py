"""Mouth metrics from landmarks: opening, position, and synchrony with the ground truth.

Frames without a face are nan and are left out of every metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.metrics.pixels import Series

MAX_LAG = 10  # frames, 0.4 s


@dataclass(frozen=True, slots=True)
class Mouths:
    """Landmarks of T frames, px; nan where no face was found."""

    lips: NDArray[np.float32]  # (T, L, 2): inner middle of the upper lip, that of the lower, then all others
    pupils: NDArray[np.float32]  # (T, 2, 2)

    def __getitem__(self, frames: slice) -> Mouths:
        return Mouths(self.lips[frames], self.pupils[frames])

    def __len__(self) -> int:
        return len(self.lips)


def pupil_distance(mouths: Mouths) -> Series:
    """Distance between the pupils, px: (T,)."""
    return np.asarray(np.linalg.norm(mouths.pupils[:, 0] - mouths.pupils[:, 1], axis=-1), np.float64)


def openings(mouths: Mouths) -> Series:
    """Distance between the inner lips, in units of the pupil distance: (T,)."""
    lip_distance = np.asarray(np.linalg.norm(mouths.lips[:, 0] - mouths.lips[:, 1], axis=-1), np.float64)
    return np.asarray(lip_distance / pupil_distance(mouths))


@dataclass(frozen=True, slots=True)
class MouthDistance:
    """Distance of a mouth's landmarks from the ground truth's; nan where no frame has both."""

    px: float
    pupils: float  # in units of the ground truth's pupil distance


def mouth_distance(generated: Mouths, truth: Mouths) -> MouthDistance:
    """Mean over frames and landmarks.

    The mouths are not aligned first: crops are aligned already, so a mouth in the wrong place is an error.
    """
    px = np.asarray(np.linalg.norm(generated.lips - truth.lips, axis=-1).mean(axis=-1), np.float64)
    both = np.isfinite(px)
    if not both.any():
        return MouthDistance(float("nan"), float("nan"))
    return MouthDistance(float(px[both].mean()), float((px[both] / pupil_distance(truth)[both]).mean()))


def drop_nan_frames(*series: Series) -> list[Series]:
    """The frames in which none of the series (T,) is nan."""
    finite = np.isfinite(series).all(axis=0)
    return [values[finite] for values in series]


def correlation(a: Series, b: Series) -> float:
    """Pearson correlation over the frames that both have; nan below three, or when either is constant."""
    a, b = drop_nan_frames(a, b)
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def lag_frames(generated: Series, truth: Series) -> float:
    """The lag of the generated mouth behind the ground truth, in frames, at which they correlate most.

    Positive is late: generated[k + lag] matches truth[k]. Lags up to MAX_LAG, or half of the clip, are tried;
    of equals the smallest wins. nan when no lag has a correlation.
    """
    largest = min(MAX_LAG, len(truth) // 2)
    lags = sorted(range(-largest, largest + 1), key=abs)
    scores = {lag: correlate_at_lag(generated, truth, lag) for lag in lags}
    finite = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    return float(max(finite, key=lambda lag: finite[lag])) if finite else float("nan")


def correlate_at_lag(generated: Series, truth: Series, lag: int) -> float:
    """Correlation of generated[k + lag] with truth[k], both (T,)."""
    n_frames = len(truth)
    late, early = max(lag, 0), max(-lag, 0)
    return correlation(generated[late : n_frames - early], truth[early : n_frames - late])
