"""Whether what was drawn moves as smoothly as the truth does: flicker is what single frames do not show."""

from __future__ import annotations

import numpy as np

from stages.evaluate.metrics.pixels import Boxes, Frames


def unrest(frames: Frames, boxes: Boxes) -> float:
    """Mean |x[k-1] - 2 x[k] + x[k+1]| over the pixels of frame k's box, k = 1 .. T-2; nan below three frames.

    The second difference in time: an even motion or fade has none of it, flicker nothing else.
    """
    told = []
    for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()[1:-1], start=1):
        before, here, after = frames[k - 1 : k + 2, y0:y1, x0:x1].astype(np.int16)
        told.append(np.abs(before - 2 * here + after).mean())
    return float(np.mean(told)) if told else float("nan")


def smoothness(drawn: Frames, truth: Frames, boxes: Boxes) -> float:
    """Unrest in the box over the truth's own: 1 as smooth as the truth, above it flickers, near 0 stands
    still; nan where the truth is still itself."""
    own = unrest(truth, boxes)
    return unrest(drawn, boxes) / own if own > 0 else float("nan")
