"""The pixels of a sample: decode once more, warp each frame to its crop, code it. Nothing is lost between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.codec import Codec, encode_frame, write_frames
from stages import align
from stages.align import Matrices
from stages.engine.outcome import Outcome
from stages.engine.parts import read_part
from stages.engine.per_clip import read_array
from stages.media.video import ClockFrame, Frame, read_on_clock


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardParams:
    """How frames are coded."""

    codec: Codec = "webp"  # webp (lossless), jpeg (q95 4:4:4), png or raw
    max_supersample: int = Field(default=16, ge=1, le=32)


def warp(frame: Frame, matrix: NDArray[np.floating], size: int, supersample: int) -> Frame:
    """The crop (size, size, 3) of a frame. Each crop pixel is the mean of ``supersample``² samples.

    Where the crop shrinks the face, one sample a pixel would alias (as the paper's aligner does).
    """
    if supersample == 1:
        return np.asarray(cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)
    # Pixel centres are whole numbers, so the finer grid's first sample lies half a fine pixel in.
    fine = matrix.astype(np.float64) * supersample
    fine[:, 2] += (supersample - 1) / 2
    large = cv2.warpAffine(frame, fine, (size * supersample,) * 2, flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def supersampling(matrices: Matrices, limit: int) -> int:
    """Samples a crop pixel needs along each side so that none of the source is skipped; for a whole clip."""
    scale = float(np.sqrt(np.abs(np.linalg.det(matrices[:, :, :2].astype(np.float64)))).min())
    return min(limit, max(1, math.ceil(1 / scale)))


def crops(frames: Iterator[ClockFrame], matrices: Matrices, size: int, supersample: int) -> Iterator[Frame]:
    """The crop of every frame."""
    for frame, matrix in zip(frames, matrices, strict=True):
        yield warp(frame.image, matrix, size, supersample)


def code_file(
    path: str, start: float, align_part: str, clip_id: str, size: int, params: dict[str, Any], blob: str
) -> Outcome:
    """Crop and code a video's frames to the file ``blob``. Runs in the sandbox."""
    cv2.setNumThreads(1)
    rules = ShardParams(**params)
    row = read_part(Path(align_part), ["clip_id", "affine"])[clip_id]
    matrices = read_array(row, "affine", align.COLUMNS, (-1, 2, 3))
    supersample = supersampling(matrices, rules.max_supersample)
    seconds: list[float] = []

    def noted(frames: Iterator[ClockFrame]) -> Iterator[ClockFrame]:
        for frame in frames:
            seconds.append(round(frame.seconds, 6))
            yield frame

    frames = noted(read_on_clock(Path(path), start, len(matrices)))
    encoded = (encode_frame(crop, rules.codec) for crop in crops(frames, matrices, size, supersample))
    with Path(blob).open("wb") as file:  # as they come: a long clip's frames do not fit in memory
        offsets = write_frames(file, encoded)
    return Outcome(facts={"frame_offsets": offsets, "source_seconds": seconds})
