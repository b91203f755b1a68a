"""A clip as video: large, with its box, above its mels, and with the sound of these."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.reader import Dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample
from stages.preview.drawing import (
    BACKGROUND,
    BRIDGED,
    DIM,
    GAP_PX,
    MARK,
    TEXT,
    Frame,
    boxed,
    bridged_frames,
    draw_seconds,
    draw_text,
    mel_picture,
)
from stages.preview.sound import mels_params, sound_of

VIDEO_SIDE_PX = 512
VIDEO_SPAN_SECONDS = 6.0  # of mel below the frame; longer clips scroll


def video_frames(sample: ClipSample) -> Iterator[Frame]:
    """Each frame of a clip, large, with its box, above the mels and a line where it lies in them."""
    height, width = sample.frames.shape[1:3]
    side = max(1, VIDEO_SIDE_PX // max(height, width)) * max(height, width)
    side += side % 2
    text, line, mel_height = 16, 28, side // 4 // 2 * 2
    mel_top = line + side + GAP_PX
    canvas = Image.new("RGB", (side, mel_top + mel_height + line), BACKGROUND)
    n_frames, bridged = len(sample.frames), set(bridged_frames(sample))
    total = n_frames / VIDEO_FPS
    span = min(total, VIDEO_SPAN_SECONDS)
    for k in range(n_frames):
        now = k / VIDEO_FPS
        start = min(max(now - span / 2, 0), total - span)
        picture = canvas.copy()
        draw = ImageDraw.Draw(picture)
        what = f"frame {k} of {n_frames} · {now:.2f} s"
        if k in bridged:
            what = f"interpolated · {what}"
        color = BRIDGED if k in bridged else TEXT
        used = draw_text(draw, (side - 6, 20), what, text, color, width=side, anchor="rs")
        draw_text(draw, (6, 20), sample.key, text, DIM, width=side - used - 24)
        picture.paste(Image.fromarray(boxed(sample.frames[k], sample.boxes[k], side)), (0, line))
        mel = mel_picture(sample.mels, start=start, seconds=span, width=side, height=mel_height)
        picture.paste(Image.fromarray(mel), (0, mel_top))
        x = round((now - start) / span * side)
        draw.rectangle((x, mel_top - GAP_PX, x + 1, mel_top + mel_height + 3), MARK)
        draw_seconds(draw, 0, mel_top + mel_height, side, start, span, text - 3)
        yield np.array(picture)


def write_video(dataset: Dataset, clip_id: str, out: Path) -> int:
    """Write a clip as mp4 with the sound of its mels; returns how many frames it has."""
    from stages.media.audio import SAMPLE_RATE
    from stages.media.encode import AudioTrack, write_mp4

    sample = read_clip(dataset, clip_id)
    sound = sound_of(sample.mels, mels_params(dataset))
    track = AudioTrack([sound[:, None]], rate=SAMPLE_RATE, channels=1)
    return write_mp4(out, video_frames(sample), fps=Fraction(VIDEO_FPS), audio=track)
