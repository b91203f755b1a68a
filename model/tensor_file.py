"""The tensors of a network, for safetensors files and from those that may come from anyone.

Names, shapes, dtypes and the size of the file are compared with what the network needs before memory is
taken for a value. Then the values are checked.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.recipe import ModelError
from shards.errors import shorten
from shards.files import open_file

Shapes = Mapping[str, tuple[int, ...]]

FLOAT, FLOAT_BYTES = "F32", 4  # of every tensor that a run writes
HALF, HALF_BYTES = "F16", 2  # of a published model's parameters
# Trained weights are below 10 and AdamW's moments below 1e6. With much larger ones, products are not finite.
MAX_WEIGHT, MAX_MOMENT = 1e4, 1e12
# The header has a line of some 150 bytes for each tensor, and the recipe.
MAX_HEADER_BYTES, MAX_ENTRY_BYTES = 2**16, 2**10
# Of a file whose network is not known before its recipe is read. The largest has a few hundred tensors.
MAX_UNKNOWN_HEADER_BYTES = 2**20
N_LENGTH_BYTES = 8  # the header's length, at the start of the file
METADATA = "__metadata__"  # safetensors' name of the texts beside the tensors


def get_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a module's file holds: parameters and buffers by name, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def load_weights(module: nn.Module, path: Path, *, assign: bool = False, published: bool = False) -> None:
    """Read a module's tensors, or with ``assign`` put those of the file in their place. Raises ModelError.

    ``published``: parameters are float16, and the file may be a link.
    """
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    half = [name for name, _ in module.named_parameters()] if published else []
    tensors = read_tensors(path, shapes, max_value=MAX_WEIGHT, half=half, follow_links=published)
    module.load_state_dict(tensors, assign=assign)


def read_tensors(
    path: Path,
    expected: Shapes,
    *,
    max_value: float,
    half: Collection[str] = (),
    follow_links: bool = False,
) -> dict[str, Tensor]:
    """Read the tensors that redub has written, as float32. Raises ModelError unless exactly these are there.

    ``expected`` are their shapes by name. Those named in ``half`` are stored as float16, the others as
    float32. No value is NaN or beyond +-``max_value``. A link out of the file's folder is refused unless
    ``follow_links``.
    """
    dtypes = {name: HALF if name in half else FLOAT for name in expected}
    n_bytes = sum(
        math.prod(shape) * (HALF_BYTES if dtypes[name] == HALF else FLOAT_BYTES)
        for name, shape in expected.items()
    )
    max_header_bytes = N_LENGTH_BYTES + MAX_HEADER_BYTES + MAX_ENTRY_BYTES * len(expected)
    needed = {name: f"{dtypes[name]} {list(shape)}" for name, shape in expected.items()}
    with _name_problems(path, missing="is missing, so this checkpoint is incomplete"):
        entries = _read_header(path, max_header_bytes, max_header_bytes + n_bytes, follow_links=follow_links)
        _check_entries(path, entries, needed)
        tensors = load_file(path)
    tensors = {name: value.float() for name, value in tensors.items()}
    for name, value in tensors.items():
        _check_values(path, name, value, max_value)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors, by name. Raises ModelError."""
    with _name_problems(path):
        metadata = _read_header(path, MAX_UNKNOWN_HEADER_BYTES, follow_links=True).get(METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
    return metadata


@contextlib.contextmanager
def _name_problems(path: Path, missing: str = "is missing") -> Iterator[None]:
    """Raise ModelError, which names the file, for one that is not there, cannot be read, or is damaged."""
    try:
        yield
    except FileNotFoundError as err:
        raise ModelError(f"{path}: {missing}") from err
    except OSError as err:
        raise ModelError(f"{path}: cannot be read ({err.strerror or err})") from err
    except (ValueError, RecursionError, safetensors.SafetensorError) as err:
        raise ModelError(f"{path}: not a complete safetensors file ({err})") from err


def _read_header(
    path: Path, max_header_bytes: int, max_bytes: int | None = None, *, follow_links: bool
) -> dict[str, Any]:
    """The header of a safetensors file of at most ``max_bytes``. Raises ModelError, OSError or ValueError."""
    with open_file(path, inside=None if follow_links else path.parent) as file:
        n_file_bytes = os.fstat(file.fileno()).st_size
        if max_bytes is not None and n_file_bytes > max_bytes:
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
    return entries


def _check_entries(path: Path, entries: Mapping[str, Any], needed: Mapping[str, str]) -> None:
    """Raise ModelError unless a header lists the tensors that are needed, each with its dtype and shape."""
    stored = {name: _describe_entry(entry) for name, entry in entries.items() if name != METADATA}
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
