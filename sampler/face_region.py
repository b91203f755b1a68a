"""Which pixels of a crop are the face's: there the re-drawn crop is pasted, beside it the source stays.

The mask box is a rectangle from cheek to cheek, and a network draws all of it again: a piece of the room, the
neck and the collar too, and worse than the source has them. Of these only the jaw covers or uncovers some.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Shares of the crop's side. The chin of another mouth may be this much lower; a jaw that opens wide moves by
# 0.06 from where it is when closed.
CHIN_DROP = 10 / 128
# The re-drawn crop is opaque up to so far outside the outline, and the source from the second on.
OPAQUE, TRANSPARENT = 2 / 128, 8 / 128
SUBPIXEL_BITS = 4  # of the outline's points, as OpenCV draws it


def mask_face(oval: Floats, top: float, size: int) -> Floats:
    """Opacity of a re-drawn crop of ``size`` px by the outline of the source's face in it: (S, S) in [0, 1].

    ``oval`` (N, 2) is the outline in order, x and y in px; ``top`` the row at which drawing begins. Below it
    the outline is lowered, at the chin most, so that a jaw that opens wider than the source's has its place.
    """
    chin = float(oval[:, 1].max())
    lowered = oval.astype(np.float32)
    lowered[:, 1] += CHIN_DROP * size * smoothstep((oval[:, 1] - top) / max(1.0, chin - top))
    outside = (1 - fill_outline(lowered, size)).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(1 - smoothstep((distance / size - OPAQUE) / (TRANSPARENT - OPAQUE)), np.float32)


def fill_outline(oval: Floats, size: int) -> NDArray[np.bool_]:
    """The pixels of a crop of ``size`` px within an outline (N, 2) px: (S, S)."""
    filled = np.zeros((size, size), np.uint8)
    corners = np.rint(oval * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(filled, [corners], 1, shift=SUBPIXEL_BITS)
    return filled.astype(bool)


def smoothstep(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Cubic Hermite step: 0 for x <= 0, 1 for x >= 1, smooth between."""
    t = np.clip(x, 0, 1)
    step: NDArray[np.floating] = t * t * (3 - 2 * t)
    return step
