"""Reads the frame number that synthetic clips show as a barcode."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike

from stages.synth.barcode import BARCODE_BITS, BARCODE_COLUMNS, BARCODE_ROWS, BARCODE_SCRAMBLE
from stages.synth.spec import Image

MIN_CONTRAST = 40.0  # grey levels between a block and its inverse


def read_counter(image: Image, corners_px: ArrayLike) -> int | None:
    """Read the frame number from the barcode; None if no barcode is readable at ``corners_px``.

    ``corners_px`` is (4, 2), x y in px of ``image``: the outer corners of the top left, top right,
    bottom right and bottom left block. The number is modulo 2**BARCODE_BITS.
    """
    block = 8
    width, height = BARCODE_COLUMNS * block, BARCODE_ROWS * block
    upright = np.array([(0, 0), (width, 0), (width, height), (0, height)]) - 0.5
    to_upright = cv2.getPerspectiveTransform(
        np.asarray(corners_px, dtype=np.float32), upright.astype(np.float32)
    )
    patch = cv2.warpPerspective(image, to_upright, (width, height), flags=cv2.INTER_LINEAR)
    grey = patch.astype(np.float64).mean(axis=2)
    blocks = grey.reshape(BARCODE_ROWS, block, BARCODE_COLUMNS, block)
    inner = blocks[:, block // 4 : -block // 4, :, block // 4 : -block // 4].mean(axis=(1, 3)).ravel()
    contrast = inner[:BARCODE_BITS] - inner[BARCODE_BITS:]
    if np.abs(contrast).min() < MIN_CONTRAST:
        return None
    word = sum(1 << k for k in range(BARCODE_BITS) if contrast[k] > 0)
    return word ^ BARCODE_SCRAMBLE
