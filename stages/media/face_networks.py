"""Find faces with the two networks of MediaPipe's Face Landmarker, run by LiteRT without MediaPipe.

The detector sees the whole picture in 128 x 128 and answers with boxes and six points a face. Each box, 1.5
times as large and turned so that the eyes are level, is enlarged or shrunk to 256 x 256, in which the second
network finds 478 points. What happens around the networks follows MediaPipe's graph for single images step by
step, down to the rounding of sample positions, so that the points are MediaPipe's (docs/performance.md); what
that graph computes besides, as the shapes of an expression, is left out.
"""

from __future__ import annotations

import math
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.engine.outcome import StageError

DETECTOR, LANDMARKS = "face_detector.tflite", "face_landmarks_detector.tflite"
MAX_NETWORK_BYTES = 2**24  # the larger one has a sixth of it

DETECTOR_SIDE = 128  # px
ANCHOR_GRIDS = ((16, 2), (8, 6))  # cells a side, anchors in each cell
N_ANCHORS = sum(cells**2 * each for cells, each in ANCHOR_GRIDS)
N_BOX_VALUES = 16  # centre, size, and six points; of these, the first two are the person's right and left eye
MAX_OVERLAP = 0.5  # of two boxes, as intersection over union; boxes that overlap more are one face
REGION_SCALE = 1.5  # of the square in which points are found, in sides of the box

LANDMARKS_SIDE = 256  # px
N_POINTS = 478
N_POINT_VALUES = 3  # x, y and a depth that is not used

Values = NDArray[np.float32]
Pixels = NDArray[Any]  # OpenCV's stubs do not say which


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How a picture of one size becomes the detector's square: in the middle, on black."""

    side: float  # of the square, in px of the picture
    left: float  # of the square's corner, in px of the picture
    top: float
    pixels: Pixels  # (S, S, 2) int16, OpenCV's fixed-point map: the pixel to the upper left
    fractions: Pixels  # (S, S) uint16, and where between it and its neighbours, in 1/32 px

    @classmethod
    def from_size(cls, width: int, height: int) -> Letterbox:
        """The letterbox of pictures of this size in px."""
        side = float(max(width, height))
        left, top = (width - side) / 2, (height - side) / 2
        steps = np.arange(DETECTOR_SIDE) * (side / DETECTOR_SIDE)
        columns, rows = np.meshgrid((left + steps).astype(np.float32), (top + steps).astype(np.float32))
        pixels, fractions = cv2.convertMaps(columns, rows, cv2.CV_16SC2)
        return cls(side, left, top, pixels, fractions)


@dataclass(frozen=True, slots=True)
class FaceRegion:
    """Where points are looked for: a turned rectangle, in px. The picture's edges are at 0 and its size."""

    x: float  # of the centre
    y: float
    width: float
    height: float
    angle: float  # radians


class Network:
    """One network of a single input, with LiteRT's XNNPACK kernels, on one core."""

    def __init__(self, content: bytes, side: int, outputs: tuple[tuple[int, ...], ...]) -> None:
        # Loaded here: most of redub does not need it.
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_content=content, num_threads=1)
        self._interpreter.allocate_tensors()
        inputs = self._interpreter.get_input_details()
        shape = (1, side, side, 3)
        if [tuple(each["shape"]) for each in inputs] != [shape] or inputs[0]["dtype"] != np.float32:
            raise ValueError(f"its input is {[tuple(each['shape'].tolist()) for each in inputs]}, "
                             f"expected float32 of shape {shape}")  # fmt: skip
        self._input = self._interpreter.tensor(inputs[0]["index"])
        details = self._interpreter.get_output_details()[: len(outputs)]
        if tuple(tuple(each["shape"].tolist()) for each in details) != outputs:
            raise ValueError(f"its outputs are {[tuple(each['shape'].tolist()) for each in details]}, "
                             f"expected {outputs}")  # fmt: skip
        self._outputs = [each["index"] for each in details]

    def __call__(self, pixels: Pixels, scale: float, offset: float) -> list[Values]:
        """The outputs for a picture (S, S, 3), whose values are multiplied and shifted."""
        values = self._input()[0]  # the input itself; LiteRT refuses to run while somebody refers to it
        cv2.addWeighted(pixels, scale, pixels, 0.0, offset, dst=values, dtype=cv2.CV_32F)
        del values
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


class FaceNetworks:
    """Finds all faces in a picture. Threads may share it: they take turns."""

    def __init__(self, model: Path, max_faces: int) -> None:
        """Load the networks of a bundle. Raises StageError when the file is none, with what is wrong."""
        try:
            with zipfile.ZipFile(model) as bundle:
                detector, landmarks = (_read_member(bundle, name) for name in (DETECTOR, LANDMARKS))
            boxes = (1, N_ANCHORS, N_BOX_VALUES), (1, N_ANCHORS, 1)
            points = (1, 1, 1, N_POINTS * N_POINT_VALUES), (1, 1, 1, 1)
            self._detector = Network(detector, DETECTOR_SIDE, boxes)
            self._landmarks = Network(landmarks, LANDMARKS_SIDE, points)
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError, EOFError) as err:
            reason = " ".join(str(err.args[0] if err.args else err).split())
            raise StageError(f"{model}: expected MediaPipe's face_landmarker.task: {reason}") from err
        self._max_faces = max_faces
        self._anchors = _make_anchors()
        self._letterbox: tuple[tuple[int, int], Letterbox] | None = None
        self._steps = np.arange(LANDMARKS_SIDE, dtype=np.float32) / np.float32(LANDMARKS_SIDE)
        side = (LANDMARKS_SIDE, LANDMARKS_SIDE)
        self._columns, self._rows = np.empty(side, np.float32), np.empty(side, np.float32)
        self._pixels, self._fractions = np.empty((*side, 2), np.int16), np.empty(side, np.uint16)
        self._lock = threading.Lock()

    def __call__(self, frame: Frame) -> list[Values]:
        """The points (478, 2) of each face in a picture (H, W, 3) RGB, in px; the surest box comes first."""
        frame = np.ascontiguousarray(frame)  # OpenCV takes no view that is turned over
        with self._lock:  # the networks and the maps hold one picture
            faces = [self._find_points(frame, region) for region in self._find_regions(frame)]
        return [points for points in faces if points is not None]

    def close(self) -> None:
        """Nothing: the networks are freed with the object."""

    def _find_regions(self, frame: Frame) -> list[FaceRegion]:
        height, width = frame.shape[:2]
        letterbox = self._make_letterbox(width, height)
        small = cv2.remap(
            frame, letterbox.pixels, letterbox.fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
        )
        raw_boxes, raw_scores = self._detector(small, 2 / 255, -1.0)
        scores = raw_scores[0, :, 0]
        sure = np.flatnonzero(scores >= 0)  # half or more after the sigmoid
        if not len(sure):
            return []
        values = raw_boxes[0, sure] * np.float32(1 / DETECTOR_SIDE) + self._anchors[sure]
        values[:, 0:2] -= values[:, 2:4] / 2
        values[:, 2:4] += values[:, 0:2]  # now the two corners and six points
        sigmoids = np.float32(1) / (1 + np.exp(-scores[sure]))
        faces = merge_boxes(values, sigmoids)[: self._max_faces]
        return [_make_region(face, letterbox) for face in faces]

    def _make_letterbox(self, width: int, height: int) -> Letterbox:
        """The letterbox of this size, which is mostly the last picture's."""
        if self._letterbox is None or self._letterbox[0] != (width, height):
            self._letterbox = (width, height), Letterbox.from_size(width, height)
        return self._letterbox[1]

    def _find_points(self, frame: Frame, region: FaceRegion) -> Values | None:
        """The points in a region, or None where the second network sees no face."""
        cos, sin = math.cos(region.angle), math.sin(region.angle)
        right = cos * region.width, sin * region.width  # the region's upper side, and its left one
        down = -sin * region.height, cos * region.height
        left = region.x - (right[0] + down[0]) / 2, region.y - (right[1] + down[1]) / 2
        for axis, positions in enumerate((self._columns, self._rows)):
            starts = np.float32(left[axis]) + np.float32(down[axis]) * self._steps
            np.add(np.float32(right[axis]) * self._steps, starts[:, None], out=positions)
        cv2.convertMaps(self._columns, self._rows, cv2.CV_16SC2, self._pixels, self._fractions)
        pixels = cv2.remap(
            frame, self._pixels, self._fractions, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        values, presence = self._landmarks(pixels, 1 / 255, 0.0)
        if not presence.item() > 0:  # half or less after the sigmoid
            return None
        x, y = values.reshape(N_POINTS, N_POINT_VALUES)[:, :2].T / LANDMARKS_SIDE - np.float32(0.5)
        # As MediaPipe, which first turns and then stretches; and its 0 is the picture's edge, half a pixel
        # outside the first pixel's centre.
        points = np.empty((N_POINTS, 2), np.float32)
        points[:, 0] = (cos * x - sin * y) * region.width + (region.x - 0.5)
        points[:, 1] = (sin * x + cos * y) * region.height + (region.y - 0.5)
        return points


def _read_member(bundle: zipfile.ZipFile, name: str) -> bytes:
    size = bundle.getinfo(name).file_size
    if size > MAX_NETWORK_BYTES:
        raise ValueError(f"{name} has {size} bytes, expected at most {MAX_NETWORK_BYTES}")
    return bundle.read(name)


def _make_anchors() -> Values:
    """What is added to the values of each box (896, 16): its anchor's centre, but nothing to its size.

    In the detector's square, whose sides are 1.
    """
    centres = [
        ((column + 0.5) / cells, (row + 0.5) / cells)
        for cells, each in ANCHOR_GRIDS
        for row in range(cells)
        for column in range(cells)
        for _ in range(each)
    ]
    anchors = np.tile(np.array(centres, np.float32), N_BOX_VALUES // 2)
    anchors[:, 2:4] = 0
    return anchors


def merge_boxes(boxes: Values, scores: Values) -> list[Values]:
    """One box a face, the surest first: the mean of those that overlap, weighted by their scores.

    Boxes are (n, 16): two corners, the upper left one first, and six points; scores are (n,). A box without
    an area is left out.
    """
    corners = boxes[:, :4]
    rest = np.argsort(-scores, kind="stable")
    rest = rest[(corners[rest, 2:] > corners[rest, :2]).all(axis=1)]  # the network may give others
    areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    faces = []
    while len(rest):
        first, others = rest[0], corners[rest]
        sides = np.minimum(others[:, 2:], corners[first, 2:]) - np.maximum(others[:, :2], corners[first, :2])
        overlap = np.maximum(sides, 0).prod(axis=1)
        same = overlap > MAX_OVERLAP * (areas[rest] + areas[first] - overlap)
        weights = scores[rest[same]]
        faces.append(weights @ boxes[rest[same]] / weights.sum())
        rest = rest[~same]
    return faces


def _make_region(face: Values, letterbox: Letterbox) -> FaceRegion:
    """The region around a box and its points, which are in units of the detector's square."""
    left, top, right, bottom, eye_x, eye_y, other_eye_x, other_eye_y = face[:8].tolist()
    return FaceRegion(
        x=letterbox.left + letterbox.side * (left + right) / 2,
        y=letterbox.top + letterbox.side * (top + bottom) / 2,
        width=REGION_SCALE * letterbox.side * (right - left),
        height=REGION_SCALE * letterbox.side * (bottom - top),
        angle=math.atan2(other_eye_y - eye_y, other_eye_x - eye_x),
    )
