"""Whether the drawn face stays the person's: the colour of the skin round the lips, against the first frame.

Drawn frame after frame, a face may drift: paler, redder, smeared. The lips may move as they like, so they do
not count: the box is cut into 4 by 4 cells, and only the 12 at its rim (cheeks, jaw, chin) are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from stages.evaluate.metrics.pixels import Boxes, Frames, Series, boxed

CELLS = 4  # along each side of the box
RIM = np.pad(np.zeros((CELLS - 2, CELLS - 2), bool), 1, constant_values=True)
EDGE = 10  # frames at either end that drift is told from


def appearances(pictures: Iterable[Frames]) -> NDArray[np.float64]:
    """Mean colour of each cell of the rim of each picture, CIE L*a*b*: (T, 12, 3)."""
    cells = [
        cv2.resize(picture.astype(np.float64) / 255, (CELLS, CELLS), interpolation=cv2.INTER_AREA)[RIM]
        for picture in pictures
    ]
    return np.asarray(rgb2lab(np.stack(cells)))


def identity_distances(drawn: Frames, identity: Frames, boxes: Boxes) -> Series:
    """How far each frame's rim is from that of the identity frame (H, W, 3): (T,), mean ΔE*ab (CIE 1976).

    About 2 can just be seen. The truth has some too: heads turn in the light.
    """
    x0, y0, x1, y1 = boxes[0].tolist()
    own = appearances([identity[y0:y1, x0:x1]])
    return np.asarray(np.linalg.norm(appearances(boxed(drawn, boxes)) - own, axis=-1).mean(axis=-1))


def drift(distances: Series) -> float:
    """How much farther the last frames are than the first, ten at either end or as many as half of them;
    nan below two frames."""
    n_frames = min(EDGE, len(distances) // 2)
    if not n_frames:
        return float("nan")
    return float(distances[-n_frames:].mean() - distances[:n_frames].mean())
