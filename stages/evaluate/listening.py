"""Does a generated mouth follow the speech it was generated from? Scores that copying cannot raise.

``score_pair`` takes arrays alone, so that a training machine can score its own samples: it needs LiteRT
and OpenCV, and no codec, no corpus and no shards on a disk. ``pipeline evaluate`` has the same scores under
the same names.

    with FaceFinder(model, 1) as find_faces:
        mouths = PairMouths(find_mouths(crops, find_faces), find_mouths(speech.frames, find_faces),
                            find_mouths(truth.frames, find_faces))
    scores = score_pair(crops, truth, speech, mouths)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.schema import ClipSample, Frames
from stages.media.pauses import find_silent_frames
from stages.media.reference import Reference
from stages.metrics.border import border_distances
from stages.metrics.closure import Word, count_closed_share, find_closures
from stages.metrics.motion import smoothness
from stages.metrics.mouth import Mouths, correlation, drop_nan_frames, openings
from stages.metrics.obedience import (
    Mean,
    audio_obedience,
    bootstrap_mean,
    bootstrap_ratio,
    partial_correlation,
)
from stages.metrics.pixels import Series, score_psnr, squared_errors
from stages.metrics.silence import measure_silent_motion

MIN_OBEDIENCE_FRAMES = 10  # with a mouth in all three of the signals that obedience compares
EDGE_FRAMES = 5  # at each end of a clip, whose PSNR shows drift: 0.2 s

OBEDIENCE = ("audio_obedience", "obedience_speech", "obedience_source", "audio_obedience_net")
# Of all clips of a row together: numerator and denominator. A clip's own ratio can be anything, because the
# true mouth may stand still.
RATIOS = {"silence_ratio": ("silence_motion", "silence_motion_truth")}


@dataclass(frozen=True, slots=True)
class PairMouths:
    """The mouths of a pair: the generated one, the true one of the speech, and the true one of the frames."""

    generated: Mouths
    speech: Mouths
    source: Mouths


def score_pair(
    generated: Frames,
    truth: ClipSample,
    speech: ClipSample,
    mouths: PairMouths,
    words: Sequence[Word] | None = None,
    *,
    reference: Reference | None = None,
) -> dict[str, float]:
    """Scores by column of crops (T, S, S, 3) of the clip ``truth``, generated with the speech of ``speech``.

    ``mouths`` are those that ``find_mouths`` finds in the three; ``words`` are the speech's. ``reference``:
    what 0 dB is in the dataset's mels (``stages.mels.find_reference``), without which pauses longer than its
    window are missed. The frames that all three have are scored. A score that is not defined for the pair is
    absent: obedience needs another clip's speech, PSNR the clip's own, closure needs words.
    """
    own = truth.key == speech.key
    n_frames = min(len(generated), len(truth.frames), len(speech.frames))
    scores = score_pixels(generated[:n_frames], truth, own=own) | score_openings(
        openings(mouths.generated),
        openings(mouths.speech),
        openings(mouths.source),
        is_silent=find_silent_frames(speech.mels, reference),
        closures=None if words is None else find_closures(words),
        own=own,
    )
    return {column: score for column, score in scores.items() if np.isfinite(score)}


def score_pixels(generated: Frames, truth: ClipSample, *, own: bool) -> dict[str, float]:
    """What needs no mouths, of the frames that both have. ``own``: the clip's own speech was used.

    Of a frozen mouth (``stages.evaluate.baselines.freeze_mouth``) it is what a network must beat.
    """
    n_frames = min(len(generated), len(truth.frames))
    generated, frames, boxes = generated[:n_frames], truth.frames[:n_frames], truth.boxes[:n_frames]
    scores = {
        "smoothness_box": smoothness(generated, frames, boxes),
        "border_colour": score_border(border_distances(generated, frames, boxes)),
    }
    return scores | score_errors(squared_errors(generated, frames, boxes)) if own else scores


def score_border(distances: Series) -> float:
    """The median over the frames, of those that have a ring; nan if none has."""
    known = distances[np.isfinite(distances)]
    return float(np.median(known)) if len(known) else float("nan")


def score_errors(errors_box: Series) -> dict[str, float]:
    """PSNR in the box from the mean squared errors of frames (T,): of all, and of the first and last few."""
    return {
        "psnr_box_db": score_psnr(errors_box),
        "psnr_box_first_db": score_psnr(errors_box[:EDGE_FRAMES]),
        "psnr_box_last_db": score_psnr(errors_box[-EDGE_FRAMES:]),
    }


def score_openings(
    generated: Series,
    speech: Series,
    source: Series,
    *,
    is_silent: NDArray[np.bool_] | None,
    closures: Sequence[int] | None,
    own: bool,
) -> dict[str, float]:
    """Scores by column of a mouth opening, given the true ones of the speech and of the frames.

    ``is_silent`` and ``closures`` are the speech's, None where they are not known. nan where not defined.
    """
    n_frames = min(map(len, (generated, speech, source)))
    generated, speech, source = generated[:n_frames], speech[:n_frames], source[:n_frames]
    scores = {"opening_correlation": correlation(generated, speech)}
    if is_silent is not None:
        scores |= {
            "silence_motion": measure_silent_motion(generated, speech, is_silent[:n_frames]),
            "silence_motion_truth": measure_silent_motion(speech, generated, is_silent[:n_frames]),
        }
    if closures is not None:
        scores |= {
            "closure": count_closed_share(generated, speech, closures),
            "closure_truth": count_closed_share(speech, generated, closures),
        }
    return scores if own else scores | score_obedience(generated, speech, source)


def score_obedience(generated: Series, speech: Series, source: Series) -> dict[str, float]:
    """Audio obedience and its two terms, from openings over the frames that all three have.

    nan when too few of those frames have all three mouths. The net subtracts the absolute value of the second
    term: moving against the source is no merit.
    """
    n_frames = min(map(len, (generated, speech, source)))
    signals = drop_nan_frames(generated[:n_frames], speech[:n_frames], source[:n_frames])
    if len(signals[0]) < MIN_OBEDIENCE_FRAMES:
        return dict.fromkeys(OBEDIENCE, float("nan"))
    generated, speech, source = signals
    with_speech = partial_correlation(generated, speech, source)
    with_source = partial_correlation(generated, source, speech)
    return {
        "audio_obedience": audio_obedience(generated, speech, source),
        "obedience_speech": with_speech,
        "obedience_source": with_source,
        "audio_obedience_net": with_speech - abs(with_source),
    }


def average_scores(pairs: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """Means over pairs by column with bootstrap 95 % intervals, and the ratios of all pairs together.

    A column counts the pairs that have it; infinite PSNR is left out.
    """
    columns = dict.fromkeys(column for scores in pairs for column in scores)
    values = {column: [scores[column] for scores in pairs if np.isfinite(scores.get(column, np.nan))]
              for column in columns}  # fmt: skip
    means = {column: bootstrap_mean(each) for column, each in values.items() if each}
    for ratio, (numerator, denominator) in RATIOS.items():
        both = [scores for scores in pairs if numerator in scores and denominator in scores]
        mean = bootstrap_ratio([s[numerator] for s in both], [s[denominator] for s in both])
        if mean is not None:
            means[ratio] = mean
    return means
