"""Does the mouth of a video say what is heard in it, and at the same time?

A network that is adapted to a dubbed or late video learns a mouth that is wrong. So a lag is corrected, as in
cutting, and a voice that is not the mouth's is warned of. The score is that of `stages.cut.speaker`, of all
clips together, since they are of one person and one recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from shards.schema import VIDEO_FPS, Frame, Frames
from stages.cut.params import ThresholdParams
from stages.cut.speaker import SpeakerScore, SyncCurve, measure_curve, score_curve
from stages.media.faces import Points
from stages.metrics.mouth import openings
from stages.metrics.mouth_finder import find_mouths
from stages.metrics.sync import Prediction


def score_clips(
    clips: Iterable[tuple[int, Frames]],
    prediction: Prediction,
    find_faces: Callable[[Frame], list[Points]],
) -> SpeakerScore | None:
    """Score clips of one video together: the row of ``prediction`` at which each begins, and its crops.

    ``prediction`` is what ``predict_mouth`` hears in the video's sound. None where the mouth is not seen for
    a second in any clip, or never moves.
    """
    curves = [
        measure_curve(openings(find_mouths(frames, find_faces)), prediction, at) for at, frames in clips
    ]
    known = [curve for curve in curves if curve is not None]
    return score_curve(_join_curves(known)) if known else None


def _join_curves(curves: Sequence[SyncCurve]) -> SyncCurve:
    """The curve of all clips as if they were one, each weighted by its frames."""
    weights = [curve.n_frames for curve in curves]
    correlations = np.average([curve.correlations for curve in curves], axis=0, weights=weights)
    return SyncCurve(correlations, sum(weights))


def find_lag(score: SpeakerScore, thresholds: ThresholdParams) -> int:
    """Frames by which the mouth is late, negative where the sound is; 0 if the voice is not the mouth's."""
    return score.lag if score.confidence >= thresholds.min_sync_confidence else 0


def describe_sync(score: SpeakerScore, thresholds: ThresholdParams) -> str | None:
    """One line for the user about a voice that is not the mouth's, or a lag that is corrected, if any."""
    limit = thresholds.min_sync_confidence
    if score.confidence < limit:
        return (
            f"the mouth hardly follows the voice (sync confidence {score.confidence:.2f}, expected {limit:g} "
            "or more): a dubbed video, or a voice-over, teaches a wrong mouth"
        )
    if not score.lag:
        return None
    which, moved = ("sound", "earlier") if score.lag < 0 else ("picture", "later")
    late = f"{abs(score.lag) / VIDEO_FPS:.2f} s"
    return f"the {which} is {late} late: the model learns from sound that is moved {late} {moved}"
