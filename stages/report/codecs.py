"""What a codec costs in the mouth, measured on a dataset's own frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.codec import JPEG_QUALITY, Codec, Frame, decode_frame, encode_frame
from shards.schema import ClipSample
from stages.evaluate.metrics.pixels import compute_psnr, squared_error
from stages.report.inputs import evenly

FRAMES_CODED = 10  # of each clip
LOSSLESS: tuple[Codec, ...] = ("webp", "png", "raw")
LOSSY: Codec = "jpeg"


@dataclass(frozen=True, slots=True)
class CodecRow:
    """A way to store frames, measured on frames of this dataset."""

    name: str
    used: bool
    bytes_per_frame: float
    psnr_db: float  # in the mask box, against what the shards hold; infinite where nothing is lost


def codec_rows(used: str, clips: Sequence[ClipSample]) -> tuple[CodecRow, ...]:
    """What each codec would cost; nothing where the shards themselves have lost what was there before."""
    if used not in LOSSLESS:
        return ()
    frames = []
    for clip in clips:
        frames += [(clip.frames[k], clip.boxes[k]) for k in evenly(range(len(clip.frames)), FRAMES_CODED)]
    return tuple(_codec_row(codec, codec == used, frames) for codec in (*LOSSLESS, LOSSY))


def _codec_row(codec: Codec, used: bool, frames: Sequence[tuple[Frame, NDArray[np.int16]]]) -> CodecRow:
    sizes, errors = [], []
    for frame, (x0, y0, x1, y1) in frames:
        data = encode_frame(frame, codec)
        back = decode_frame(data, codec, (frame.shape[0], frame.shape[1]))
        sizes.append(len(data))
        errors.append(squared_error(back[y0:y1, x0:x1], frame[y0:y1, x0:x1]))
    name = f"{codec} q{JPEG_QUALITY} 4:4:4" if codec == LOSSY else codec
    return CodecRow(name, used, float(np.mean(sizes)), compute_psnr(np.array(errors)))
