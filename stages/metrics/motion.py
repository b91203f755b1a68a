"""Temporal smoothness compared with the ground truth: it detects flicker, which single frames do not show."""

from __future__ import annotations

import numpy as np

from shards.schema import Frames
from stages.metrics.pixels import Boxes


def second_difference(frames: Frames, boxes: Boxes) -> float:
    """Mean |x[k-1] - 2 x[k] + x[k+1]| over the pixels of frame k's box, k = 1 .. T-2; nan below three frames.

    The second difference in time: zero for a steady motion or fade, large for flicker.
    """
    means = []
    for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()[1:-1], start=1):
        before, here, after = frames[k - 1 : k + 2, y0:y1, x0:x1].astype(np.int16)
        means.append(np.abs(before - 2 * here + after).mean())
    return float(np.mean(means)) if means else float("nan")


def smoothness(generated: Frames, truth: Frames, boxes: Boxes) -> float:
    """Second difference in the box over that of the ground truth.

    1 is as smooth as the ground truth, above 1 flickers, near 0 stands still; nan when the ground truth
    itself does not move.
    """
    reference = second_difference(truth, boxes)
    return second_difference(generated, boxes) / reference if reference > 0 else float("nan")
