"""Which face speaks, how sure that is, and by how many frames its mouth is late.

A mouth's opening and its change are correlated with those that `stages.metrics.sync` hears, at each
lag of up to 0.6 s either way. The speaker's mouth has one high peak. Clips of one file mostly share a lag, so
each clip's peak counts for the others: `pool_lags` makes them. docs/cutting.md has the
figures; the constants are from the clips that they were measured on, the predictor's weights are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from stages.metrics.sync import MAX_LAG, Prediction, describe_motion

Floats = NDArray[np.float64]

LAGS = np.arange(-MAX_LAG, MAX_LAG + 1)  # frames
MIN_FRAMES = 25  # that a correlation needs
WEIGHTS = np.array([0.4, 0.6])  # of the opening and of its change, in a correlation
# Movements smaller than these are noise: they shrink the correlations of a face that hardly moves, and of a
# sound in which the predictor hears no speech.
SEEN_NOISE = np.array([0.006, 0.004])  # pupil distances; and their change per frame
HEARD_NOISE = 0.2  # of the deviation of a speaking mouth
# So many frames are worth one that is independent of the others, for a correlation of either.
FRAMES_EACH = np.array([8.0, 4.0])
LIKELY_LAG = 3.0  # frames, standard deviation, of most files
SHARE_LIKELY = 0.8  # of the files; others have any lag
COST = 0.05  # correlation that an e times less probable lag costs a confidence
MAX_COST = 0.2  # correlation
CHANCE = 2.0  # half of all foreign voices correlate more than this over the root of the number of frames
FILE_WEIGHT = 0.4  # of what is known of lags of files, beside clips that each weigh as their confidence
N_ROUNDS = 6  # in which clips of a file learn from each other


@dataclass(frozen=True, slots=True)
class SyncCurve:
    """How a mouth correlates with a voice at each lag."""

    correlations: Floats  # (2, len(LAGS)): of the mouth's opening and of its change
    n_frames: int  # that have a face and are heard


@dataclass(frozen=True, slots=True)
class SpeakerScore:
    """How well a mouth fits a voice."""

    confidence: float  # correlation above chance: 0 is what half of all foreign voices reach, 0.7 the most
    lag: int  # frames by which the mouth is late; negative: the sound is
    correlation: float  # at this lag


def measure_curve(openings: ArrayLike, prediction: Prediction, first: int) -> SyncCurve | None:
    """Correlate a mouth's openings (T,), nan where no face is, with what ``predict_mouth`` hears in a file.

    ``first`` is the row of ``prediction`` (N, 2) that belongs to the first opening. The file's first and last
    row stand for those beyond its ends; rows that nobody heard are nan. None when fewer than MIN_FRAMES
    frames have a face and are heard, or the mouth never moves.
    """
    values = np.asarray(openings, np.float64)
    seen = describe_motion(np.where(np.isfinite(values), values, np.nan))
    if not len(seen) or not len(prediction):
        return None
    rows = np.arange(first - MAX_LAG, first + len(seen) + MAX_LAG)
    heard = np.asarray(prediction, np.float64)[np.clip(rows, 0, len(prediction) - 1)]
    # A mouth that is late by k frames shows now what was heard k rows ago: the last window is lag -MAX_LAG's.
    windows = sliding_window_view(heard, len(seen), axis=0)[::-1]
    there = np.isfinite(seen[:, 0])
    n_frames = int((there & np.isfinite(windows[MAX_LAG, 0])).sum())
    if n_frames < MIN_FRAMES or not np.ptp(seen[there, 0]):
        return None
    pairs = [
        correlate_windows(seen[:, column], windows[:, column], SEEN_NOISE[column]) for column in range(2)
    ]
    return SyncCurve(np.stack(pairs), n_frames)


def correlate_windows(seen: Floats, windows: Floats, noise: float) -> Floats:
    """Correlations of (T,) with each of (L, T), (L,), less the share that noise has; 0 for too few frames."""
    both = np.isfinite(windows) & np.isfinite(seen)
    count = both.sum(axis=1)
    total = np.maximum(count, 1)
    a = np.where(both, seen, 0)
    b = np.where(both, windows, 0)
    a = np.where(both, a - (a.sum(axis=1) / total)[:, None], 0)
    b = np.where(both, b - (b.sum(axis=1) / total)[:, None], 0)
    power = ((a**2).sum(axis=1) + count * noise**2) * ((b**2).sum(axis=1) + count * HEARD_NOISE**2)
    return np.where(count >= MIN_FRAMES, (a * b).sum(axis=1) / np.sqrt(np.maximum(power, 1e-30)), 0)


def guess_lags() -> Floats:
    """The probability of each lag in a file of which nothing is known, (len(LAGS),)."""
    near = np.exp(-0.5 * (LAGS / LIKELY_LAG) ** 2)
    probabilities: Floats = SHARE_LIKELY * near / near.sum() + (1 - SHARE_LIKELY) / len(LAGS)
    return probabilities


def weigh_lags(curve: SyncCurve) -> Floats:
    """The evidence for each lag, nats above none: (len(LAGS),)."""
    r = np.clip(curve.correlations, 0, 0.99)
    return np.asarray((-0.5 * curve.n_frames / FRAMES_EACH[:, None] * np.log(1 - r**2)).sum(axis=0))


def score_curve(curve: SyncCurve, probabilities: Floats | None = None) -> SpeakerScore:
    """The most probable lag and its score, given the ``probabilities`` of lags in the file (len(LAGS),)."""
    expected = np.log(guess_lags() if probabilities is None else probabilities)
    best = int(np.argmax(weigh_lags(curve) + expected))
    correlation = float(WEIGHTS @ curve.correlations[:, best])
    cost = min(COST * float(expected.max() - expected[best]), MAX_COST)
    return SpeakerScore(
        confidence=correlation - cost - CHANCE / np.sqrt(curve.n_frames),
        lag=int(LAGS[best]),
        correlation=correlation,
    )


def choose_speaker(curves: Sequence[SyncCurve | None]) -> tuple[int, SpeakerScore] | None:
    """The place of the face that fits the voice best, and its score; None when no face has a curve."""
    scores = {i: score_curve(curve) for i, curve in enumerate(curves) if curve is not None}
    if not scores:
        return None
    best = max(scores, key=lambda i: scores[i].confidence)
    return best, scores[best]


def pool_lags(curves: Sequence[SyncCurve]) -> list[Floats]:
    """The probabilities of lags for each clip of a file, (len(LAGS),), by what all the other clips show.

    A file whose scenes have lags of their own gets several probable ones.
    """
    guess = guess_lags()
    evidence = np.array([weigh_lags(curve) for curve in curves]).reshape(-1, len(LAGS))
    probabilities = np.tile(guess, (len(curves), 1))
    for _ in range(N_ROUNDS):
        scores = [score_curve(curve, row) for curve, row in zip(curves, probabilities, strict=True)]
        weights = np.array([max(score.confidence, 0.0) for score in scores])
        logs = evidence + np.log(probabilities)
        votes = np.exp(logs - logs.max(axis=1, keepdims=True, initial=-np.inf))
        votes *= (weights / votes.sum(axis=1))[:, None]
        others = FILE_WEIGHT * guess + votes.sum(axis=0) - votes
        probabilities = others / others.sum(axis=1, keepdims=True)
    return list(probabilities)
