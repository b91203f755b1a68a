"""Pauses of a speech: where nothing is said, found in its mels, and what a network hears of them.

The rule was checked on GRID, whose alignments mark silence: it finds 95 % of the frames marked ``sil``, and
92 % of the frames that it finds are marked (103 clips that it was not chosen on).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.schema import MELS_PER_FRAME
from stages.media.reference import Reference, restore_levels
from stages.media.stretches import find_stretches

LOUD_PERCENTILE = 95  # of a clip's levels by frame: its speech, whatever single peaks it has
SILENT_DB = 22.0  # below that level; GRID's pauses are 30 dB below it, in the median
MIN_RUN_FRAMES = 5  # 0.2 s: the closure before a p or t is shorter, and the mouth moves in it
# At each end of a pause: a mouth opens before its sound begins, and closes after it.
EDGE_FRAMES = 2


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


def flatten_pauses(
    mels: NDArray[np.float32], speech: NDArray[np.float16] | None, reference: Reference | None
) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
    """Mels (2T, M) and speech features (2T, D) whose rows within a pause are all the pause's mean.

    Breath and noise change these rows, and speech features most of all, so that a network moves the mouth
    while nothing is said. The first and last EDGE_FRAMES of a pause stay as they are. ``reference``: as in
    ``find_silent_frames``. The arrays that are given do not change.
    """
    arrays = [mels.copy(), None if speech is None else speech.copy()]
    for first, end in find_stretches(find_silent_frames(mels, reference)):
        rows = slice(MELS_PER_FRAME * (first + EDGE_FRAMES), MELS_PER_FRAME * (end - EDGE_FRAMES))
        for array in arrays:
            if array is not None:
                array[rows] = array[rows].mean(axis=0, dtype=np.float32)
    return arrays[0], arrays[1]
