"""Crops with their boxes, mels, text: what sheets and videos are drawn with."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.schema import MEL_FPS, ClipSample

Frame = NDArray[np.uint8]
Color = tuple[int, int, int]

BACKGROUND: Color = (20, 20, 24)
TEXT: Color = (236, 236, 236)
DIM: Color = (160, 160, 168)
BOX: Color = (0, 255, 140)
MARK: Color = (255, 255, 255)
BRIDGED: Color = (255, 96, 80)  # frames between found ones, where no face was found
FLOOR_DB = -80.0  # and below it: black; 0 dB, the clip's loudest cell, is the brightest

GAP_PX = 4


def boxed(frame: Frame, box: NDArray[np.int16], side: int) -> Frame:
    """A crop (H, W, 3) enlarged to (side, side, 3), with the outline of its mask box.

    The line lies on the outermost masked pixels, so what is inside or under it is masked.
    """
    height, width = frame.shape[:2]
    large = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    x0, y0, x1, y1 = box * np.array([side / width, side / height] * 2)
    edges = (round(x0), round(y0), round(x1) - 1, round(y1) - 1)
    ImageDraw.Draw(large).rectangle(edges, outline=BOX, width=min(3, max(1, side // 96)))
    return np.array(large)


def mel_picture(mels: NDArray[np.float32], *, start: float, seconds: float, width: int, height: int) -> Frame:
    """Mels (2T, M) from ``start`` on as (height, width, 3): time to the right, low pitch at the bottom.

    Row j is centred on j / 50 s, so half of the first one lies left of second 0.
    """
    times = start + (np.arange(width) + 0.5) / width * seconds
    rows = np.rint(times * MEL_FPS).astype(int).clip(0, len(mels) - 1)
    level = ((mels[rows].T[::-1] - FLOOR_DB) / -FLOOR_DB).clip(0, 1)
    tall = cv2.resize(level, (width, height), interpolation=cv2.INTER_AREA)
    colored = cv2.applyColorMap((255 * tall).astype(np.uint8), cv2.COLORMAP_MAGMA)
    return np.asarray(cv2.cvtColor(colored, cv2.COLOR_BGR2RGB), np.uint8)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
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
    """Write one line, cut to ``width`` px; returns how wide it became. ``anchor`` as in Pillow."""
    font = _font(size)
    line = " ".join(text.split())  # a stranger's label may hold line breaks
    if draw.textlength(line, font) > width:
        fits = bisect_left(range(len(line)), width, key=lambda n: draw.textlength(f"{line[: n + 1]}…", font))
        line = f"{line[:fits]}…"
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
    """Write a short label centred on ``xy``, or beside it where it would leave ``between`` two x."""
    half = draw.textlength(text, _font(size)) / 2
    x = min(max(xy[0], between[0] + half), between[1] - half)
    draw.text((x, xy[1]), text, color, _font(size), "ms")


def draw_seconds(
    draw: ImageDraw.ImageDraw, left: float, top: float, width: int, start: float, seconds: float, size: int
) -> None:
    """A time scale below a mel picture."""
    steps = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
    step = next((step for step in steps if step / seconds * width >= 5 * size), steps[-1])
    for n in range(int(np.ceil(start / step - 1e-6)), int((start + seconds) / step) + 1):
        x = left + (n * step - start) / seconds * width
        draw.line((x, top, x, top + 4), DIM)
        draw_centred(draw, (x, top + 5 + size), f"{n * step:g} s", size, DIM, between=(left, left + width))


def bridged_frames(sample: ClipSample) -> list[int]:
    """Frames whose landmarks were interpolated; a stranger's json may name anything."""
    told = sample.info.get("interpolated_frames", [])
    listed = told if isinstance(told, list) else []
    return [k for k in listed if isinstance(k, int) and 0 <= k < len(sample.frames)]
