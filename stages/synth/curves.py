"""Curves over time: the opening of a talking mouth, and the sway of a head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from stages.synth.spec import Floats

Curve = Callable[[ArrayLike], Floats]
MARGIN_S = 1.0  # the curve extends before and after the clip, so that shifted audio has no seam


def make_rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def make_opening_curve(rng: np.random.Generator, *, seconds: float) -> Curve:
    """The mouth opening in [0, 1] as a function of time in seconds.

    It has 3-5 syllables per second of random length and height, with pauses, so that its
    autocorrelation peaks only at lag 0. Defined on [-MARGIN_S, seconds + MARGIN_S].
    """
    times, heights = [-MARGIN_S - 1.0], [0.0]

    def add_knot(after_s: float, height: float) -> None:
        times.append(times[-1] + after_s)
        heights.append(height)

    while times[-1] < seconds + MARGIN_S + 0.1:
        syllable_s = rng.uniform(0.2, 0.33)
        rise = rng.uniform(0.4, 0.6)
        add_knot(syllable_s * rise, rng.uniform(0.45, 1.0))
        has_pause = rng.random() < 0.15
        add_knot(syllable_s * (1 - rise), 0.0 if has_pause else rng.uniform(0.0, 0.25))
        if has_pause:
            add_knot(rng.uniform(0.12, 0.35), 0.0)
    curve = PchipInterpolator(times, heights)  # no overshoot: stays in [0, 1]
    return lambda t: np.asarray(curve(np.asarray(t, dtype=np.float64)))


def make_slow_curve(rng: np.random.Generator, *, low_hz: float, high_hz: float) -> Curve:
    """A smooth random curve in [-1, 1]: the mean of three sines."""
    hz = rng.uniform(low_hz, high_hz, 3)
    phase = rng.uniform(0, 2 * np.pi, 3)
    return lambda t: np.sin(2 * np.pi * np.multiply.outer(np.asarray(t), hz) + phase).mean(axis=-1)
