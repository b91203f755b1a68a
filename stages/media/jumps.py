"""Find jumps in a tracked face: frames that do not continue the one before, after a cut or a zoom.

Means over frames stop at a jump, and gaps are not interpolated across it. Where a jump shows another face,
it is a cut to somebody else.

Measured on 521 clips with nothing edited (GRID: 507 clips of 11 speakers; CREMA-D: 6; weekly addresses: 8),
38,900 pairs of consecutive frames, as a share of the face's width where it is a length:

    ======================  ======  ======  ======  =================================================
                            99.9 %  most    limit   the smallest of made jumps
    ======================  ======  ======  ======  =================================================
    motion of its centre    0.021   0.061   0.09    0.15 (moved by 15 %)
    change of its log size  0.020   0.042   0.055   0.095 (1.1 times as large)
    turn, radians           0.013   0.034   0.055
    change of its shape     0.011   0.016   0.0225  0.010 (another speaker; median 0.031)
    change of its look      6.5     11.0    13      16.7 (mirrored), 16.1 (another speaker)
    ======================  ======  ======  ======  =================================================

No unedited clip reaches 0.9 of a limit, and each made jump above was found in each of the clips. A head that
is shaken fast can reach it, so a jump must also stand out from the pictures around it. A flash changes the
look of a face that stays where it is: what looks as before after three pictures is no jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS, Frame
from stages.media.crops import TEMPLATE_SIZE, fit_template, warp
from stages.media.faces import (
    MAX_LOOK_CHANGE,
    N_POINTS,
    STABLE_POINTS,
    USED_POINTS,
    FaceDetection,
    Look,
    Points,
    compare_looks,
)

# Limits of a step from one picture to the next, see above. At a low rate a head moves further from one to the
# next: the limits of points grow with the square root of the time between pictures, that of looks with the
# cube root. Of the same clips at 12.5 and 8.3 fps none has a jump then.
MAX_SHIFT = 0.09  # of the centre, in widths of the face
MAX_ZOOM = 0.055  # of the logarithm of the size
MAX_TURN = 0.055  # radians
MAX_RESHAPE = 0.0225  # root mean square distance after the best similarity, in widths of the face
# A jump is so many times as large as the nearest steps around it, of which one may be a jump itself.
MIN_PROMINENCE = 2.5
# And at a clip's ends so many times as large as those next to it lead to expect: a head that has just turned
# around has steps like 1, 0, 1, 2 and 3, the last of them three times the second largest of the others.
MIN_EXCESS = 1.5
STEPS_AROUND = 4  # two on each side, except at the ends
# A face that does not move, and looks as before after so many pictures, is the same one: a flash has lit it.
MAX_FLASH_PICTURES = 3

LOOK_SIDE = 16  # px
LOOK_SUPERSAMPLE = 8
LOOK_PIXELS = np.indices((LOOK_SIDE, LOOK_SIDE))[::-1].reshape(2, -1)  # x and y of each, row by row
PICTURE_SIDE = 32  # px


@dataclass(frozen=True, slots=True)
class Jump:
    """A frame that does not continue the one before."""

    frame: int
    is_new_face: bool  # it looks like another face (or a mirrored one), not like the same one elsewhere


class PictureComparison:
    """How much each picture of a video differs from the one before."""

    def __init__(self) -> None:
        self._last_shape: tuple[int, ...] = ()
        self._last_thumbnail: NDArray[Any] | None = None

    def __call__(self, picture: Frame) -> float:
        """Mean difference of two pictures (H, W, 3), in grey levels; infinite where their sizes differ.

        The first picture of a video has 0.
        """
        side = (PICTURE_SIDE, PICTURE_SIDE)
        thumbnail = cv2.resize(picture, side, interpolation=cv2.INTER_AREA).astype(np.float32)
        last_shape, last_thumbnail = self._last_shape, self._last_thumbnail
        self._last_shape, self._last_thumbnail = picture.shape, thumbnail
        if last_thumbnail is None:
            return 0.0
        if last_shape != picture.shape:
            return float("inf")
        return float(np.abs(thumbnail - last_thumbnail).mean())


def detect_faces(picture: Frame, find: Callable[[Frame], list[Points]]) -> list[FaceDetection]:
    """The faces that ``find`` finds in a picture, with their looks."""
    return [FaceDetection.from_points(points, crop_look(picture, points)) for points in find(picture)]


def crop_look(picture: Frame, points: Points) -> Look:
    """The face in a few grey pixels (LOOK_SIDE, LOOK_SIDE), upright and of one size; 0 outside the picture.

    ``points`` are (478, 2), in pixels of the picture (H, W, 3).
    """
    matrix = fit_template(points[list(STABLE_POINTS)], TEMPLATE_SIZE / LOOK_SIDE)
    if matrix is None:
        return np.zeros((LOOK_SIDE, LOOK_SIDE), np.uint8)
    red, green, blue = cv2.split(warp(picture, matrix, LOOK_SIDE, LOOK_SUPERSAMPLE).astype(np.float64))
    look = np.clip(np.rint((red + green + blue) / 3), 1, 255)
    x, y = np.linalg.inv(matrix[:, :2]) @ (LOOK_PIXELS - matrix[:, 2:])
    height, width = picture.shape[:2]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    look.ravel()[~inside] = 0
    return look.astype(np.uint8)


def measure_step(before: Points, after: Points) -> float:
    """How far a face's points move from one picture to the next: 1 is the limit for pictures 1/25 s apart.

    The points are USED_POINTS (41, 2), in pixels of their picture.
    """
    a, b = (
        points[:, 0].astype(np.float64) + 1j * points[:, 1].astype(np.float64) for points in (before, after)
    )
    width = np.sqrt(np.ptp(a.real) * np.ptp(b.real))
    shift = abs(b.mean() - a.mean())
    a, b = a - a.mean(), b - b.mean()
    spread = (np.abs(a) ** 2).sum()
    if not (width > 0 and spread > 0):
        return 0.0  # all points in one place: alignment refuses that
    similarity = (np.conj(a) * b).sum() / spread
    reshape = np.sqrt((np.abs(b - similarity * a) ** 2).mean())
    if similarity == 0:
        return float("inf")
    return float(
        max(
            shift / width / MAX_SHIFT,
            abs(np.log(abs(similarity))) / MAX_ZOOM,
            abs(np.angle(similarity)) / MAX_TURN,
            reshape / width / MAX_RESHAPE,
        )
    )


def find_jumps(
    faces: Sequence[FaceDetection | None], changes: Sequence[float], seconds: Sequence[float]
) -> list[Jump]:
    """The jumps of a tracked face, from its detections in T frames (None: not found) and their pictures.

    ``changes`` are the T results of PictureComparison, ``seconds`` the pictures' own time stamps. A jump
    inside a gap of the track is at the frame whose picture changes most.
    """
    frames = [k for k, face in enumerate(faces) if face is not None]
    # Pictures, not frames: at a low rate several frames show one picture.
    pairs: list[tuple[int, int]] = []
    steps: list[float] = []
    moves: list[float] = []  # of the points alone
    look_changes: list[float] = []
    shown = frames[0] if frames else 0
    for k in frames[1:]:
        before, after = faces[shown], faces[k]
        assert before is not None and after is not None, "frames without a face are left out"
        if np.array_equal(before.points, after.points) and np.array_equal(before.look, after.look):
            continue
        pairs.append((shown, k))
        intervals = max(1.0, (seconds[k] - seconds[shown]) * VIDEO_FPS)
        look_changes.append(compare_looks(before.look, after.look) / MAX_LOOK_CHANGE / intervals ** (1 / 3))
        step = measure_step(_select_used(before.points), _select_used(after.points))
        moves.append(step / math.sqrt(intervals))
        steps.append(max(moves[-1], look_changes[-1]))
        shown = k
    pictures = [frame for frame, _ in pairs[:1]] + [frame for _, frame in pairs]
    jumps = []
    for i, (before_frame, frame) in enumerate(pairs):
        first = max(0, min(i - STEPS_AROUND // 2, len(steps) - 1 - STEPS_AROUND))
        around = sorted(steps[first:i] + steps[i + 1 : first + STEPS_AROUND + 1])
        # The second largest around: two jumps may follow each other, as around a picture shown once.
        usual = around[-2] if len(around) > 1 else 0.0
        stands_out = steps[i] > max(1.0, MIN_PROMINENCE * usual, MIN_EXCESS * _extrapolate(steps, i))
        if stands_out and moves[i] <= 1:
            shown_faces = [faces[k] for k in pictures]
            stands_out = not _returns(shown_faces[: i + 1], shown_faces[i + 1 :])
        between = np.asarray(changes[before_frame + 1 : frame + 1])
        if stands_out or np.isinf(between).any():
            at = before_frame + 1 + int(np.argmax(between))
            jumps.append(Jump(at, look_changes[i] > 1))
    return jumps


def _extrapolate(steps: Sequence[float], i: int) -> float:
    """The first or the last step as the two next to it lead to expect.

    0 where i is another one, or where the one next to it stands out itself, as of two jumps in a row.
    """
    if len(steps) < 3 or 0 < i < len(steps) - 1:
        return 0.0
    near, far = (steps[1], steps[2]) if i == 0 else (steps[-2], steps[-3])
    return 2 * near - far if near <= MIN_PROMINENCE * far else 0.0


def _returns(before: Sequence[FaceDetection | None], after: Sequence[FaceDetection | None]) -> bool:
    """Whether a face in pictures soon looks as it did before: a flash or a hand has changed its look."""
    return any(
        compare_looks(one.look, other.look) <= MAX_LOOK_CHANGE
        for one in before[-MAX_FLASH_PICTURES - 1 :]
        for other in after[: MAX_FLASH_PICTURES + 1]
        if one is not None and other is not None
    )


def _select_used(points: Points) -> Points:
    """USED_POINTS of a whole mesh; they themselves where they are all that was stored."""
    return points[list(USED_POINTS)] if len(points) == N_POINTS else points
