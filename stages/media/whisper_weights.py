"""The weights of Whisper tiny.en's encoder, from the files that others publish into one of ours.

Two files hold the same numbers: the official ``model.safetensors``, and ``model.bin`` of CTranslate2. Both
are read without executing anything, and no memory is taken for a count that the file claims. What is written
has the same bytes from either, so one sha256 says whether the weights are the right ones.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shards.errors import shorten, shorten_message
from shards.files import open_file
from stages.engine.outcome import StageError

Array = NDArray[np.float16]

N_MELS = 80
WIDTH = 384  # features of a row
N_BLOCKS = 4

PUBLISHED_NAMES = {"norm": "layer_norm", "conv_1": "conv1", "conv_2": "conv2"}  # in either file

CT2_VERSION = 6
CT2_SPECIFICATION = b"WhisperSpec"
CT2_DTYPES = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}  # bytes of a value
CT2_FLOAT16 = 4
CT2_BLOCK_PARTS = {
    "norm_1": "self_attention/layer_norm",
    "query_key_value": "self_attention/linear_0",
    "projection": "self_attention/linear_1",
    "norm_2": "ffn/layer_norm",
    "expand": "ffn/linear_0",
    "contract": "ffn/linear_1",
}
CT2_NORM_LEAVES = {"weight": "gamma", "bias": "beta"}
OFFICIAL_BLOCK_PARTS = {
    "norm_1": "self_attn_layer_norm",
    "projection": "self_attn.out_proj",
    "norm_2": "final_layer_norm",
    "expand": "fc1",
    "contract": "fc2",
}
OFFICIAL_PREFIX = "model.encoder."
# A file of the whole model has some 150 to 170 tensors. A name has 60 letters, a tensor at most 4 sides.
MAX_TENSORS, MAX_NAME_BYTES, MAX_SIDES = 1000, 200, 4
MAX_HEADER_BYTES = 2**20
LENGTH = struct.Struct("<Q")  # of a safetensors header, at the start of the file


def _list_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the encoder, by its name in ``stages.media.whisper.WhisperEncoder``."""
    layers: dict[str, tuple[int, ...]] = {"conv_1": (WIDTH, N_MELS, 3), "conv_2": (WIDTH, WIDTH, 3)}
    for block in (f"blocks.{number}" for number in range(N_BLOCKS)):
        layers |= {f"{block}.{name}": (WIDTH,) for name in ("norm_1", "norm_2")}
        layers[f"{block}.query_key_value"] = (3 * WIDTH, WIDTH)
        layers[f"{block}.projection"] = (WIDTH, WIDTH)
        layers[f"{block}.expand"] = (4 * WIDTH, WIDTH)
        layers[f"{block}.contract"] = (WIDTH, 4 * WIDTH)
    layers["norm"] = (WIDTH,)
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return dict(sorted((weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()}).items()))


SHAPES: Mapping[str, tuple[int, ...]] = _list_shapes()


def convert_encoder(source: Path, target: Path) -> None:
    """Write the encoder that a published file holds as safetensors, float16; same weights, same bytes.

    ``source`` is the official ``model.safetensors`` or CTranslate2's ``model.bin``. Raises StageError, in one
    line, for anything else.
    """
    try:
        with open_file(source) as file:
            start = file.read(LENGTH.size)
            file.seek(0)
            is_ct2 = start[:4] == struct.pack("<I", CT2_VERSION)
            if not is_ct2 and int.from_bytes(start, "little") > MAX_HEADER_BYTES:
                raise ValueError(f"its header has more than {MAX_HEADER_BYTES:,} bytes")
            tensors = _read_ct2(file) if is_ct2 else _read_official(source)
    except (ValueError, SafetensorError) as err:
        reason = shorten_message(str(err))
        raise StageError(f"{source}: holds no encoder of whisper-tiny.en ({reason})") from err
    except OSError as err:
        raise StageError(f"{source}: cannot be read ({err.strerror or err})") from err
    write_encoder(tensors, target)


def write_encoder(tensors: Mapping[str, Array], target: Path) -> None:
    """Write float16 tensors as safetensors: the header as the format says, then the values."""
    entries: dict[str, object] = {}
    at = 0
    for name in SHAPES:
        end = at + tensors[name].nbytes
        entries[name] = {"dtype": "F16", "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH.size)
    with target.open("wb") as file:
        file.write(LENGTH.pack(len(header)) + header)
        for name in SHAPES:
            file.write(tensors[name].astype("<f2").tobytes())


def _read_ct2(file: BinaryIO) -> dict[str, Array]:
    """The encoder in a ``model.bin`` of CTranslate2 version 6, which stores query, key and value as one."""
    reader = _Ct2Reader(file)
    version, specification, _ = reader.read_number("I"), reader.read_name(), reader.read_number("I")
    if (version, specification) != (CT2_VERSION, CT2_SPECIFICATION):
        raise ValueError(f"it is {shorten(specification)} of version {version}, expected WhisperSpec of 6")
    names = {_name_in_ct2(name).encode(): name for name in SHAPES}
    tensors: dict[str, Array] = {}
    for name, shape, dtype, at, n_bytes in reader.list_tensors():
        if name in names:
            own, expected = names[name], SHAPES[names[name]]
            if (shape, dtype) != (expected, CT2_FLOAT16):
                raise ValueError(
                    f"{own} is {list(shape)} of dtype {dtype}, expected {list(expected)} of {CT2_FLOAT16}"
                )
            file.seek(at)
            tensors[own] = np.frombuffer(file.read(n_bytes), "<f2").reshape(shape)
    if missing := [name for name in SHAPES if name not in tensors]:
        raise ValueError(f"{missing[0]} is missing")
    return tensors


def _name_in_ct2(name: str) -> str:
    layer, leaf = name.rsplit(".", 1)
    if "norm" in layer:
        leaf = CT2_NORM_LEAVES[leaf]
    if layer.startswith("blocks."):
        _, number, part = layer.split(".")
        return f"encoder/layer_{number}/{CT2_BLOCK_PARTS[part]}/{leaf}"
    return f"encoder/{PUBLISHED_NAMES[layer]}/{leaf}"


class _Ct2Reader:
    """Reads numbers and names, and checks each length before it is used."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.n_file_bytes = os.fstat(file.fileno()).st_size

    def read_number(self, form: str) -> int:
        data = self.file.read(struct.calcsize("<" + form))
        if len(data) < struct.calcsize("<" + form):
            raise ValueError("it ends too early")
        (number,) = struct.unpack("<" + form, data)
        return int(number)

    def read_name(self) -> bytes:
        n_bytes = self.read_number("H")
        if n_bytes > MAX_NAME_BYTES:
            raise ValueError(f"a name claims {n_bytes} bytes, expected at most {MAX_NAME_BYTES}")
        return self.file.read(n_bytes).rstrip(b"\0")

    def list_tensors(self) -> Iterator[tuple[bytes, tuple[int, ...], int, int, int]]:
        """(name, shape, dtype, place in the file, bytes) of each tensor; values are not read."""
        n_tensors = self.read_number("I")
        if n_tensors > MAX_TENSORS:
            raise ValueError(f"it claims {n_tensors} tensors, expected at most {MAX_TENSORS}")
        for _ in range(n_tensors):
            name, n_sides = self.read_name(), self.read_number("B")
            if n_sides > MAX_SIDES:
                raise ValueError(f"{shorten(name)} claims {n_sides} sides, expected at most {MAX_SIDES}")
            shape = tuple(self.read_number("I") for _ in range(n_sides))
            dtype, n_bytes, at = self.read_number("B"), self.read_number("I"), self.file.tell()
            if n_bytes != math.prod(shape) * CT2_DTYPES.get(dtype, 0):
                raise ValueError(f"{shorten(name)} has {n_bytes} bytes, not those of {shape}, dtype {dtype}")
            if at + n_bytes > self.n_file_bytes:
                raise ValueError(f"it ends in {shorten(name)}")
            yield name, shape, dtype, at, n_bytes
            self.file.seek(at + n_bytes)


def _read_official(path: Path) -> dict[str, Array]:
    """The encoder in the official ``model.safetensors``, where keys have no bias."""

    def read(name: str, shape: tuple[int, ...]) -> Array:
        entry = file.get_slice(OFFICIAL_PREFIX + name)
        kind, stored = entry.get_dtype(), entry.get_shape()
        if kind not in ("F32", "F16") or stored != list(shape):
            raise ValueError(f"{OFFICIAL_PREFIX}{name} is {kind} {stored}, expected F32 {list(shape)}")
        with np.errstate(over="ignore"):  # infinite then, which the sha256 refuses
            values: Array = file.get_tensor(OFFICIAL_PREFIX + name).astype(np.float16)
        return values

    tensors: dict[str, Array] = {}
    with safe_open(path, "np") as file:
        for name, shape in SHAPES.items():
            layer, leaf = name.rsplit(".", 1)
            *place, part = layer.split(".")
            official = f"layers.{place[1]}." if place else ""
            if part == "query_key_value":
                side = (shape[0] // 3, *shape[1:])
                attention = f"{official}self_attn"
                query, value = (read(f"{attention}.{each}_proj.{leaf}", side) for each in "qv")
                has_key = leaf == "weight"
                key = read(f"{attention}.k_proj.{leaf}", side) if has_key else np.zeros(side, np.float16)
                tensors[name] = np.concatenate([query, key, value])
            elif place:
                tensors[name] = read(f"{official}{OFFICIAL_BLOCK_PARTS[part]}.{leaf}", shape)
            else:
                tensors[name] = read(f"{PUBLISHED_NAMES[part]}.{leaf}", shape)
    return tensors
