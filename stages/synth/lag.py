"""How much later a sound comes than the mouth that makes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

from stages.synth.spec import Floats, SynthError

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
    """How much later the loudness comes than the opening; negative when it comes first.

    Each signal has its own, perhaps uneven, times. Both go by cubic splines onto one grid of
    LAG_STEP_S; the lag is where Pearson's correlation over their overlap is highest, refined by a
    parabola. On 2.4 s of `speech_opening` seen at 25 and 50 a second, with lags within 200 ms, it is
    good to 0.5 ms; to 5 ms with noise of 0.05 in the opening, or with the opening of MediaPipe's
    landmarks. Loudness should be in dB.
    """
    seen, seen_start = _on_grid(opening, opening_times_s, "opening")
    heard, heard_start = _on_grid(loudness, loudness_times_s, "loudness")
    n_max, n_least = round(max_lag_s / LAG_STEP_S), round(MIN_OVERLAP_S / LAG_STEP_S)
    lags = np.arange(-n_max, n_max + 1)
    scores = np.full(len(lags), -np.inf)
    for i, lag in enumerate(lags):
        # seen[a] meets heard[a + shift] once the loudness is moved back by the lag
        shift = seen_start - heard_start + int(lag)
        first, last = max(0, -shift), min(len(seen), len(heard) - shift)
        if last - first >= n_least:
            a, b = seen[first:last], heard[first + shift : last + shift]
            a, b = a - a.mean(), b - b.mean()
            scores[i] = a @ b / max(float(np.sqrt((a @ a) * (b @ b))), 1e-12)
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        raise SynthError(f"opening and loudness have less than {MIN_OVERLAP_S} s in common")
    if best in (0, len(lags) - 1) or not np.isfinite(scores[best - 1 : best + 2]).all():
        raise SynthError(f"no lag within {max_lag_s} s stands out")
    before, peak, after = scores[best - 1 : best + 2]
    curvature = before - 2 * peak + after
    bend = 0.0 if curvature == 0 else 0.5 * float(before - after) / float(curvature)
    return (float(lags[best]) + bend) * LAG_STEP_S


def _on_grid(values: ArrayLike, times_s: ArrayLike, name: str) -> tuple[Floats, int]:
    """The signal at whole multiples of LAG_STEP_S, and which multiple is the first."""
    values, times_s = np.asarray(values, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    if values.shape != times_s.shape or values.ndim != 1 or len(values) < 4:
        raise SynthError(
            f"{name}: {values.shape} values at {times_s.shape} times, need two rows of 4 or more"
        )
    if not (np.diff(times_s) > 0).all() or not np.isfinite(values).all():
        raise SynthError(f"{name}: times must rise and values be finite")
    first, last = int(np.ceil(times_s[0] / LAG_STEP_S)), int(np.floor(times_s[-1] / LAG_STEP_S))
    return np.asarray(CubicSpline(times_s, values)(np.arange(first, last + 1) * LAG_STEP_S)), first
