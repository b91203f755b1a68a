"""The contract of a sample: shapes, units, names of its members in the tar, and checks."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError as ShardError  # the error of whatever breaks this contract

Frame = NDArray[np.uint8]  # (H, W, 3), RGB
Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB

SCHEMA_VERSION = 1

VIDEO_FPS = 25
MEL_FPS = 50
MAX_MELS = 2048  # bands: more than an FFT of 4096 samples has bins
MELS_PER_FRAME = MEL_FPS // VIDEO_FPS

BOXES_MEMBER = "boxes.npy"
MELS_MEMBER = "mels.npy"
AFFINE_MEMBER = "affine.npy"
JSON_MEMBER = "json"

MAX_NPY_HEADER_BYTES = 10_000
MAX_SIZE = 1024  # px of a crop's side


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

    def __post_init__(self) -> None:
        n_frames = len(self.frames)
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ShardError(
                f"{self.key}: frames are {self.frames.dtype} {self.frames.shape}, expected uint8 (T, H, W, 3)"
            )
        check_arrays(self.key, n_frames, self.frames.shape[1:3], self.boxes, self.mels, self.affine)


def check_arrays(
    key: str,
    n_frames: int,
    size: tuple[int, ...],
    boxes: NDArray[Any],
    mels: NDArray[Any],
    affine: NDArray[Any],
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
    if not (np.isfinite(mels).all() and np.isfinite(affine).all()):
        raise ShardError(f"{key}: mels or affine hold values that are not finite")


def array_to_npy(array: NDArray[Any]) -> bytes:
    """The array as a .npy file. Equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def npy_to_array(data: bytes, name: str) -> NDArray[Any]:
    """Read an untrusted .npy file. Raises ShardError unless it is a plain array of exactly these bytes."""
    file = io.BytesIO(data)
    try:
        if (version := np.lib.format.read_magic(file)) != (1, 0):
            raise ValueError(f"format version {version}, expected (1, 0)")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(
            file, max_header_size=MAX_NPY_HEADER_BYTES
        )
        if dtype.hasobject:
            raise ValueError("its values are pickled objects")
        n_bytes, n_present = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if n_bytes != n_present:  # checked before memory is allocated for what the header declares
            raise ValueError(f"its header declares {n_bytes} bytes, {n_present} follow")
        values = np.frombuffer(data, dtype, offset=file.tell())
        array: NDArray[Any] = values.reshape(shape, order="F" if is_fortran else "C").copy()
        return array
    except (ValueError, EOFError, OSError, MemoryError, TypeError, SyntaxError) as err:
        raise ShardError(f"{name}: not a plain .npy array ({err})") from err


def info_to_json(info: Mapping[str, Any]) -> bytes:
    """The json member. Equal values give equal bytes."""
    return json.dumps(info, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def json_to_info(data: bytes, name: str) -> dict[str, Any]:
    """Read an untrusted json member. Raises ShardError unless it is an object of this schema version."""
    try:
        info = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ShardError(f"{name}: not JSON ({err})") from err
    if not isinstance(info, dict):
        raise ShardError(f"{name}: JSON holds {type(info).__name__}, expected an object")
    if info.get("schema_version") != SCHEMA_VERSION:
        raise ShardError(
            f"{name}: schema version {info.get('schema_version')!r}, this redub reads {SCHEMA_VERSION}"
        )
    return info
