"""Does the mouth rest while nothing is said? Silence is found in the mels of the speech.

The rule was checked on GRID, whose alignments mark silence: it finds 95 % of the frames marked ``sil``, and
92 % of the frames that it finds are marked (103 clips that it was not chosen on). A true mouth moves an
eighth as much there as elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.schema import MELS_PER_FRAME, VIDEO_FPS
from stages.media.reference import Reference, restore_levels
from stages.media.stretches import find_stretches
from stages.metrics.pixels import Series

LOUD_PERCENTILE = 95  # of a clip's levels by frame: its speech, whatever single peaks it has
SILENT_DB = 22.0  # below that level; GRID's pauses are 30 dB below it, in the median
MIN_RUN_FRAMES = 5  # 0.2 s: the closure before a p or t is shorter, and the mouth moves in it


def find_silent_frames(mels: NDArray[np.float32], reference: Reference | None = None) -> NDArray[np.bool_]:
    """Whether nothing is said in each frame: mels (2T, M) in dB -> (T,).

    A frame is silent when its mean level over bands is SILENT_DB below the clip's loud level, in a run of at
    least MIN_RUN_FRAMES such frames. Relative to the clip's own speech, because mels are in dB below a cell
    that one peak sets. ``reference``: what 0 dB is, if it follows the sound; then a long pause is louder in
    the mels than it was.
    """
    if reference is not None:
        mels = mels + restore_levels(mels, reference)[:, None]
    levels = mels.reshape(-1, MELS_PER_FRAME * mels.shape[1]).mean(axis=1)
    return _keep_long_runs(levels < np.percentile(levels, LOUD_PERCENTILE) - SILENT_DB)


def _keep_long_runs(is_quiet: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same flags, without runs that are shorter than MIN_RUN_FRAMES."""
    is_silent = np.zeros_like(is_quiet)
    for start, stop in find_stretches(is_quiet):
        is_silent[start:stop] = stop - start >= MIN_RUN_FRAMES
    return is_silent


def measure_silent_motion(openings: Series, truth: Series, is_silent: NDArray[np.bool_]) -> float:
    """Mean absolute change of a mouth opening (T,) while nothing is said, in units of the opening per second.

    Over the steps between two silent frames for which the opening and ``truth`` are both known, so that a
    generated mouth and the true one are measured in the same frames. nan when there is no such step.
    """
    steps = np.abs(np.diff(openings))
    is_measured = is_silent[1:] & is_silent[:-1] & np.isfinite(steps) & np.isfinite(np.diff(truth))
    return VIDEO_FPS * float(steps[is_measured].mean()) if is_measured.any() else float("nan")
