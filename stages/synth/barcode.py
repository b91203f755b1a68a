"""The frame number as a barcode: drawn above the brows, and read from any copy of the frame."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.synth.face import PORTRAIT_SCALE
from stages.synth.spec import Image

BARCODE_ROWS, BARCODE_COLUMNS = 3, 8
BARCODE_BITS = BARCODE_ROWS * BARCODE_COLUMNS // 2  # each bit is drawn twice, once inverted
BLOCK_PX = 9  # photo px: about 7 px in a 128 px face crop
BARCODE_TOP_LEFT = (188, 47)  # photo px: above the brows, inside the crop
BARCODE_GREYS = (30, 225)  # not quite black and white, so that codecs ring less
BARCODE_SCRAMBLE = 0b1010_0110_1001  # so that small numbers give no large uniform areas
MIN_CONTRAST = 40.0  # grey levels between a block and its inverse


def _make_bits(counter: int) -> NDArray[np.uint8]:
    word = (counter % 2**BARCODE_BITS) ^ BARCODE_SCRAMBLE
    bits = np.array([word >> k & 1 for k in range(BARCODE_BITS)], dtype=np.uint8)
    return np.concatenate([bits, 1 - bits]).reshape(BARCODE_ROWS, BARCODE_COLUMNS)


def locate_barcode(width: int, *, mirrored: bool) -> tuple[slice, slice]:
    """Rows and columns of the barcode in a portrait of that width."""
    block = BLOCK_PX * PORTRAIT_SCALE
    x0, y0 = (coordinate * PORTRAIT_SCALE for coordinate in BARCODE_TOP_LEFT)
    if mirrored:  # mirrors the position, not the code
        x0 = width - x0 - BARCODE_COLUMNS * block
    return slice(y0, y0 + BARCODE_ROWS * block), slice(x0, x0 + BARCODE_COLUMNS * block)


def draw_barcode(portrait: Image, counter: int, *, mirrored: bool) -> None:
    """Draw the frame number on the portrait, in place."""
    block = BLOCK_PX * PORTRAIT_SCALE
    greys = np.array(BARCODE_GREYS, dtype=np.uint8)[_make_bits(counter)]
    greys = greys.repeat(block, axis=0).repeat(block, axis=1)
    portrait[locate_barcode(portrait.shape[1], mirrored=mirrored)] = greys[..., None]


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
