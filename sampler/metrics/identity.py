"""Whether the drawn face stays the person's: the colour of the skin round the lips, against the first frame.

Drawn frame after frame, a face may drift: paler, redder, smeared. The lips may move as they like, so they do
not count: the box is cut into 4 by 4 cells, and only the 12 at its rim (cheeks, jaw, chin) are compared.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sampler.metrics.pixels import Boxes, Frames, Series, boxed

CELLS = 4  # along each side of the box
EDGE = 10  # frames at either end that drift is told from


def appearance(picture: Frames) -> NDArray[np.float32]:
    """Mean colour of each cell of the rim, CIE L*a*b*: (12, 3)."""
    cells = cv2.resize(picture.astype(np.float32) / 255, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    rim = np.ones((CELLS, CELLS), bool)
    rim[1:-1, 1:-1] = False
    return np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2LAB)[rim])


def identity_distances(drawn: Frames, identity: Frames, boxes: Boxes) -> Series:
    """How far each frame's rim is from that of the identity frame (H, W, 3): (T,), mean ΔE*ab (CIE 1976).

    About 2 can just be seen. The truth has some too: heads turn in the light.
    """
    x0, y0, x1, y1 = boxes[0].tolist()
    own = appearance(identity[y0:y1, x0:x1])
    return np.array([
        np.linalg.norm(appearance(picture) - own, axis=-1).mean() for picture in boxed(drawn, boxes)
    ])  # fmt: skip


def drift(distances: Series) -> float:
    """How much farther the last frames are than the first, ten at either end or as many as half of them;
    nan below two frames."""
    n_frames = min(EDGE, len(distances) // 2)
    if not n_frames:
        return float("nan")
    return float(distances[-n_frames:].mean() - distances[:n_frames].mean())
