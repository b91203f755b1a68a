"""A sync score without SyncNet: does the mouth that is seen say what is heard, and how late is it?

A linear predictor, fitted on people who are not scored, gives the opening of the mouth and its change from
speech features around each frame. A clip's landmarks give the same two. Both correlate most at the lag
between sound and picture, and much less anywhere else if they belong together. docs/evaluation.md has the
figures, `sync_predictor.md` beside the weights says what they were made from.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.index import get_params_section
from shards.schema import SPEECH_PER_FRAME
from stages.metrics.mouth import correlate_at_lag

WEIGHTS = Path(__file__).with_name("sync_predictor.npy")
ENCODER = "whisper-tiny.en"  # whose features it hears
N_FEATURES = 384  # in a row of them
# Rows of features, from a frame's first one, that the predictor hears: 0.16 s either way.
OFFSETS = tuple(range(-8, 9, 2))
MAX_LAG = 15  # frames, 0.6 s, as SyncNet's scripts have it
MIN_OVERLAP = 12  # frames at every lag; correlations of fewer are high by chance

Prediction = NDArray[np.float32]  # (T, 2): the mouth's opening and its change, in units of their own


@dataclass(frozen=True, slots=True)
class SyncScore:
    """How well a mouth fits a speech."""

    confidence: float  # the greatest correlation less the median over lags
    lag: int  # frames by which the mouth is late; negative: the sound is
    correlation: float  # without a lag


@functools.cache
def load_predictor() -> NDArray[np.float32]:
    """The weights, (len(OFFSETS), N_FEATURES, 2)."""
    weights: NDArray[np.float32] = np.load(WEIGHTS, allow_pickle=False).astype(np.float32)
    assert weights.shape == (len(OFFSETS), N_FEATURES, 2), weights.shape
    return weights


def has_features(manifest: Mapping[str, Any]) -> bool:
    """Whether a dataset's speech features are those that the predictor hears."""
    return get_params_section(manifest, "speech").get("encoder") == ENCODER


def predict_mouth(speech: NDArray[np.float16], weights: NDArray[np.float32] | None = None) -> Prediction:
    """Speech features (2T, 384) -> what the mouth does, (T, 2). Other ``weights`` than ours for a new fit."""
    weights = load_predictor() if weights is None else weights
    prediction: Prediction = np.einsum("tof,ofc->tc", stack_windows(speech), weights, optimize=True)
    return prediction


def stack_windows(speech: NDArray[np.float16]) -> NDArray[np.float32]:
    """The rows that the predictor hears at each frame: (2T, D) -> (T, len(OFFSETS), D).

    The first and the last row stand for those beyond the ends.
    """
    n_frames = len(speech) // SPEECH_PER_FRAME
    rows = SPEECH_PER_FRAME * np.arange(n_frames)[:, None] + np.array(OFFSETS)
    windows: NDArray[np.float32] = speech[np.clip(rows, 0, len(speech) - 1)].astype(np.float32)
    return windows


def describe_motion(openings: ArrayLike) -> NDArray[np.float64]:
    """A mouth's opening (T,) -> it and its change per frame, (T, 2); nan beside frames without one."""
    values = np.asarray(openings, np.float64)
    change = np.gradient(values) if len(values) > 1 else np.zeros_like(values)
    return np.stack([values, change], axis=1)


def score_sync(openings: ArrayLike, prediction: Prediction) -> SyncScore | None:
    """Score a mouth's openings (T,) against what ``predict_mouth`` hears; nan where no face was found.

    None when there are too few frames, or the mouth never moves.
    """
    n_frames = min(len(np.asarray(openings)), len(prediction))
    seen, heard = describe_motion(openings)[:n_frames], prediction[:n_frames]
    if n_frames < MIN_OVERLAP + MAX_LAG:  # fewer lags would have a higher median, and not compare
        return None
    lags = range(-MAX_LAG, MAX_LAG + 1)
    pairs = [(seen[:, column], heard[:, column].astype(np.float64)) for column in range(2)]
    curve = np.array([np.mean([correlate_at_lag(*pair, lag) for pair in pairs]) for lag in lags])
    if not np.isfinite(curve).all():
        return None
    best = int(np.argmax(curve))
    return SyncScore(float(curve[best] - np.median(curve)), lags[best], float(curve[MAX_LAG]))
