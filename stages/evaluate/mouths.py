"""Mouths in crops: landmarks by MediaPipe, found once for the same pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Outcome
from stages.evaluate.metrics.mouth import Mouths
from stages.landmarks import open_finder
from stages.media import faces
from stages.media.faces import Frame, Points

STAGE = "mouths"
VERSION = 1
ENLARGED = 256  # px: MediaPipe misses faces that fill a crop of 128
UPPER_AND_LOWER = (faces.UPPER_LIP_INNER, faces.LOWER_LIP_INNER)
LIPS = [*UPPER_AND_LOWER, *(point for point in faces.LIPS if point not in UPPER_AND_LOWER)]
PUPILS = [faces.RIGHT_PUPIL, faces.LEFT_PUPIL]


def find_mouths(frames: NDArray[np.uint8], find: Callable[[Frame], list[Points]]) -> Mouths:
    """Landmarks of crops (T, S, S, 3), in their pixels; nan where there is no face."""
    scale = np.float32(frames.shape[1] / ENLARGED)
    points = np.full((len(frames), faces.N_POINTS, 2), np.nan, np.float32)
    for k, frame in enumerate(frames):
        enlarged = cv2.resize(frame, (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
        found = find(np.ascontiguousarray(enlarged))
        if found:
            points[k] = (found[0] + np.float32(0.5)) * scale - np.float32(0.5)
    return Mouths(points[:, LIPS], points[:, PUPILS])


def mouths_of(frames: NDArray[np.uint8], model: Path, model_sha256: str, cache: Path) -> Mouths:
    """The same, found again in the cache where these very frames were seen before."""
    seen = hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()
    key = digest(STAGE, VERSION, seen, list(frames.shape), model_sha256, versions("mediapipe"))
    path = entry_path(cache, STAGE, key, ".npz")
    entry = load_entry(path)
    if entry is None:
        mouths = find_mouths(frames, open_finder(str(model), 1))
        save_entry(path, Outcome(), {"lips": mouths.lips, "pupils": mouths.pupils})
        return mouths
    _, arrays = entry
    return Mouths(arrays["lips"], arrays["pupils"])
