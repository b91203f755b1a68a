"""How open a mouth is while it talks, and how a head sways: curves over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from stages.synth.spec import Floats

Curve = Callable[[ArrayLike], Floats]
MARGIN_S = 1.0  # the curve goes on before and after the clip, so that shifted sound has no seam


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def speech_opening(rng: np.random.Generator, *, seconds: float) -> Curve:
    """How open the mouth is at a time in seconds, in [0, 1].

    3-5 syllables a second of random length and height, with pauses, so that it resembles itself at
    no lag but 0. Defined on [-MARGIN_S, seconds + MARGIN_S].
    """
    times, heights = [-MARGIN_S - 1.0], [0.0]

    def knot(after_s: float, height: float) -> None:
        times.append(times[-1] + after_s)
        heights.append(height)

    while times[-1] < seconds + MARGIN_S + 0.1:
        syllable_s = rng.uniform(0.2, 0.33)
        rise = rng.uniform(0.4, 0.6)
        knot(syllable_s * rise, rng.uniform(0.45, 1.0))
        pauses = rng.random() < 0.15
        knot(syllable_s * (1 - rise), 0.0 if pauses else rng.uniform(0.0, 0.25))
        if pauses:
            knot(rng.uniform(0.12, 0.35), 0.0)
    curve = PchipInterpolator(times, heights)  # no overshoot: stays in [0, 1]
    return lambda t: np.asarray(curve(np.asarray(t, dtype=np.float64)))


def slow_curve(rng: np.random.Generator, *, low_hz: float, high_hz: float) -> Curve:
    """A smooth wandering in [-1, 1], of three sines."""
    hz = rng.uniform(low_hz, high_hz, 3)
    phase = rng.uniform(0, 2 * np.pi, 3)
    return lambda t: np.sin(2 * np.pi * np.multiply.outer(np.asarray(t), hz) + phase).mean(axis=-1)
