"""Face crops: where the face is in one, and warping a source frame to it.

With anti-aliasing where the face shrinks.
"""

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
# OpenCV samples four channels in half the time of three. Adding one takes as long as 1/16 of that per pixel.
PADDED_PIXELS = 16  # of a picture for each sample, at most, so that adding a channel pays
TEMPLATE_SIZE = 128
# The five stable points in a crop of 128 px: nose base, then the corners of the eyes from the image's left to
# its right. The mean of eight real speakers (seven of GRID, CREMA-D's 1001), made symmetric, scaled and
# placed like the crops of the paper's authors: eyes at y 53, pupils 33 px apart.
TEMPLATE = np.array([(63.5, 76.0), (41.0, 52.8), (54.8, 53.2), (72.2, 53.2), (86.0, 52.8)])


def fit_similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares scale, rotation and translation from points (T, N, 2) to (N, 2): (T, 2, 3).

    In complex numbers the map is z -> c z + d, and least squares is one division. It is never a reflection.
    """
    z = source[..., 0] + 1j * source[..., 1]
    w = target[..., 0] + 1j * target[..., 1]
    z_mean, w_mean = z.mean(axis=-1, keepdims=True), w.mean(axis=-1, keepdims=True)
    spread = (np.abs(z - z_mean) ** 2).sum(axis=-1)
    c = (np.conj(z - z_mean) * (w - w_mean)).sum(axis=-1) / spread
    d = w_mean[..., 0] - c * z_mean[..., 0]
    rows = [np.stack([c.real, -c.imag, d.real], -1), np.stack([c.imag, c.real, d.imag], -1)]
    return np.stack(rows, axis=-2)


def fit_template(
    points: NDArray[np.floating], px: float, origin: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64] | None:
    """The matrix (2, 3) from a picture to the part of a face's crop that begins at ``origin``, x y.

    ``points`` are the face's stable ones (5, 2), ``px`` the pixels of the crop of TEMPLATE_SIZE in one of the
    result. None where the points are in one place.
    """
    template = (TEMPLATE + 0.5 - np.array(origin)) / px - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        [matrix] = fit_similarity(points[None].astype(np.float64), template)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-12:
        return None
    return np.asarray(matrix)


def warp(frame: Frame, matrix: NDArray[np.floating], size: int, supersample: int) -> Frame:
    """Crop a frame to (size, size, 3). Each crop pixel is the mean of ``supersample``² samples.

    Where the crop shrinks the face, one sample per pixel would alias (as the paper's aligner does).
    """
    if supersample == 1:
        return _sample(frame, matrix, size)
    # Pixel centres are whole numbers, so the finer grid starts (supersample - 1) / 2 fine pixels earlier.
    fine = matrix.astype(np.float64) * supersample
    fine[:, 2] += (supersample - 1) / 2
    large = _sample(frame, fine, size * supersample)
    return np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def _sample(frame: Frame, matrix: NDArray[np.floating], size: int) -> Frame:
    """A sample for each pixel, (size, size, 3), black outside the frame: the bits are those of 3 channels."""
    if frame.size > 3 * PADDED_PIXELS * size**2:
        return np.asarray(cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)
    padded = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA)
    samples = cv2.warpAffine(padded, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(samples, cv2.COLOR_RGBA2RGB), np.uint8)


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
