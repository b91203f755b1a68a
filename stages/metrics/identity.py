"""Whether a generated face keeps its identity: skin colour around the lips, compared with the first frame.

Generated frame after frame, a face may drift: paler, redder, smeared. The lips move anyway, so they are left
out: the box is divided into 4 by 4 cells, and only the 12 at its rim (cheeks, jaw, chin) are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from shards.schema import Frames
from stages.metrics.pixels import Boxes, Series, crop_boxes

CELLS = 4  # along each side of the box
RIM = np.pad(np.zeros((CELLS - 2, CELLS - 2), bool), 1, constant_values=True)
EDGE = 10  # frames at each end of a clip that drift is computed from


def rim_colours(boxes: Iterable[Frames]) -> NDArray[np.float64]:
    """Mean colour of each rim cell of each box image, CIE L*a*b*: (T, 12, 3)."""
    cells = [
        cv2.resize(image.astype(np.float64) / 255, (CELLS, CELLS), interpolation=cv2.INTER_AREA)[RIM]
        for image in boxes
    ]
    return np.asarray(rgb2lab(np.stack(cells)))


def identity_distances(generated: Frames, identity: Frames, boxes: Boxes) -> Series:
    """Mean ΔE*ab (CIE 1976) of each frame's rim from that of the identity frame (H, W, 3): (T,).

    About 2 is just visible. The ground truth has some too: heads turn in the light.
    """
    x0, y0, x1, y1 = boxes[0].tolist()
    reference = rim_colours([identity[y0:y1, x0:x1]])
    differences = rim_colours(crop_boxes(generated, boxes)) - reference
    return np.asarray(np.linalg.norm(differences, axis=-1).mean(axis=-1))


def drift(distances: Series) -> float:
    """Mean distance of the last frames less that of the first: ten at each end, or half of a short clip.

    nan below two frames.
    """
    n_frames = min(EDGE, len(distances) // 2)
    if not n_frames:
        return float("nan")
    return float(distances[-n_frames:].mean() - distances[:n_frames].mean())
