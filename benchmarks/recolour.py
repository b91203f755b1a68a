"""People as nobody in the training data is: known changes of skin and light, for evaluation.

Light is linear: a change of it is a factor of each channel of linear RGB. A change of skin is one too, where
the colour is that of the skin around the mask, and less of one the further the colour is from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import ClipSample, Frames
from stages.metrics.border import LINEAR, compute_lab
from stages.metrics.pixels import PEAK

# Linear factors of red, green and blue. The first takes skin of 198, 156, 136 to 93, 61, 48.
DARK_SKIN = (0.196, 0.14, 0.12)
WARM_LIGHT = (1.1, 0.9, 0.5)
DIM_LIGHT = (0.3, 0.3, 0.3)
SKIN_SPREAD = 18.0  # standard deviation of skin's a* and b*, cheeks and shadows included
BLUR = 3.0  # px, of the share of skin: the colours of a compressed video come in blocks


def scale_linear(frames: Frames, factors: NDArray[np.float64]) -> Frames:
    """sRGB frames (..., 3) whose linear light is scaled by factors that broadcast to them."""
    linear = np.clip(LINEAR[frames] * factors, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(PEAK * encoded).astype(np.uint8)


def change_light(clip: ClipSample, factors: tuple[float, float, float]) -> ClipSample:
    """The same clip in another light."""
    return replace(clip, frames=scale_linear(clip.frames, np.array(factors)))


def change_skin(clip: ClipSample, factors: tuple[float, float, float]) -> ClipSample:
    """The same clip of a person with another skin; what has other colours than skin stays."""
    x0, y0, x1, y1 = clip.boxes[0].tolist()
    rim = np.ones((y1 - y0, x1 - x0), bool)
    rim[(y1 - y0) // 4 : -((y1 - y0) // 4) or None, (x1 - x0) // 4 : -((x1 - x0) // 4) or None] = False
    skin = np.median(compute_lab(clip.frames[0, y0:y1, x0:x1][rim]), axis=0)
    recoloured = []
    for frame in clip.frames:  # one by one: float64 of a clip is half a gigabyte
        distance = np.linalg.norm((compute_lab(frame) - skin)[..., 1:], axis=-1)
        share = cv2.GaussianBlur(np.exp(-np.square(distance / SKIN_SPREAD) / 2), (0, 0), BLUR)[..., None]
        recoloured.append(scale_linear(frame, 1 - share + share * np.array(factors)))
    return replace(clip, frames=np.stack(recoloured))


RECOLOURS: dict[str, Callable[[ClipSample], ClipSample]] = {
    "darker skin": lambda clip: change_skin(clip, DARK_SKIN),
    "warmer light": lambda clip: change_light(clip, WARM_LIGHT),
    "dimmer light": lambda clip: change_light(clip, DIM_LIGHT),
}
