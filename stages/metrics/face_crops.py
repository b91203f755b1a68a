"""The square around a face that Wav2Lip's script for real videos cuts out for SyncNet.

The script's face boxes come from S3FD, which would be one more network to download; here they are the
bounding boxes of MediaPipe's landmarks. The protocol's name says so, because the values differ from the
script's.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

REAL_VIDEOS = "real videos: Wav2Lip's square about the face, its boxes from MediaPipe, not S3FD"

PICTURE_PX = 224  # SyncNet's input
MEDIAN_FRAMES = 13
# In half sides of the face box: the square's extent, and a border wide enough for it.
LEFT_RIGHT, BELOW = 1.4, 1.8
BORDER_GREY = 110


def face_boxes(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bounding boxes of a face's points (T, N, 2): (T, 4), x0 y0 x1 y1."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1).astype(np.float64)


def crop_faces(frames: Iterable[NDArray[np.uint8]], boxes: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The square around each face, (T, 224, 224, 3): 2.8 half sides wide, more of it below than above.

    Centre and size are median-filtered over 13 frames, with zeros before the first and after the last: at
    the ends of a clip the square is smaller and nearer the image corner, as in the script. With fewer than
    seven frames the median is zero and there is no square: raises ValueError.
    """
    from scipy.signal import medfilt  # takes a second: every build imports this module

    if len(boxes) <= MEDIAN_FRAMES // 2:
        raise ValueError(f"{len(boxes)} frames, expected {MEDIAN_FRAMES // 2 + 1} or more")
    x0, y0, x1, y1 = boxes.T
    half_sides = medfilt(np.maximum(x1 - x0, y1 - y0) / 2, MEDIAN_FRAMES)
    centres_x, centres_y = medfilt((x0 + x1) / 2, MEDIAN_FRAMES), medfilt((y0 + y1) / 2, MEDIAN_FRAMES)
    crops = []
    for frame, half, x, y in zip(frames, half_sides, centres_x, centres_y, strict=True):
        border = int(BELOW * half)
        padded = np.pad(frame, ((border, border), (border, border), (0, 0)), constant_values=BORDER_GREY)
        rows = slice(int(y + border - half), int(y + border + BELOW * half))
        columns = slice(int(x + border - LEFT_RIGHT * half), int(x + border + LEFT_RIGHT * half))
        crops.append(cv2.resize(padded[rows, columns], (PICTURE_PX, PICTURE_PX)))
    return np.stack(crops).astype(np.uint8, copy=False)
