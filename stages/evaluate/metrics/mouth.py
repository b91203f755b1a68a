"""What the mouth does, from landmarks: how open it is, where it is, and whether it keeps time with the truth.

Frames without a face are nan and take part in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.evaluate.metrics.pixels import Series

MAX_LAG = 10  # frames, 0.4 s


@dataclass(frozen=True, slots=True)
class Mouths:
    """Landmarks of T frames, px; nan where no face was found."""

    lips: NDArray[np.float32]  # (T, L, 2): the upper lip's inner middle, the lower's, then all others
    pupils: NDArray[np.float32]  # (T, 2, 2)

    def __getitem__(self, cut: slice) -> Mouths:
        return Mouths(self.lips[cut], self.pupils[cut])

    def __len__(self) -> int:
        return len(self.lips)


def pupils_distance(mouths: Mouths) -> Series:
    """Between the pupils, px: (T,)."""
    return np.asarray(np.linalg.norm(mouths.pupils[:, 0] - mouths.pupils[:, 1], axis=-1), np.float64)


def openings(mouths: Mouths) -> Series:
    """Lips apart, in units of the pupils' distance: (T,)."""
    apart = np.asarray(np.linalg.norm(mouths.lips[:, 0] - mouths.lips[:, 1], axis=-1), np.float64)
    return np.asarray(apart / pupils_distance(mouths))


@dataclass(frozen=True, slots=True)
class MouthDistance:
    """How far a mouth's landmarks are from the truth's; nan where no frame has both."""

    px: float
    pupils: float  # in units of the truth's pupils' distance


def mouth_distance(drawn: Mouths, truth: Mouths) -> MouthDistance:
    """Mean over frames and landmarks. Nothing is aligned first: in a crop that is, a mouth in the wrong place
    is wrong."""
    px = np.asarray(np.linalg.norm(drawn.lips - truth.lips, axis=-1).mean(axis=-1), np.float64)
    both = np.isfinite(px)
    if not both.any():
        return MouthDistance(float("nan"), float("nan"))
    return MouthDistance(float(px[both].mean()), float((px[both] / pupils_distance(truth)[both]).mean()))


def seen(*series: Series) -> list[Series]:
    """The frames in which none of the series (T,) is nan."""
    there = np.isfinite(series).all(axis=0)
    return [values[there] for values in series]


def correlation(a: Series, b: Series) -> float:
    """Pearson's, over the frames that both have; nan where one stands still or fewer than three are left."""
    a, b = seen(a, b)
    if len(a) < 3 or not np.ptp(a) or not np.ptp(b):
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def lag_frames(drawn: Series, truth: Series) -> float:
    """By how many frames the drawn mouth comes after the true one: where their correlation is greatest.

    Positive is late: drawn[k + lag] goes with truth[k]. Looked for within MAX_LAG, or half of the clip; of
    equals the smallest. nan where no lag has a correlation.
    """
    most = min(MAX_LAG, len(truth) // 2)
    scores = {lag: _shifted(drawn, truth, lag) for lag in sorted(range(-most, most + 1), key=abs)}
    known = {lag: score for lag, score in scores.items() if np.isfinite(score)}
    return float(max(known, key=lambda lag: known[lag])) if known else float("nan")


def _shifted(drawn: Series, truth: Series, lag: int) -> float:
    """Their correlation when the drawn one is taken ``lag`` frames later."""
    n_frames = len(truth)
    late, early = max(lag, 0), max(-lag, 0)
    return correlation(drawn[late : n_frames - early], truth[early : n_frames - late])
