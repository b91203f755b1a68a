"""The contract of a sample: shapes, units, names of its members in the tar, and checks."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shards.documents import Document, check_document, parse_object
from shards.errors import ShardError as ShardError  # the error of whatever breaks this contract
from shards.errors import shorten

Frame = NDArray[np.uint8]  # (H, W, 3), RGB
Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB

SCHEMA_VERSION = 1

VIDEO_FPS = 25
MEL_FPS = 50
MAX_MELS = 2048  # bands: more than an FFT of 4096 samples has bins
MELS_PER_FRAME = MEL_FPS // VIDEO_FPS
SPEECH_PER_FRAME = 2  # rows, centred as the mel rows are
MAX_SPEECH_FEATURES = 4096  # more than any published speech encoder has

BOXES_MEMBER = "boxes.npy"
MELS_MEMBER = "mels.npy"
AFFINE_MEMBER = "affine.npy"
SPEECH_MEMBER = "speech.npy"  # of all clips of a dataset or of none
JSON_MEMBER = "json"

MAX_SIZE = 1024  # px of a crop's side
MAX_FRAMES = 1_000_000  # of a clip: 11 hours
MAX_CLIP_BYTES = 2**32  # of decoded frames: 10 minutes of 256 px are 2.9 GB
MAX_SPEECH_VALUE = 1e4  # either way: features of a layer norm are below 100
MAX_MEL_DB = 300.0  # either way: float32 has no larger range of powers
MIN_CROP_SCALE = 1e-4  # crop px per source px: a smaller matrix cannot be inverted in float32

Codec = Literal["webp", "jpeg", "png", "raw"]


def get_frames_member(codec: str) -> str:
    """Name of the member that holds the frames, e.g. ``frames.webp``."""
    return f"frames.{codec}"


@dataclass(frozen=True, slots=True)
class ClipSample:
    """One talking clip of T frames, cropped and aligned.

    Points and boxes are in pixels of the crop, with pixel centres at integers (OpenCV's convention), so
    ``cv2.warpAffine(source, affine[k], (W, H))`` gives frame k.
    """

    key: str  # "<speaker>_<clip>"; no dots, a dot would split the key in the tar
    frames: NDArray[np.uint8]  # (T, H, W, 3), RGB
    boxes: NDArray[np.int16]  # (T, 4), x0 y0 x1 y1 of the masked region, x1 and y1 exclusive
    mels: NDArray[np.float32]  # (2T, M), dB below the clip's maximum; row j is centred on j/50 s
    affine: NDArray[np.float32]  # (T, 2, 3), source px -> crop px
    info: Mapping[str, Any]  # the json member: see docs/shards.md
    # (2T, D), features of a speech encoder; row j is centred on j/50 s. None where the dataset has none.
    speech: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        n_frames = len(self.frames)
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ShardError(
                f"{self.key}: frames are {self.frames.dtype} {self.frames.shape}, expected uint8 (T, H, W, 3)"
            )
        size = self.frames.shape[1:3]
        check_arrays(self.key, n_frames, size, self.boxes, self.mels, self.affine, self.speech)


def check_arrays(
    key: str,
    n_frames: int,
    size: tuple[int, ...],
    boxes: NDArray[Any],
    mels: NDArray[Any],
    affine: NDArray[Any],
    speech: NDArray[Any] | None = None,
) -> None:
    """Raise ShardError unless the arrays belong to ``n_frames`` crops of ``size`` (H, W)."""
    if boxes.dtype != np.int16 or boxes.shape != (n_frames, 4):
        raise ShardError(f"{key}: boxes are {boxes.dtype} {boxes.shape}, expected int16 ({n_frames}, 4)")
    if mels.dtype != np.float32 or mels.ndim != 2 or len(mels) != n_frames * MELS_PER_FRAME:
        raise ShardError(
            f"{key}: {n_frames} frames need {n_frames * MELS_PER_FRAME} mel rows of float32, "
            f"got {mels.dtype} {mels.shape}"
        )
    if affine.dtype != np.float32 or affine.shape != (n_frames, 2, 3):
        raise ShardError(
            f"{key}: affine is {affine.dtype} {affine.shape}, expected float32 ({n_frames}, 2, 3)"
        )
    height, width = size
    x0, y0, x1, y1 = boxes.T
    inside = (x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= width) & (y1 <= height)
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ShardError(
            f"{key}: box of frame {worst} is {boxes[worst].tolist()}, "
            f"expected 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
        )
    check_values(key, mels, affine)
    if speech is not None:
        check_speech(key, n_frames, speech)


def describe_excess(n_frames: int, size: int) -> str:
    """What is more in a clip of so many frames of ``size`` px than a reader accepts; empty if nothing is."""
    if n_frames > MAX_FRAMES:
        return f"{n_frames} frames, expected at most {MAX_FRAMES}"
    if (n_bytes := n_frames * size**2 * 3) > MAX_CLIP_BYTES:
        return (
            f"{n_frames} frames of {size} px are {n_bytes / 1e9:.3g} GB, "
            f"expected at most {MAX_CLIP_BYTES / 1e9:.3g}"
        )
    return ""


def check_values(key: str, mels: NDArray[np.float32], affine: NDArray[np.float32]) -> None:
    """Raise ShardError unless mels are decibels and each matrix maps the source to a crop and back."""
    if not (np.isfinite(mels).all() and np.isfinite(affine).all()):
        raise ShardError(f"{key}: mels or affine hold values that are not finite")
    loudest = float(np.abs(mels).max(initial=0))
    if loudest > MAX_MEL_DB:
        raise ShardError(f"{key}: mels reach {loudest:.3g} dB, expected at most {MAX_MEL_DB:g} either way")
    matrices = affine[:, :, :2].astype(np.float64)
    scales = np.sqrt(np.abs(np.linalg.det(matrices)))
    is_wrong = (scales < MIN_CROP_SCALE) | (np.abs(affine).max(axis=(1, 2)) > 1 / MIN_CROP_SCALE**2)
    if is_wrong.any():
        worst = int(np.argmax(is_wrong))
        raise ShardError(
            f"{key}: the matrix of frame {worst} is {affine[worst].tolist()}, which cannot be inverted"
        )


def check_speech(key: str, n_frames: int, speech: NDArray[Any]) -> None:
    """Raise ShardError unless an array is the speech features of ``n_frames`` frames."""
    n_rows = n_frames * SPEECH_PER_FRAME
    if (
        speech.dtype != np.float16
        or speech.ndim != 2
        or len(speech) != n_rows
        or not 1 <= speech.shape[1] <= MAX_SPEECH_FEATURES
    ):
        raise ShardError(
            f"{key}: {n_frames} frames need {n_rows} rows of 1 to {MAX_SPEECH_FEATURES} speech features in "
            f"float16, got {speech.dtype} {speech.shape}"
        )
    is_finite = np.isfinite(speech).all(axis=1)
    if not is_finite.all():
        raise ShardError(f"{key}: speech features of row {int(np.argmin(is_finite))} are not finite")
    if (largest := float(np.abs(speech).max())) > MAX_SPEECH_VALUE:
        raise ShardError(f"{key}: speech features reach {largest:.5g}, expected at most {MAX_SPEECH_VALUE:g}")


def array_to_npy(array: NDArray[Any]) -> bytes:
    """The array as a .npy file. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


# Parsed here, as numpy evaluates a header as a literal, which fails at random when several threads do so in
# Python 3.11 before 3.11.8 (https://github.com/python/cpython/issues/106905).
DIMENSION = rb"[0-9]{1,12}"
NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"(?P<text>\{'descr': '(?P<dtype>[<>|][biuf][1248])', 'fortran_order': (?P<is_fortran>True|False), "
    rb"'shape': \((?P<shape>|%b,|%b(?:, %b){1,7})\), \} *\n)" % (DIMENSION, DIMENSION, DIMENSION),
    re.DOTALL,
)


def npy_to_array(data: bytes, name: str) -> NDArray[Any]:
    """Read an untrusted .npy file. Raises ShardError unless it is a plain array of exactly these bytes."""
    try:
        header = NPY_HEADER.match(data)
        if header is None or int.from_bytes(header["length"], "little") != len(header["text"]):
            raise ValueError("expected the header of an array of numbers, as numpy.save writes it")
        dtype = np.dtype(header["dtype"].decode())
        shape = tuple(int(n) for n in header["shape"].split(b",") if n)
        n_bytes, n_present = math.prod(shape) * dtype.itemsize, len(data) - header.end()
        if n_bytes != n_present:  # checked before memory is allocated for what the header declares
            raise ValueError(f"its header declares {n_bytes} bytes, {n_present} follow")
        order: Literal["C", "F"] = "C" if header["is_fortran"] == b"False" else "F"
        values = np.frombuffer(data, dtype, offset=header.end())
        array: NDArray[Any] = values.reshape(shape, order=order).copy()
        return array
    except (ValueError, TypeError) as err:  # TypeError: a dtype of no such size
        raise ShardError(f"{name}: not a plain .npy array ({err})") from err


def info_to_json(info: Mapping[str, Any]) -> bytes:
    """The json member. Equal values give equal bytes."""
    return json.dumps(info, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


Text = Annotated[str, Field(max_length=2**16)]
Seconds = Annotated[float, Field(ge=-1e9, le=1e9)]
Offset = Annotated[int, Field(ge=0, le=2**40)]


class SampleInfo(Document):
    """The json member: see docs/shards.md. Only what redub needs is required."""

    schema_version: Literal[1]
    frames: int = Field(ge=1, le=MAX_FRAMES)
    size: int = Field(ge=1, le=MAX_SIZE)
    codec: Codec
    frame_offsets: Annotated[list[Offset], Field(fail_fast=True, min_length=2, max_length=MAX_FRAMES + 1)]
    clip_id: Text | None = None
    corpus: Text | None = None
    speaker: Text | None = None
    sentence: Text | None = None
    emotion: Text | None = None
    level: Text | None = None
    split: Text | None = None
    source: Text | None = None
    source_sha256: Text | None = None
    source_fps: Annotated[float, Field(ge=0, le=1e6)] | None = None
    source_size: (
        Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(min_length=2, max_length=2)] | None
    ) = None
    source_start: Seconds | None = None
    # Of a span of a file that was cut.
    start_seconds: Seconds | None = None
    end_seconds: Seconds | None = None
    track: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    sync_confidence: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    lag_frames: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    sound_shift: Seconds | None = None
    source_seconds: Annotated[list[Seconds], Field(fail_fast=True, max_length=MAX_FRAMES)] | None = None
    interpolated_frames: (
        Annotated[
            list[Annotated[int, Field(ge=0, lt=MAX_FRAMES)]], Field(fail_fast=True, max_length=MAX_FRAMES)
        ]
        | None
    ) = None
    notes: Annotated[list[Text], Field(fail_fast=True, max_length=1000)] | None = None
    tools: Annotated[dict[Text, Text], Field(max_length=1000)] | None = None


def json_to_info(data: bytes, name: str) -> dict[str, Any]:
    """Read an untrusted json member. Raises ShardError unless it is an object that SampleInfo allows."""
    info = parse_object(data, name)
    if info.get("schema_version") != SCHEMA_VERSION:
        raise ShardError(
            f"{name}: schema version {shorten(info.get('schema_version'))}, this redub reads {SCHEMA_VERSION}"
        )
    check_document(info, SampleInfo, name)
    n_frames, n_offsets = info["frames"], len(info["frame_offsets"])
    if n_offsets != n_frames + 1:
        raise ShardError(f"{name}: {n_offsets} frame offsets, {n_frames} frames need {n_frames + 1}")
    if excess := describe_excess(n_frames, info["size"]):
        raise ShardError(f"{name}: {excess}")
    return info
