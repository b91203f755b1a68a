"""Does the mouth rest while nothing is said? A true mouth moves an eighth as much there as elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.metrics.pixels import Series


def measure_silent_motion(openings: Series, truth: Series, is_silent: NDArray[np.bool_]) -> float:
    """Mean absolute change of a mouth opening (T,) while nothing is said, in units of the opening per second.

    Over the steps between two silent frames for which the opening and ``truth`` are both known, so that a
    generated mouth and the true one are measured in the same frames. nan when there is no such step.
    """
    steps = np.abs(np.diff(openings))
    is_measured = is_silent[1:] & is_silent[:-1] & np.isfinite(steps) & np.isfinite(np.diff(truth))
    return VIDEO_FPS * float(steps[is_measured].mean()) if is_measured.any() else float("nan")
