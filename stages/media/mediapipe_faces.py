"""Find faces with MediaPipe's Face Landmarker: the reference of stages.media.face_networks.

IMAGE mode, which processes each frame alone: bit-identical across runs, processes and frame order. VIDEO
mode is not, and smooths with a lag (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame


class MediaPipeFaces:
    """Finds all faces in an image. Use it in ``with``: if not closed, it can deadlock in its finaliser."""

    def __init__(self, model: Path, max_faces: int) -> None:
        # Loaded here: importing MediaPipe takes a second, and most of redub does not need it.
        import mediapipe
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        self._image: Any = mediapipe.Image
        self._rgb = mediapipe.ImageFormat.SRGB
        self.landmarker: Any = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=os.fspath(model)), num_faces=max_faces
            )
        )
        self._detect = _detect_without_objects if _has_c_result(self.landmarker) else _detect

    def __enter__(self) -> MediaPipeFaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.landmarker.close()

    def __call__(self, frame: Frame) -> list[NDArray[np.float32]]:
        """The points (478, 2) of each face in a frame (H, W, 3) RGB, in px."""
        height, width = frame.shape[:2]
        scale = np.array([width, height], np.float32)
        # MediaPipe's 0 and 1 are the image's edges, half a pixel outside the first and last centre
        # (its points are accurate to 0.2 px: mirrored images differ by as much).
        image = self.make_image(frame)
        return [points * scale - np.float32(0.5) for points in self._detect(self.landmarker, image)]

    def make_image(self, frame: Frame) -> Any:
        """The frame as a MediaPipe image."""
        # MediaPipe ignores strides: it would read a view as another image, without an error.
        return self._image(image_format=self._rgb, data=np.ascontiguousarray(frame))


def _detect(landmarker: Any, image: Any) -> list[NDArray[np.float32]]:
    """Points of each face in [0, 1], by MediaPipe's public API."""
    return [
        np.array([(point.x, point.y) for point in face], np.float32)
        for face in landmarker.detect(image).face_landmarks
    ]


def _detect_without_objects(landmarker: Any, image: Any) -> list[NDArray[np.float32]]:
    """The same points, read from the C result. The public API first builds 478 objects per face.

    Those objects take a twelfth of the landmarker's time (docs/decisions.md).
    """
    from mediapipe.tasks.python.vision import face_landmarker

    result = face_landmarker.FaceLandmarkerResultC()
    landmarker._lib.MpFaceLandmarkerDetectImage(
        landmarker._handle, image._image_ptr, None, ctypes.byref(result)
    )
    try:
        faces = []
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
            faces.append(np.stack([table["x"], table["y"]], axis=-1))
    finally:
        landmarker._lib.MpFaceLandmarkerCloseResult(ctypes.byref(result))
    return faces


def _has_c_result(landmarker: Any) -> bool:
    """Whether this MediaPipe has the C functions of 0.10.32. If not, the public API is used."""
    from mediapipe.tasks.python.vision import face_landmarker

    calls = ("MpFaceLandmarkerDetectImage", "MpFaceLandmarkerCloseResult")
    library = getattr(landmarker, "_lib", None)
    return (
        hasattr(face_landmarker, "FaceLandmarkerResultC")
        and hasattr(landmarker, "_handle")
        and all(hasattr(library, call) for call in calls)
    )
