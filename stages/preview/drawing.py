"""Drawing of crops with mask boxes, mels, time scales and text, for contact sheets and videos."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.schema import MEL_FPS, ClipSample, Frame

Color = tuple[int, int, int]

BACKGROUND: Color = (20, 20, 24)
TEXT: Color = (236, 236, 236)
DIM: Color = (160, 160, 168)
BOX: Color = (0, 255, 140)
MARK: Color = (255, 255, 255)
INTERPOLATED: Color = (255, 96, 80)  # frames without a detected face, between frames with one
FLOOR_DB = -80.0  # black, as is all below it; 0 dB is the brightest

GAP_PX = 4


def enlarge(frame: Frame, side: int) -> Frame:
    """A crop (H, W, 3) as (side, side, 3)."""
    return np.array(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))


def draw_mask_box(frame: Frame, box: NDArray[np.int16], side: int) -> Frame:
    """Enlarge a crop (H, W, 3) to (side, side, 3) and draw the outline of its mask box.

    The outline covers the outermost masked pixels: all that is inside or under it is masked.
    """
    height, width = frame.shape[:2]
    large = Image.fromarray(enlarge(frame, side))
    x0, y0, x1, y1 = box * np.array([side / width, side / height] * 2)
    edges = (round(x0), round(y0), round(x1) - 1, round(y1) - 1)
    ImageDraw.Draw(large).rectangle(edges, outline=BOX, width=min(3, max(1, side // 96)))
    return np.array(large)


def draw_mels(mels: NDArray[np.float32], *, start: float, seconds: float, width: int, height: int) -> Frame:
    """Mels (2T, M) from ``start`` on as an image (height, width, 3): low frequencies at the bottom.

    Row j is centred on j / 50 s, so half of row 0 is left of second 0.
    """
    times = start + (np.arange(width) + 0.5) / width * seconds
    rows = np.rint(times * MEL_FPS).astype(int).clip(0, len(mels) - 1)
    level = ((mels[rows].T[::-1] - FLOOR_DB) / -FLOOR_DB).clip(0, 1)
    resized = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
    bgr = cv2.applyColorMap((255 * resized).astype(np.uint8), cv2.COLORMAP_MAGMA)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


@lru_cache
def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    *,
    width: float,
    anchor: str = "ls",
) -> float:
    """Draw one line of text, truncated to ``width`` px; return its width. ``anchor`` as in Pillow."""
    font = _load_font(size)
    line = " ".join(text.split())  # labels of other people's datasets may have line breaks
    if draw.textlength(line, font) > width:
        end = bisect_left(range(len(line)), width, key=lambda n: draw.textlength(f"{line[: n + 1]}…", font))
        line = f"{line[:end]}…"
    draw.text(xy, line, color, font, anchor)
    return draw.textlength(line, font)


def draw_centred(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    *,
    between: tuple[float, float],
) -> None:
    """Draw a short label centred on ``xy``, shifted where it would extend beyond ``between``, two x."""
    half = draw.textlength(text, _load_font(size)) / 2
    x = min(max(xy[0], between[0] + half), between[1] - half)
    draw.text((x, xy[1]), text, color, _load_font(size), "ms")


def draw_seconds(
    draw: ImageDraw.ImageDraw, x0: float, top: float, width: int, start: float, seconds: float, size: int
) -> None:
    """Draw a time scale, for below a mel image."""
    steps = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
    step = next((step for step in steps if step / seconds * width >= 5 * size), steps[-1])
    for n in range(int(np.ceil(start / step - 1e-6)), int((start + seconds) / step) + 1):
        x = x0 + (n * step - start) / seconds * width
        draw.line((x, top, x, top + 4), DIM)
        draw_centred(draw, (x, top + 5 + size), f"{n * step:g} s", size, DIM, between=(x0, x0 + width))


def find_interpolated_frames(sample: ClipSample) -> list[int]:
    """Frames whose landmarks were interpolated; invalid entries of the sample's json are ignored."""
    entries = sample.info.get("interpolated_frames", [])
    if not isinstance(entries, list):
        return []
    return [k for k in entries if isinstance(k, int) and 0 <= k < len(sample.frames)]
