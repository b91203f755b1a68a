"""Faces in a picture: MediaPipe's Face Landmarker, its model file, and which face to follow.

IMAGE mode, which sees each frame alone: bit-identical across runs, processes and order. VIDEO mode is
not, and smooths with a lag (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Points = NDArray[np.float32]  # (478, 2), source px, pixel centres at whole numbers

N_POINTS = 478
# Indices into the mesh; right and left are the person's own.
NOSE_BASE = 2
RIGHT_EYE_OUTER, RIGHT_EYE_INNER, LEFT_EYE_INNER, LEFT_EYE_OUTER = 33, 133, 362, 263
STABLE_POINTS = (NOSE_BASE, RIGHT_EYE_OUTER, RIGHT_EYE_INNER, LEFT_EYE_INNER, LEFT_EYE_OUTER)
RIGHT_PUPIL, LEFT_PUPIL = 468, 473
UPPER_LIP_INNER, LOWER_LIP_INNER = 13, 14
UPPER_LIP_TOP, LOWER_LIP_BOTTOM = 0, 17
MOUTH_CORNERS = (61, 291)
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
CHIN = 152
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip


class FaceFinder:
    """All faces of a picture. Use it in ``with``: one that is not closed can deadlock in its finaliser."""

    def __init__(self, model: Path, max_faces: int) -> None:
        self._model = model
        self._max_faces = max_faces

    def __enter__(self) -> FaceFinder:
        # Loaded here: importing MediaPipe takes a second, and most of redub does without.
        import mediapipe
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        self._image: Any = mediapipe.Image
        self._rgb = mediapipe.ImageFormat.SRGB
        self.landmarker: Any = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=os.fspath(self._model)),
                num_faces=self._max_faces,
            )
        )
        self._detect = _detect_without_objects if _has_plain_result(self.landmarker) else _detect
        return self

    def __exit__(self, *_: object) -> None:
        self.landmarker.close()

    def __call__(self, frame: Frame) -> list[Points]:
        """Faces in a frame (H, W, 3) RGB, none or several."""
        height, width = frame.shape[:2]
        scale = np.array([width, height], np.float32)
        # MediaPipe's 0 and 1 are the picture's edges, half a pixel outside the first and last centre
        # (its points are true to 0.2 px: mirrored pictures differ by as much).
        return [
            points * scale - np.float32(0.5) for points in self._detect(self.landmarker, self.image(frame))
        ]

    def image(self, frame: Frame) -> Any:
        """The frame as MediaPipe takes it."""
        # MediaPipe ignores strides: a view would be read as another picture, without an error.
        return self._image(image_format=self._rgb, data=np.ascontiguousarray(frame))


def _detect(landmarker: Any, image: Any) -> list[Points]:
    """Points in [0, 1] of each face, by MediaPipe's public call."""
    return [
        np.array([(point.x, point.y) for point in face], np.float32)
        for face in landmarker.detect(image).face_landmarks
    ]


def _detect_without_objects(landmarker: Any, image: Any) -> list[Points]:
    """The same points, read from the C result: the public call makes 478 objects a face of them first.

    A twelfth of the landmarker's time goes into those objects (docs/decisions.md).
    """
    from mediapipe.tasks.python.vision import face_landmarker

    result = face_landmarker.FaceLandmarkerResultC()
    landmarker._lib.MpFaceLandmarkerDetectImage(
        landmarker._handle, image._image_ptr, None, ctypes.byref(result)
    )
    try:
        found = []
        for k in range(result.face_landmarks_count):
            face = result.face_landmarks[k]
            kind = face.landmarks._type_
            raw = ctypes.string_at(face.landmarks, face.landmarks_count * ctypes.sizeof(kind))
            layout: Any = np.dtype(
                {
                    "names": ["x", "y"],
                    "formats": ["f4", "f4"],
                    "offsets": [kind.x.offset, kind.y.offset],
                    "itemsize": ctypes.sizeof(kind),
                }
            )
            table = np.frombuffer(raw, layout)
            found.append(np.stack([table["x"], table["y"]], axis=-1))
    finally:
        landmarker._lib.MpFaceLandmarkerCloseResult(ctypes.byref(result))
    return found


def _has_plain_result(landmarker: Any) -> bool:
    """Whether this MediaPipe has the C calls of 0.10.32; another one is asked through its public call."""
    from mediapipe.tasks.python.vision import face_landmarker

    calls = ("MpFaceLandmarkerDetectImage", "MpFaceLandmarkerCloseResult")
    library = getattr(landmarker, "_lib", None)
    return (
        hasattr(face_landmarker, "FaceLandmarkerResultC")
        and hasattr(landmarker, "_handle")
        and all(hasattr(library, call) for call in calls)
    )


def face_width(points: Points) -> float:
    """Width of a face's bounding box, px."""
    return float(np.ptp(points[:, 0]))


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face in one frame: what following it needs, and whatever points are to be kept of it."""

    points: Points
    centre: NDArray[np.float32]  # (2,), of all its points
    width: float  # px


def sight(points: Points) -> Sighting:
    """A face with all its points."""
    return Sighting(points, points.mean(axis=0), face_width(points))


@dataclass(slots=True)
class Track:
    """One face through time."""

    sightings: dict[int, Sighting] = field(default_factory=dict)  # by frame
    last: int = -1
    total_width: float = 0.0

    def take(self, k: int, face: Sighting) -> None:
        self.sightings[k] = face
        self.last = k
        self.total_width += face.width


def follow(faces: Iterable[Sequence[Sighting]], max_gap_frames: int) -> list[Track]:
    """The tracks of all faces of a video's frames, in order of appearance.

    A track takes in each frame the face whose centre is nearest to where it last was, if that is
    within half a face's width; it may miss up to ``max_gap_frames`` frames.
    """
    tracks: list[Track] = []
    live: list[Track] = []
    for k, found in enumerate(faces):
        live = [track for track in live if k - track.last <= max_gap_frames + 1]
        pairs = sorted(
            (float(np.linalg.norm(face.centre - track.sightings[track.last].centre)), t, f)
            for t, track in enumerate(live)
            for f, face in enumerate(found)
        )
        extended: set[int] = set()
        taken: set[int] = set()
        for distance, t, f in pairs:
            reach = live[t].sightings[live[t].last].width / 2
            if t in extended or f in taken or distance > reach:
                continue
            live[t].take(k, found[f])
            extended.add(t)
            taken.add(f)
        for f, face in enumerate(found):
            if f not in taken:
                new = Track()
                new.take(k, face)
                tracks.append(new)
                live.append(new)
    return tracks


def follow_largest(faces: Sequence[Sequence[Points]], max_gap_frames: int) -> list[Points | None]:
    """One face through the clip: that of the track with the greatest total width.

    So a bigger face that comes for a moment, or a false one, does not make the crop jump.
    """
    tracks = follow(([sight(face) for face in found] for found in faces), max_gap_frames)
    # Of equals the one that came first.
    largest = max(tracks, key=lambda track: track.total_width, default=Track())
    return [largest.sightings[k].points if k in largest.sightings else None for k in range(len(faces))]


def longest_gap(found: Sequence[bool]) -> tuple[int, int]:
    """The longest run without a face: (first frame, frames); (0, 0) when there is none."""
    best = (0, 0)
    start = None
    for k, here in enumerate([*found, True]):
        if here:
            if start is not None and k - start > best[1]:
                best = (start, k - start)
            start = None
        elif start is None:
            start = k
    return best


def bridge_gaps(points: Sequence[Points | None]) -> Points:
    """Fill frames without a face: linearly between neighbours, held at the ends. (T, 478, 2)."""
    known = [k for k, face in enumerate(points) if face is not None]
    assert known, "a clip without any face is dropped before"
    values = np.stack([face for face in points if face is not None]).reshape(len(known), -1)
    every = np.arange(len(points))
    right = np.clip(np.searchsorted(known, every), 0, len(known) - 1)
    left = np.clip(right - (np.asarray(known)[right] > every), 0, None)
    span = np.asarray(known)[right] - np.asarray(known)[left]
    share = np.where(span > 0, (every - np.asarray(known)[left]) / np.maximum(span, 1), 0.0)
    share = np.clip(share, 0, 1)[:, None]
    filled = values[left] * (1 - share) + values[right] * share
    bridged: Points = filled.astype(np.float32).reshape(len(points), -1, 2)
    return bridged
