"""Mouth landmarks in crops, by MediaPipe's face model; results are cached by the pixels of the frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Outcome
from stages.media import faces
from stages.media.faces import DEFAULT_ENGINE, ENGINE_PACKAGES, Points, open_finder
from stages.metrics.mouth import Mouths

STAGE = "mouths"
VERSION = 1
ENLARGED_PX = 256  # the model misses faces that fill a crop of 128
UPPER_AND_LOWER = (faces.UPPER_LIP_INNER, faces.LOWER_LIP_INNER)
LIPS = [*UPPER_AND_LOWER, *(point for point in faces.LIPS if point not in UPPER_AND_LOWER)]
PUPILS = [faces.RIGHT_PUPIL, faces.LEFT_PUPIL]


def find_mouths(frames: NDArray[np.uint8], find_faces: Callable[[Frame], list[Points]]) -> Mouths:
    """Landmarks of crops (T, S, S, 3), in their pixels; nan where there is no face."""
    scale = np.float32(frames.shape[1] / ENLARGED_PX)
    points = np.full((len(frames), faces.N_POINTS, 2), np.nan, np.float32)
    for k, frame in enumerate(frames):
        enlarged = cv2.resize(frame, (ENLARGED_PX, ENLARGED_PX), interpolation=cv2.INTER_CUBIC)
        detections = find_faces(np.ascontiguousarray(enlarged))
        if detections:
            points[k] = (detections[0] + np.float32(0.5)) * scale - np.float32(0.5)
    return Mouths(points[:, LIPS], points[:, PUPILS])


def find_mouths_cached(frames: NDArray[np.uint8], model: Path, model_sha256: str, cache: Path) -> Mouths:
    """As ``find_mouths``, read from the cache when it has the result for the same frames and model."""
    frames_sha256 = hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()
    libraries = versions(ENGINE_PACKAGES[DEFAULT_ENGINE], "opencv-python")
    key = digest(STAGE, VERSION, frames_sha256, list(frames.shape), model_sha256, libraries)
    path = entry_path(cache, STAGE, key, ".npz")
    entry = load_entry(path)
    if entry is None:
        mouths = find_mouths(frames, open_finder(model, 1))
        save_entry(path, Outcome(), {"lips": mouths.lips, "pupils": mouths.pupils})
        return mouths
    _, arrays = entry
    return Mouths(arrays["lips"], arrays["pupils"])
