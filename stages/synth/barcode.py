"""The frame number as a barcode, drawn above the brows so that it can be read from any copy of the frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.synth.face import PORTRAIT_SCALE
from stages.synth.spec import Image

BARCODE_ROWS, BARCODE_COLUMNS = 3, 8
BARCODE_BITS = BARCODE_ROWS * BARCODE_COLUMNS // 2  # each bit is drawn twice, once inverted
BLOCK_PX = 9  # photo px: about 7 px in a 128 px face crop
BARCODE_TOP_LEFT = (188, 47)  # photo px: above the brows, inside the crop
BARCODE_GREYS = (30, 225)  # not quite black and white, so that codecs ring less
BARCODE_SCRAMBLE = 0b1010_0110_1001  # so that small numbers give no large uniform areas


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
