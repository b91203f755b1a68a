"""What a face's picture is worth to training: how sharp its mouth is, how bright it is, where it looks.

Everything is measured in the upright crop of TEMPLATE_SIZE px that training would see, not in the picture: so
it means the same for faces of all sizes, and costs the same. Measured in 133 clips with nothing edited, four
pictures of each (GRID: 119 clips of 11 speakers, faces 94 to 131 px wide; CREMA-D: 6, 92 to 96 px; weekly
addresses: 8, 220 to 303 px), the 5th, 50th and 95th percentile:

    ================================  ================  ================  ================
    sharpness                         GRID              CREMA-D           weekly addresses
    ================================  ================  ================  ================
    unchanged                         0.65  0.71  0.77  0.68  0.74  0.79  0.72  0.87  0.97
    half the contrast                 0.63  0.70  0.75  0.67  0.73  0.78  0.72  0.86  0.95
    half the size                     0.59  0.63  0.68  0.59  0.61  0.66  0.72  0.86  0.93
    half the size, and enlarged       0.57  0.61  0.66  0.56  0.58  0.62  0.71  0.84  0.93
    a quarter of it, and enlarged     0.46  0.47  0.51  0.43  0.44  0.46  0.63  0.70  0.79
    blurred by 1 px of the picture    0.52  0.55  0.60  0.50  0.52  0.55  0.68  0.77  0.85
    blurred by 2 px                   0.42  0.43  0.47  0.41  0.41  0.42  0.58  0.63  0.71
    blurred by 4 px                   0.35  0.36  0.37  0.35  0.36  0.36  0.44  0.47  0.52
    ================================  ================  ================  ================

Least and greatest: brightness 126 to 156 (GRID), 153 to 162, 68 to 150; yaw -6 to 10 degrees, 0 to 5, -8 to
17; pitch -8 to 7, -3 to 7, -7 to 14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.schema import Frame
from stages.media.crops import TEMPLATE_SIZE, fit_template
from stages.media.faces import STABLE_POINTS, Points

# Squares of the template: centre x y, and side. From the nose to the chin, and from the brows to the chin.
MOUTH_CENTRE, MOUTH_SIDE = (63.5, 92.0), TEMPLATE_SIZE // 2
FACE_CENTRE, FACE_SIDE = (63.5, 76.0), TEMPLATE_SIZE // 2
FACE_PIXELS = 16  # along a side: a mean needs no more
# Along a side of a pixel of the mouth: the samples of which it is the mean, and the pixels of a very large
# face that are read for them; the others are left out.
SAMPLES = 2
MAX_SAMPLES = 4
MARGIN = 2  # px at the edge of the mouth that a blur fills from nowhere
# Standard deviations, px, of the blurs whose differences are the two finest bands.
FINE_BLUR, COARSE_BLUR = 0.7, 1.4
# Grey levels squared, added to the coarser band: in a flat picture both hold nothing but noise.
NOISE_VARIANCE = 0.25

# Points that move little in speech, in cm: x to the person's left, y up, z to the front. From the canonical
# face of MediaPipe's Face Landmarker (geometry_pipeline_metadata_landmarks.binarypb in face_landmarker.task).
HEAD: Mapping[int, tuple[float, float, float]] = MappingProxyType(
    {
        4: (0.0, -0.463, 7.587),  # tip of the nose
        6: (0.0, 2.473, 5.789),  # bridge
        129: (-1.786, -0.978, 4.850),  # wings
        358: (1.786, -0.978, 4.850),
        33: (-4.446, 2.664, 3.173),  # corners of the eyes
        133: (-1.856, 2.585, 3.758),
        362: (1.856, 2.585, 3.758),
        263: (4.446, 2.664, 3.173),
        117: (-5.259, 0.946, 2.974),  # cheekbones
        346: (5.259, 0.946, 2.974),
        127: (-7.743, 2.365, -2.005),  # temples
        356: (7.743, 2.365, -2.005),
    }
)
_HEAD_POINTS = list(HEAD)
_HEAD = np.array(list(HEAD.values()))
_FIT_HEAD = np.linalg.pinv(_HEAD - _HEAD.mean(axis=0)).T  # (12, 3): from points to an affine camera
LASTING_SHARE = 0.9  # a head is turned no further in so many of the frames


class FaceQuality(NamedTuple):
    """The measurements of a face in one picture; all are nan where its points are in one place."""

    sharpness: float  # of the mouth
    brightness: float  # of the face, 0 to 255
    yaw: float  # degrees; positive: turned to the person's own left
    pitch: float  # degrees; positive: looking up


def measure_face(picture: Frame, points: Points) -> FaceQuality:
    """Measure a face, ``points`` (478, 2) in pixels of the picture (H, W, 3) RGB."""
    matrix = fit_template(points[list(STABLE_POINTS)], px=1)
    if matrix is None:
        return FaceQuality(*(math.nan,) * 4)
    return FaceQuality(
        measure_sharpness(crop_mouth(picture, matrix)),
        measure_brightness(picture, matrix),
        *measure_pose(points),
    )


def crop_mouth(picture: Frame, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """The mouth (64, 64) in grey levels, by the matrix from the picture to the template.

    A picture that ends inside continues with its last row or column; zeros where the mouth is outside of it.
    """
    to_mouth = _move_origin(matrix, MOUTH_CENTRE, MOUTH_SIDE)
    corners = np.array([(x, y) for x in (0, MOUTH_SIDE) for y in (0, MOUTH_SIDE)]) - 0.5 - to_mouth[:, 2]
    inverse = np.linalg.inv(to_mouth[:, :2])
    square = corners @ inverse.T
    limits = picture.shape[1::-1]
    x0, y0 = np.clip(np.floor(square.min(axis=0)) - 1, 0, limits).astype(int)
    x1, y1 = np.clip(np.ceil(square.max(axis=0)) + 2, 0, limits).astype(int)
    source_pixels = math.sqrt(abs(np.linalg.det(inverse)))  # along a side of a pixel of the crop
    step = max(1, int(source_pixels / MAX_SAMPLES))
    mean_pixels = max(1, round(source_pixels / step / SAMPLES))
    zoom = step * mean_pixels
    width, height = (x1 - x0) // zoom, (y1 - y0) // zoom
    if not (width > 0 and height > 0):
        return np.zeros((MOUTH_SIDE, MOUTH_SIDE), np.float32)
    region = picture[y0 : y0 + height * zoom, x0 : x0 + width * zoom]
    if step > 1:
        size = (width * mean_pixels, height * mean_pixels)
        region = np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    grey = cv2.cvtColor(region, cv2.COLOR_RGB2GRAY)
    if mean_pixels > 1:
        grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    samples = max(1, math.ceil(source_pixels / zoom))
    fine = np.empty((2, 3))
    fine[:, :2] = to_mouth[:, :2] * (zoom * samples)
    start = np.array([x0, y0]) + (zoom - 1) / 2  # of the first pixel of grey, in the picture
    fine[:, 2] = (to_mouth[:, :2] @ start + to_mouth[:, 2]) * samples + (samples - 1) / 2
    side = MOUTH_SIDE * samples
    crop = cv2.warpAffine(grey, fine, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    size = (MOUTH_SIDE, MOUTH_SIDE)
    return np.asarray(cv2.resize(crop.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def measure_sharpness(mouth: NDArray[np.float32]) -> float:
    """Contrast of the finest band of a mouth (64, 64) over that of the next coarser one.

    Contrast of the whole picture divides out, and so does most of what makes faces differ: skin and lips have
    details of all sizes, of which a blur or an enlargement removes the finest.
    """
    fine = cv2.GaussianBlur(mouth, (0, 0), FINE_BLUR)
    coarse = cv2.GaussianBlur(mouth, (0, 0), COARSE_BLUR)
    inside = slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN)
    finest, next_finest = (mouth - fine)[inside].var(), (fine - coarse)[inside].var()
    return math.sqrt(float(finest) / (float(next_finest) + NOISE_VARIANCE))


def measure_brightness(picture: Frame, matrix: NDArray[np.float64]) -> float:
    """Mean grey level of the face, by the matrix from the picture to the template."""
    to_face = _move_origin(matrix, FACE_CENTRE, FACE_SIDE, FACE_PIXELS / FACE_SIDE)
    size = (FACE_PIXELS, FACE_PIXELS)
    face = cv2.warpAffine(picture, to_face, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).mean())


def measure_pose(points: Points) -> tuple[float, float]:
    """Yaw and pitch in degrees, from a face's points (478, 2), of the head as it is in an upright crop.

    It is the rotation nearest to the affine camera that takes the points of HEAD to the face's. In 532
    pictures yaw differs from MediaPipe's own matrix by 1.0 degrees (standard deviation; bias 0.3), and pitch
    by 2.0 (bias 0.0; up to 6, and 10 in another photo, for one person: faces differ from the canonical one).
    """
    projection = points[_HEAD_POINTS].astype(np.float64).T * [[1.0], [-1.0]]  # y is up
    left, _, right = np.linalg.svd(projection @ _FIT_HEAD, full_matrices=False)
    x_row, y_row = left @ right
    # The part of each axis of the head that points to the camera, which rolling the head does not change.
    x, y, z = np.cross(x_row, y_row)
    return math.degrees(math.asin(max(-1.0, min(1.0, -x)))), math.degrees(math.atan2(-y, z))


def _move_origin(
    matrix: NDArray[np.float64], centre: tuple[float, float], side: float, scale: float = 1.0
) -> NDArray[np.float64]:
    """The matrix from a picture to a square of the template, given that to the template, both (2, 3)."""
    moved = matrix * scale
    moved[:, 2] = (matrix[:, 2] + 0.5 - (np.array(centre) - side / 2)) * scale - 0.5
    return moved


def summarise_quality(widths: ArrayLike, qualities: ArrayLike) -> dict[str, float | None]:
    """The ledger's columns of a clip, from its face's n widths (px) and FaceQuality (n, 4) in its pictures.

    They are rounded, so that they are the same on all machines. A column without any measurement is None.
    """
    values = np.asarray(qualities, np.float64).reshape(-1, 4)
    sharpness, brightness, yaws, pitches = (column[~np.isnan(column)] for column in values.T)
    columns: dict[str, tuple[Callable[[NDArray[np.float64]], float], NDArray[np.float64], int]] = {
        "face_width": (np.median, np.asarray(widths, np.float64), 1),
        "sharpness": (np.median, sharpness, 3),
        "yaw": (find_lasting_turn, yaws, 1),
        "pitch": (find_lasting_turn, pitches, 1),
        "brightness": (np.mean, brightness, 1),
    }
    return {
        name: round(float(reduce(figures)), n_digits) if len(figures) else None
        for name, (reduce, figures, n_digits) in columns.items()
    }


def find_lasting_turn(angles: NDArray[np.float64]) -> float:
    """The angle of n, at least one, that LASTING_SHARE of them do not exceed to either side."""
    order = np.argsort(np.abs(angles), kind="stable")
    return float(angles[order[round(LASTING_SHARE * (len(angles) - 1))]])
