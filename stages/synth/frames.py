"""The frames of a clip: the face on a head that sways, with its number, and when each is shown."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np

from stages.synth.barcode import barcode_slices, draw_barcode_on
from stages.synth.curves import slow_curve
from stages.synth.face import (
    FACE_CENTRE,
    FACE_WIDTH,
    PORTRAIT_SCALE,
    Mouth,
    draw_portrait,
    layers,
    to_portrait,
)
from stages.synth.looks import Look
from stages.synth.spec import Floats, Image, frame_rate

FACE_SHARE = 0.42  # of the frame's shorter side, between GRID's 0.48 and CREMA-D's 0.35


def head_poses(rng: np.random.Generator, look: Look, times_s: Floats, *, size: tuple[int, int]) -> Floats:
    """Portrait px to source px, one matrix per frame, (T, 2, 3): a head that sways a little."""
    width, height = size
    face_px = FACE_SHARE * min(size)
    shift_x, shift_y, turn, grow = (slow_curve(rng, low_hz=0.1, high_hz=0.6)(times_s) for _ in range(4))
    scale = face_px * look.zoom / (FACE_WIDTH * PORTRAIT_SCALE) * (1 + 0.02 * grow)
    angle = np.deg2rad(2.5 * turn)
    linear = scale[:, None, None] * np.stack(
        [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1
    ).reshape(-1, 2, 2)
    linear = linear * np.array([look.stretch**0.5, look.stretch**-0.5])  # stretch first, then turn
    head = to_portrait(FACE_CENTRE)
    if look.mirrored:
        head[0] = layers()[0].shape[1] - 1 - head[0]
    goal = np.array([(width - 1) / 2, (height - 1) / 2]) + 0.035 * face_px * np.stack(
        [shift_x, shift_y], axis=1
    )
    return np.concatenate([linear, (goal - linear @ head)[..., None]], axis=2)


def barcode_corners(poses: Floats, look: Look) -> Floats:
    """Source px, (T, 4, 2), in the order of `read_counter`."""
    rows, columns = barcode_slices(layers()[0].shape[1], mirrored=look.mirrored)
    (x0, x1), (y0, y1) = (columns.start, columns.stop), (rows.start, rows.stop)
    outer = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
    return np.asarray(outer @ poses[:, :, :2].swapaxes(1, 2) + poses[:, None, :, 2])


def draw_frames(look: Look, openings: Floats, poses: Floats, *, size: tuple[int, int]) -> Iterator[Image]:
    portrait = draw_portrait(look)
    mouth = Mouth(portrait, mirrored=look.mirrored)
    for index, (opening, pose) in enumerate(zip(openings, poses, strict=True)):
        mouth.draw_on(portrait, float(opening))
        draw_barcode_on(portrait, index, mirrored=look.mirrored)
        yield np.asarray(
            cv2.warpAffine(portrait, pose, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            dtype=np.uint8,
        )


def frame_ticks(rng: np.random.Generator, *, seconds: float, fps: str, clock: Fraction) -> list[int]:
    """When each frame is shown, in ticks of `clock` seconds; the first is 0.

    "variable" is 30 a second with stamps off by up to 5 ms and a fifth of the frames dropped, never
    more than two together.
    """
    rate = frame_rate(fps)
    n_frames = max(1, round(seconds * rate))
    seconds_each = [Fraction(i) / rate for i in range(n_frames)]
    if fps == "variable":
        kept, dropped_in_a_row = [Fraction(0)], 0
        for time in seconds_each[1:]:
            jitter = Fraction(int(rng.integers(-5, 6)), 1000)
            if rng.random() < 0.2 and dropped_in_a_row < 2:
                dropped_in_a_row += 1
                continue
            kept.append(time + jitter)
            dropped_in_a_row = 0
        seconds_each = kept
    return [round(time / clock) for time in seconds_each]
