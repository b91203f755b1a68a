"""Size and loss of each frame codec, measured on a dataset's own frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.codec import JPEG_QUALITY, Codec, decode_frame, encode_frame
from shards.schema import ClipSample, Frame
from stages.metrics.pixels import compute_psnr, squared_error
from stages.report.inputs import pick_evenly

FRAMES_PER_CLIP = 10
LOSSLESS: tuple[Codec, ...] = ("webp", "png", "raw")
LOSSY: Codec = "jpeg"


@dataclass(frozen=True, slots=True)
class CodecCost:
    """One codec, measured on frames of this dataset."""

    name: str
    is_current: bool  # the dataset's shards use it
    bytes_per_frame: float
    psnr_db: float  # in the mask box, against the shards' frames; infinite for a lossless codec


def measure_codecs(current: str, clips: Sequence[ClipSample]) -> tuple[CodecCost, ...]:
    """Encode some frames with each codec.

    Returns nothing if ``current``, the shards' codec, is lossy: the original pixels are gone.
    """
    if current not in LOSSLESS:
        return ()
    frames = []
    for clip in clips:
        frames += [
            (clip.frames[k], clip.boxes[k]) for k in pick_evenly(range(len(clip.frames)), FRAMES_PER_CLIP)
        ]
    return tuple(_measure_codec(codec, codec == current, frames) for codec in (*LOSSLESS, LOSSY))


def _measure_codec(
    codec: Codec, is_current: bool, frames: Sequence[tuple[Frame, NDArray[np.int16]]]
) -> CodecCost:
    sizes, errors = [], []
    for frame, (x0, y0, x1, y1) in frames:
        data = encode_frame(frame, codec)
        decoded = decode_frame(data, codec, (frame.shape[0], frame.shape[1]))
        sizes.append(len(data))
        errors.append(squared_error(decoded[y0:y1, x0:x1], frame[y0:y1, x0:x1]))
    name = f"{codec} q{JPEG_QUALITY} 4:4:4" if codec == LOSSY else codec
    return CodecCost(name, is_current, float(np.mean(sizes)), compute_psnr(np.array(errors)))
