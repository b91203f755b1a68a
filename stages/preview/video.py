"""A clip as a video: enlarged frames with mask boxes above the mels, and audio made from the mels."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.reader import Dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample, Frame
from stages.mels import read_mels_params
from stages.preview.drawing import (
    BACKGROUND,
    DIM,
    GAP_PX,
    INTERPOLATED,
    MARK,
    TEXT,
    draw_mask_box,
    draw_mels,
    draw_seconds,
    draw_text,
    find_interpolated_frames,
)
from stages.preview.sound import synthesise_audio

VIDEO_SIDE_PX = 512
VIDEO_SPAN_SECONDS = 6.0  # of mels below the frame; for longer clips they scroll


def draw_video_frames(sample: ClipSample) -> Iterator[Frame]:
    """Draw each frame of a clip with its mask box, above the mels with a line at the frame's time."""
    height, width = sample.frames.shape[1:3]
    side = max(1, VIDEO_SIDE_PX // max(height, width)) * max(height, width)
    side += side % 2
    text, line, mel_height = 16, 28, side // 4 // 2 * 2
    mel_top = line + side + GAP_PX
    canvas = Image.new("RGB", (side, mel_top + mel_height + line), BACKGROUND)
    n_frames, interpolated = len(sample.frames), set(find_interpolated_frames(sample))
    total = n_frames / VIDEO_FPS
    span = min(total, VIDEO_SPAN_SECONDS)
    for k in range(n_frames):
        now = k / VIDEO_FPS
        start = min(max(now - span / 2, 0), total - span)
        image = canvas.copy()
        draw = ImageDraw.Draw(image)
        label = f"frame {k} of {n_frames} · {now:.2f} s"
        if k in interpolated:
            label = f"interpolated · {label}"
        color = INTERPOLATED if k in interpolated else TEXT
        label_width = draw_text(draw, (side - 6, 20), label, text, color, width=side, anchor="rs")
        draw_text(draw, (6, 20), sample.key, text, DIM, width=side - label_width - 24)
        image.paste(Image.fromarray(draw_mask_box(sample.frames[k], sample.boxes[k], side)), (0, line))
        mel = draw_mels(sample.mels, start=start, seconds=span, width=side, height=mel_height)
        image.paste(Image.fromarray(mel), (0, mel_top))
        x = round((now - start) / span * side)
        draw.rectangle((x, mel_top - GAP_PX, x + 1, mel_top + mel_height + 3), MARK)
        draw_seconds(draw, 0, mel_top + mel_height, side, start, span, text - 3)
        yield np.array(image)


def write_video(dataset: Dataset, clip_id: str, out: Path) -> int:
    """Write a clip as mp4, with audio made from its mels; return its number of frames."""
    from stages.media.audio import SAMPLE_RATE
    from stages.media.encode import AudioTrack, write_mp4

    sample = read_clip(dataset, clip_id)
    audio = synthesise_audio(sample.mels, read_mels_params(dataset))
    track = AudioTrack([audio[:, None]], rate=SAMPLE_RATE, channels=1)
    return write_mp4(out, draw_video_frames(sample), fps=Fraction(VIDEO_FPS), audio=track, redrawn=False)
