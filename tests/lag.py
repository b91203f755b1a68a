"""Measures by how much audio lags behind the mouth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from stages.synth.spec import Floats

LAG_STEP_S = 0.002
MIN_OVERLAP_S = 0.5


def measure_lag_seconds(
    opening: ArrayLike,
    opening_times_s: ArrayLike,
    loudness: ArrayLike,
    loudness_times_s: ArrayLike,
    *,
    max_lag_s: float = 0.4,
) -> float:
    """Lag of the loudness behind the mouth opening in seconds; negative if the loudness comes first.

    Each signal has its own times, which may be uneven. Cubic splines resample both to a grid of
    LAG_STEP_S. The lag is where Pearson's correlation over the overlap is highest, refined with a
    parabola. For 2.4 s of ``make_opening_curve`` sampled at 25 and 50 Hz, with lags within 200 ms, the
    error is below 0.5 ms; it is below 5 ms with noise of 0.05 in the opening, or with openings from
    MediaPipe's landmarks. Loudness should be in dB. Raises ValueError if there is no clear maximum.
    """
    opening_grid, opening_start = _resample(opening, opening_times_s, "opening")
    loudness_grid, loudness_start = _resample(loudness, loudness_times_s, "loudness")
    n_max, min_overlap = round(max_lag_s / LAG_STEP_S), round(MIN_OVERLAP_S / LAG_STEP_S)
    lags = np.arange(-n_max, n_max + 1)
    scores = np.full(len(lags), -np.inf)
    for i, lag in enumerate(lags):
        # opening_grid[k] is compared with loudness_grid[k + shift], the loudness moved back by the lag
        shift = opening_start - loudness_start + int(lag)
        first, last = max(0, -shift), min(len(opening_grid), len(loudness_grid) - shift)
        if last - first >= min_overlap:
            a, b = opening_grid[first:last], loudness_grid[first + shift : last + shift]
            a, b = a - a.mean(), b - b.mean()
            scores[i] = a @ b / max(float(np.sqrt((a @ a) * (b @ b))), 1e-12)
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        raise ValueError(f"opening and loudness have less than {MIN_OVERLAP_S} s in common")
    if best in (0, len(lags) - 1) or not np.isfinite(scores[best - 1 : best + 2]).all():
        raise ValueError(f"no lag within {max_lag_s} s stands out")
    before, peak, after = scores[best - 1 : best + 2]
    curvature = before - 2 * peak + after
    fraction = 0.0 if curvature == 0 else 0.5 * float(before - after) / float(curvature)
    return (float(lags[best]) + fraction) * LAG_STEP_S


def _resample(values: ArrayLike, times_s: ArrayLike, name: str) -> tuple[Floats, int]:
    """The signal at integer multiples of LAG_STEP_S, and the index of the first multiple."""
    values, times_s = np.asarray(values, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    if values.shape != times_s.shape or values.ndim != 1 or len(values) < 4:
        raise ValueError(
            f"{name}: values {values.shape} and times {times_s.shape}, expected two equal vectors of at "
            f"least 4 elements"
        )
    if not (np.diff(times_s) > 0).all() or not np.isfinite(values).all():
        raise ValueError(f"{name}: times must increase and values must be finite")
    first, last = int(np.ceil(times_s[0] / LAG_STEP_S)), int(np.floor(times_s[-1] / LAG_STEP_S))
    return np.asarray(CubicSpline(times_s, values)(np.arange(first, last + 1) * LAG_STEP_S)), first
