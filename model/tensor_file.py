"""Read tensors from safetensors files that may come from anyone.

Names, shapes, dtypes and the size of the file are compared with what the network needs before memory is
taken for a value. Then the values are checked.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.recipe import ModelError
from shards.errors import shorten
from shards.files import open_file

Shapes = Mapping[str, tuple[int, ...]]

DTYPE, DTYPE_BYTES = "F32", 4  # of every tensor that a run writes
# Trained weights are below 10 and AdamW's moments below 1e6. With much larger ones, products are not finite.
MAX_WEIGHT, MAX_MOMENT = 1e4, 1e12
# The header has a line of some 150 bytes for each tensor, and the recipe.
MAX_HEADER_BYTES, MAX_ENTRY_BYTES = 2**16, 2**10
N_LENGTH_BYTES = 8  # the header's length, at the start of the file


def read_tensors(path: Path, expected: Shapes, *, max_value: float) -> dict[str, Tensor]:
    """Read the tensors that a run has written, float32. Raises ModelError unless exactly these are there.

    ``expected`` are their shapes by name. No value is NaN or beyond +-``max_value``.
    """
    n_values = sum(_count_values(shape) for shape in expected.values())
    max_header_bytes = N_LENGTH_BYTES + MAX_HEADER_BYTES + MAX_ENTRY_BYTES * len(expected)
    try:
        _check_header(path, expected, max_header_bytes, max_header_bytes + DTYPE_BYTES * n_values)
        tensors = load_file(path)
    except FileNotFoundError as err:
        raise ModelError(f"{path}: is missing, so this checkpoint is incomplete") from err
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror or err})") from err
    except (ValueError, RecursionError, safetensors.SafetensorError) as err:
        raise ModelError(f"{path}: not a complete safetensors file ({err})") from err
    for name, value in tensors.items():
        _check_values(path, name, value, max_value)
    return tensors


def _count_values(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def _check_header(path: Path, expected: Shapes, max_header_bytes: int, max_bytes: int) -> None:
    """Raise ModelError, OSError or ValueError unless the header lists the expected tensors."""
    with open_file(path, inside=path.parent) as file:
        n_file_bytes = os.fstat(file.fileno()).st_size
        if n_file_bytes > max_bytes:
            raise ModelError(f"{path}: has {n_file_bytes:,} bytes, its recipe needs at most {max_bytes:,}")
        length = file.read(N_LENGTH_BYTES)
        if len(length) < N_LENGTH_BYTES:
            raise ValueError("it ends in its header")
        (n_bytes,) = struct.unpack("<Q", length)
        if n_bytes > max_header_bytes:  # as Python objects it takes 50 times as much
            raise ValueError(f"its header claims {n_bytes:,} bytes, expected at most {max_header_bytes:,}")
        entries = json.loads(file.read(n_bytes))
    if not isinstance(entries, dict):
        raise ValueError("its header is not an object")
    entries.pop("__metadata__", None)
    stored = {name: _describe_entry(entry) for name, entry in entries.items()}
    needed = {name: f"{DTYPE} {list(shape)}" for name, shape in expected.items()}
    for name in sorted(stored.keys() | needed.keys()):
        if stored.get(name) != needed.get(name):
            raise ModelError(
                f"{path}: does not fit its recipe: {shorten(name)[1:-1]} is {stored.get(name, 'missing')}, "
                f"expected {needed.get(name, 'no such tensor')}"
            )


def _describe_entry(entry: object) -> str:
    if not isinstance(entry, dict):
        return shorten(entry)
    return shorten(f"{entry.get('dtype')} {entry.get('shape')}")[1:-1]


def _check_values(path: Path, name: str, value: Tensor, max_value: float) -> None:
    if not value.numel():
        return
    low, high = torch.aminmax(value)  # NaN if any value is
    largest = max(abs(float(low)), abs(float(high)))
    if not largest <= max_value:
        raise ModelError(f"{path}: {name} has the value {largest:g}, expected none beyond {max_value:g}")
