"""The level that is 0 dB at each row of a sound, where it follows the sound: that of some seconds around it.

In a long recording the same words keep their level by it (docs/dataset.md). In a pause longer than the window
it falls, so the pause seems louder than it is; ``restore_levels`` finds what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

RESTORED_DB = 0.1  # levels are restored when no row changes by more


@dataclass(frozen=True, slots=True)
class Reference:
    """How the level that is 0 dB follows the sound."""

    window_rows: int  # around a row; a recording that is not longer has one level, its loudest cell's
    max_boost_db: float  # how far it may fall below the loudest cell of the recording


def compute_reference(loudest: NDArray[np.float32], reference: Reference) -> NDArray[np.float32]:
    """The level that is 0 dB at each row, (R,) dB, from the loudest cell of each row (R,).

    The loudest of the window around a row (at the ends, of the first or last whole window), smoothed over
    half a window. It is never lower than the row's own loudest cell. R is longer than the window.
    """
    n_rows, window = len(loudest), reference.window_rows
    maxima = sliding_window_view(loudest, window).max(axis=-1)
    around = maxima[np.clip(np.arange(n_rows) - window // 2, 0, len(maxima) - 1)]
    radius = window // 4
    means = sliding_window_view(np.pad(around, radius, mode="edge"), 2 * radius + 1).mean(axis=-1)
    level: NDArray[np.float32] = np.maximum(means, loudest.max() - reference.max_boost_db)
    return level.astype(np.float32)


def restore_levels(mels: NDArray[np.float32], reference: Reference) -> NDArray[np.float32]:
    """The level that was 0 dB at each row of mels (R, M), in dB below the loudest one's: (R,), 0 or less.

    Rows plus this are what mels are without a reference that follows the sound. Sounds of several levels can
    have the same mels, as steady noise of any level; of those this is the loudest.
    """
    loudest = mels.max(axis=1)
    level = np.zeros(len(mels), np.float32)
    if len(level) <= reference.window_rows:
        return level
    # Quieter sound has a lower reference, which makes the sound quieter still: from the loudest that there
    # can be down to the first level that explains the mels. Each round but the last lowers some row.
    while True:
        lower = np.minimum(compute_reference(loudest + level, reference), level)
        if (level - lower).max() <= RESTORED_DB:
            return lower
        level = lower
