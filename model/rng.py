"""Chance as a pure function: every random number hangs on (seed, sample, what it is for), on nothing else.

So a sample is noised and corrupted alike in every batch, on every rank and after every resume, and a
checkpoint has no generator to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shards.rng import derive_key, mixed


class Purpose(IntEnum):
    """What a number is drawn for: no two purposes share a stream."""

    ORDER = 0
    SCALARS = 1
    EPSILON = 2
    PREVIOUS = 3
    DROPOUT = 4
    INITIAL = 5
    SAMPLED = 6


def keys_of(seed: int, positions: ArrayLike, purpose: Purpose) -> NDArray[np.uint64]:
    """One 64-bit key per sample."""
    start = np.uint64(derive_key(seed, purpose))
    return mixed(mixed(np.asarray(positions, np.uint64) + np.uint64(1)) ^ start)


def uniforms(keys: NDArray[np.uint64], n: int) -> NDArray[np.float64]:
    """``n`` numbers in [0, 1) for each key: (B,) -> (B, n)."""
    columns = mixed(np.arange(1, n + 1, dtype=np.uint64))
    words = mixed(keys[:, None] ^ columns[None, :])
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normals(keys: NDArray[np.uint64], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal numbers, (B, *shape), each sample by a generator of its own.

    CPU and GPU draw different numbers from one key.
    """
    values = torch.empty(len(keys), *shape, device=device)
    generator = torch.Generator(device)
    for row, key in zip(values, keys, strict=True):
        row.normal_(generator=generator.manual_seed(int(key) >> 1))
    return values


def words_of(keys: NDArray[np.uint64], device: torch.device) -> Tensor:
    """Keys as (B,) int32, for ``kept``."""
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
    return torch.from_numpy(low).to(device, non_blocking=True)


def salt_of(layer: int) -> int:
    """What tells a layer's dropout from the others', for ``kept``: a compiler could not follow it there."""
    return _signed(derive_key(layer))


def kept(words: Tensor, salt: int, shape: Sequence[int], share: float) -> Tensor:
    """True for ``share`` of a sample's values: (B,) int32 -> (B, *shape) bool.

    Dropout by hashing (seed, sample, layer, place) instead of a generator: whole numbers that wrap, the same
    on every device, which a compiler fuses into its neighbours. The hash is Wellons' lowbias32.
    """
    n = 1
    for side in shape:
        n *= side
    place = torch.arange(n, dtype=torch.int32, device=words.device)
    h: Tensor = place[None, :] * _signed(0x9E3779B1) ^ (words ^ salt)[:, None]
    h = (h ^ _shifted(h, 16)) * _signed(0x7FEB352D)
    h = (h ^ _shifted(h, 15)) * _signed(0x846CA68B)
    h = h ^ _shifted(h, 16)
    return (h < min(int(share * 2**32) - 2**31, 2**31 - 1)).view(len(words), *shape)


def _signed(number: int) -> int:
    """The low 32 bits, read as a signed number."""
    return (number + 2**31) % 2**32 - 2**31


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: int32 has no such shift of its own."""
    shifted: Tensor = (words >> bits) & (2 ** (32 - bits) - 1)
    return shifted
