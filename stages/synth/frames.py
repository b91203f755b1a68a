"""The frames of a clip: a swaying head with a barcode of the frame number, and the frame times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np

from stages.synth.appearance import Appearance
from stages.synth.barcode import draw_barcode, locate_barcode
from stages.synth.curves import make_slow_curve
from stages.synth.face import (
    FACE_CENTRE,
    FACE_WIDTH,
    PORTRAIT_SCALE,
    Mouth,
    draw_portrait,
    load_layers,
    scale_to_portrait,
)
from stages.synth.spec import Floats, Image, parse_frame_rate

FACE_SHARE = 0.42  # face width over the frame's shorter side; between GRID's 0.48 and CREMA-D's 0.35


def make_head_poses(
    rng: np.random.Generator, appearance: Appearance, times_s: Floats, *, size: tuple[int, int]
) -> Floats:
    """Matrices from portrait px to source px, (T, 2, 3), of a head that sways a little."""
    width, height = size
    face_px = FACE_SHARE * min(size)
    shift_x, shift_y, turn, grow = (make_slow_curve(rng, low_hz=0.1, high_hz=0.6)(times_s) for _ in range(4))
    scale = face_px * appearance.zoom / (FACE_WIDTH * PORTRAIT_SCALE) * (1 + 0.02 * grow)
    angle = np.deg2rad(2.5 * turn)
    linear = scale[:, None, None] * np.stack(
        [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1
    ).reshape(-1, 2, 2)
    # Stretch first, then turn.
    linear = linear * np.array([appearance.stretch**0.5, appearance.stretch**-0.5])
    head = scale_to_portrait(FACE_CENTRE)
    if appearance.mirrored:
        head[0] = load_layers()[0].shape[1] - 1 - head[0]
    target = np.array([(width - 1) / 2, (height - 1) / 2]) + 0.035 * face_px * np.stack(
        [shift_x, shift_y], axis=1
    )
    return np.concatenate([linear, (target - linear @ head)[..., None]], axis=2)


def compute_barcode_corners(poses: Floats, appearance: Appearance) -> Floats:
    """Corners of the barcode in source px, (T, 4, 2): top left, top right, bottom right, bottom left."""
    rows, columns = locate_barcode(load_layers()[0].shape[1], mirrored=appearance.mirrored)
    (x0, x1), (y0, y1) = (columns.start, columns.stop), (rows.start, rows.stop)
    outer = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
    return np.asarray(outer @ poses[:, :, :2].swapaxes(1, 2) + poses[:, None, :, 2])


def draw_frames(
    appearance: Appearance, openings: Floats, poses: Floats, *, size: tuple[int, int]
) -> Iterator[Image]:
    """Yield the frames, (H, W, 3) each. ``openings`` is (T,) and ``poses`` (T, 2, 3)."""
    portrait = draw_portrait(appearance)
    mouth = Mouth(portrait, mirrored=appearance.mirrored)
    for index, (opening, pose) in enumerate(zip(openings, poses, strict=True)):
        mouth.draw_on(portrait, float(opening))
        draw_barcode(portrait, index, mirrored=appearance.mirrored)
        yield np.asarray(
            cv2.warpAffine(portrait, pose, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            dtype=np.uint8,
        )


def make_frame_ticks(rng: np.random.Generator, *, seconds: float, fps: str, clock: Fraction) -> list[int]:
    """Presentation time of each frame in ticks of ``clock`` seconds; the first is 0.

    "variable" means 30 fps with time stamps off by up to 5 ms and a fifth of the frames dropped, at most
    two in a row.
    """
    rate = parse_frame_rate(fps)
    n_frames = max(1, round(seconds * rate))
    times = [Fraction(i) / rate for i in range(n_frames)]
    if fps == "variable":
        jittered, dropped_in_a_row = [Fraction(0)], 0
        for time in times[1:]:
            jitter = Fraction(int(rng.integers(-5, 6)), 1000)
            if rng.random() < 0.2 and dropped_in_a_row < 2:
                dropped_in_a_row += 1
                continue
            jittered.append(time + jitter)
            dropped_in_a_row = 0
        times = jittered
    return [round(time / clock) for time in times]
