"""Warp source frames to face crops, with anti-aliasing where the face shrinks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.media.video import ClockFrame

Matrices = NDArray[np.float32]  # (T, 2, 3), source px -> crop px

MAX_SUPERSAMPLE = 16  # samples along each side of a crop pixel, at most


def warp(frame: Frame, matrix: NDArray[np.floating], size: int, supersample: int) -> Frame:
    """Crop a frame to (size, size, 3). Each crop pixel is the mean of ``supersample``² samples.

    Where the crop shrinks the face, one sample per pixel would alias (as the paper's aligner does).
    """
    if supersample == 1:
        return np.asarray(cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)
    # Pixel centres are whole numbers, so the finer grid starts (supersample - 1) / 2 fine pixels earlier.
    fine = matrix.astype(np.float64) * supersample
    fine[:, 2] += (supersample - 1) / 2
    large = cv2.warpAffine(frame, fine, (size * supersample,) * 2, flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def compute_supersample(matrices: Matrices, limit: int) -> int:
    """Samples along each side of a crop pixel so that no source pixel is skipped; one number per clip."""
    scale = float(np.sqrt(np.abs(np.linalg.det(matrices[:, :, :2].astype(np.float64)))).min())
    return min(limit, max(1, math.ceil(1 / scale)))


def crop_frames(
    frames: Iterator[ClockFrame], matrices: Matrices, size: int, supersample: int
) -> Iterator[Frame]:
    """Warp each frame by its own matrix."""
    for frame, matrix in zip(frames, matrices, strict=True):
        yield warp(frame.image, matrix, size, supersample)
