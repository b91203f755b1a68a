"""A photographed face in a speaker's colours, with a mouth that opens and closes."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from stages.synth.appearance import Appearance
from stages.synth.spec import Floats, Floats32, Image

PORTRAIT_SCALE = 2
PORTRAIT_ROWS = 320  # rows used of the photograph; the rest shows only the suit

# All in photo px, measured with MediaPipe's face landmarker on the face enlarged three times.
FACE_CENTRE = (224.6, 120.0)
FACE_WIDTH = 91.0  # between points 234 and 454
CHIN_Y = 178.0  # point 152
# Inner rims of the lips, which touch when the mouth is closed: points 78 ... 13 ... 308, and through 14.
UPPER_RIM = np.array(
    [
        (203.45, 139.52), (205.98, 139.96), (209.15, 140.56), (212.91, 141.21),
        (217.55, 142.20), (223.15, 143.01), (228.92, 142.70), (233.71, 142.04),
        (237.50, 141.54), (240.67, 141.23), (243.28, 140.95),
    ]
)  # fmt: skip
LOWER_RIM = np.array(
    [
        (203.45, 139.52), (206.63, 142.85), (209.23, 145.09), (212.90, 147.16),
        (217.29, 148.56), (222.61, 149.33), (228.03, 149.08), (232.79, 147.85),
        (236.68, 146.09), (239.67, 144.04), (243.28, 140.95),
    ]
)  # fmt: skip
# Head and shoulders, traced by hand.
OUTLINE = np.array(
    [
        (80, 313), (80, 233), (112, 200), (115, 187), (130, 160), (153, 150), (187, 148),
        (182, 132), (170, 117), (158, 103), (154, 83), (155, 63), (160, 50), (173, 40),
        (188, 32), (197, 25), (213, 18), (230, 15), (247, 18), (263, 27), (280, 38),
        (293, 57), (300, 73), (301, 90), (297, 107), (288, 120), (280, 128), (268, 137),
        (262, 157), (255, 173), (270, 182), (287, 200), (300, 220), (305, 237), (327, 247),
        (353, 263), (380, 280), (420, 300), (512, 330), (512, 512), (0, 512), (0, 330),
    ]
)  # fmt: skip

GAP_PX = 15.0  # between the lips at opening 1
JAW_SHARE = 0.7  # the chin moves down by this share of the gap
CHIN_LIFT_PX = 2.0  # at opening 0: the lips in the photograph are apart, closing them lifts the chin
JAW_HALF_WIDTH = 52.0
NECK_PX = 34.0  # below the chin, over which the motion of the jaw fades out
MOUTH_BOX = (170, 134, 280, 234)  # x0 y0 x1 y1: the area that the opening changes
MOUTH_RGB = np.array([38.0, 14.0, 14.0], dtype=np.float32)
TEETH_LIGHT = 0.8
TEETH_PX = 4.0  # visible height of the teeth below the upper lip


def scale_to_portrait(photo_px: ArrayLike) -> Floats:
    """Photo px to portrait px."""
    return (np.asarray(photo_px, dtype=np.float64) + 0.5) * PORTRAIT_SCALE - 0.5


def _smoothstep(x: Floats32) -> Floats32:
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x), dtype=np.float32)


@lru_cache(maxsize=1)
def load_layers() -> tuple[Floats32, Floats32]:
    """The enlarged photograph in [0, 1], (H, W, 3), and the background weight of each pixel, (H, W, 1)."""
    from skimage.data import astronaut

    photo: Image = np.ascontiguousarray(astronaut()[:PORTRAIT_ROWS])  # type: ignore[no-untyped-call]
    size = (photo.shape[1] * PORTRAIT_SCALE, photo.shape[0] * PORTRAIT_SCALE)
    large = cv2.resize(photo, size, interpolation=cv2.INTER_LANCZOS4)
    portrait: Floats32 = np.asarray(large / 255, dtype=np.float32)
    outline = np.zeros(portrait.shape[:2], np.float32)
    cv2.fillPoly(outline, [np.round(scale_to_portrait(OUTLINE)).astype(np.int32)], (1.0,))
    person: Floats32 = np.asarray(cv2.GaussianBlur(outline, (0, 0), 3.0)[..., None], np.float32)
    return portrait, 1 - person


def draw_portrait(appearance: Appearance) -> Image:
    """The portrait with the appearance of one speaker: (H, W, 3)."""
    rgb, background = load_layers()
    grey = rgb.mean(axis=2, keepdims=True)
    coloured = (grey + appearance.saturation * (rgb - grey)) * np.array(appearance.gains, np.float32)
    coloured += background * (rgb * np.array(appearance.backdrop, np.float32) - coloured)
    coloured = np.clip(coloured, 0, 1) ** appearance.gamma
    if appearance.mirrored:
        coloured = coloured[:, ::-1]
    return np.ascontiguousarray(np.round(coloured * 255).astype(np.uint8))


class Mouth:
    """Opens and closes the mouth of one portrait.

    Nothing above the upper rim moves. The lower lip and everything below it is the photograph moved
    down by ``drop(x, y)``, which blends from the lip's displacement to that of the jaw at the chin and
    fades out in the neck. Between the rims the mouth is dark, with the teeth of the photograph below
    the upper lip.
    """

    def __init__(self, portrait: Image, *, mirrored: bool) -> None:
        x0, y0, x1, y1 = (coordinate * PORTRAIT_SCALE for coordinate in MOUTH_BOX)
        width = portrait.shape[1]
        self._columns = slice(width - x1, width - x0) if mirrored else slice(x0, x1)
        self._rows = slice(y0, y1)
        self._mirrored = mirrored
        patch = portrait[self._rows, self._columns]
        self._patch = np.ascontiguousarray(patch[:, ::-1] if mirrored else patch)

        ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        self._xs, self._ys = xs - x0, ys
        rims = scale_to_portrait(UPPER_RIM), scale_to_portrait(LOWER_RIM)
        rim_x0, rim_x1 = rims[0][0, 0], rims[0][-1, 0]
        columns = np.clip(xs[:1], rim_x0, rim_x1)  # outside the corners the rims are horizontal
        upper, lower = (PchipInterpolator(*rim.T)(columns).astype(np.float32) for rim in rims)
        self._upper, self._lower = upper, lower
        centre = (rim_x0 + rim_x1) / 2
        from_centre = (xs[:1] - centre) / ((rim_x1 - rim_x0) / 2)
        self._gap = GAP_PX * PORTRAIT_SCALE * np.clip(1 - from_centre**2, 0, None)
        from_jaw = (xs[:1] - centre) / (JAW_HALF_WIDTH * PORTRAIT_SCALE)
        self._jaw = np.cos(np.pi / 2 * np.clip(from_jaw, -1, 1)) ** 2 * np.float32(PORTRAIT_SCALE)
        self._chin_y = np.float32(scale_to_portrait(CHIN_Y))
        depth = (ys - upper) / PORTRAIT_SCALE
        teeth = TEETH_LIGHT * self._patch.astype(np.float32)
        shade = 1 - _smoothstep((depth - TEETH_PX / 2) / (TEETH_PX / 2))[..., None]
        self._inside = MOUTH_RGB + shade * (teeth - MOUTH_RGB)

    def draw_on(self, portrait: Image, opening: float) -> None:
        """Draw the mouth in place, with an opening in [0, 1]."""
        rim = self._upper + np.float32(opening) * self._gap  # new position of the lower rim
        lip_drop = rim - self._lower
        jaw_drop = (JAW_SHARE * GAP_PX * opening - CHIN_LIFT_PX) * self._jaw
        chin_y = self._chin_y + jaw_drop
        below_lip = _smoothstep((self._ys - rim) / (chin_y - rim))
        below_chin = _smoothstep((self._ys - chin_y) / np.float32(NECK_PX * PORTRAIT_SCALE))
        drop = (lip_drop + (jaw_drop - lip_drop) * below_lip) * (1 - below_chin)

        y0 = self._ys[0, 0]
        is_lower = np.clip(self._ys - rim + 0.5, 0, 1)
        map_y = np.where(is_lower > 0, self._ys - drop, self._ys) - y0
        moved = cv2.remap(  # OpenCV 5 misreads a float64 map without an error
            self._patch,
            self._xs,
            map_y.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)
        is_upper = np.clip(self._upper - self._ys + 0.5, 0, 1)
        within = (self._gap > 0) * np.clip(1 - is_lower - is_upper, 0, 1)
        patch = moved + within[..., None] * (self._inside - moved)
        if self._mirrored:
            patch = patch[:, ::-1]
        portrait[self._rows, self._columns] = np.round(patch)
