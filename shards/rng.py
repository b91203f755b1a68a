"""Counter-based random numbers: every number is a pure function of integers, and there is no state to save.

A random number depends on (seed, sample, purpose) and on nothing else, so a sample gets the same noise and
the same corruption in every batch, on every rank and after every resume. Each sample of training has a
position 0, 1, 2, ... that counts on over the epochs. The state of a reader is therefore one integer; ranks,
workers and batch sizes only divide the same sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

Keys = NDArray[np.uint64]

FEISTEL_ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64


class Purpose(IntEnum):
    """What a random number is used for: no two purposes share a stream."""

    ORDER = 0
    SCALARS = 1
    EPSILON = 2
    PREVIOUS = 3
    DROPOUT = 4
    INITIAL = 5
    SAMPLER = 6
    MELS = 7
    COMMON_NOISE = 8
    APPEARANCE = 9


def mix_bits(values: ArrayLike) -> Keys:
    """Steele et al. 2014, the finaliser of splitmix64: every bit of the result depends on every input bit."""
    x = np.asarray(values, np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def derive_key(*numbers: int) -> int:
    """One 64-bit key from several integers; their order counts."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mix_bits(key + np.uint64((number + GOLDEN) % 2**64))
    return int(key[0])


def derive_keys(keys: int | Keys, numbers: Keys) -> Keys:
    """Append an integer to a key, vectorised: derive_keys(derive_key(a), [b])[0] is derive_key(a, b)."""
    return mix_bits(np.asarray(keys, np.uint64) + numbers + np.uint64(GOLDEN))


def derive_sample_keys(seed: int, positions: ArrayLike, purpose: Purpose) -> Keys:
    """One 64-bit key for each position and one purpose, (B,)."""
    start = np.uint64(derive_key(seed, purpose))
    return mix_bits(mix_bits(np.asarray(positions, np.uint64) + np.uint64(1)) ^ start)


def uniforms(keys: Keys, n: int) -> NDArray[np.float64]:
    """``n`` numbers in [0, 1) for each key: (B,) -> (B, n)."""
    columns = mix_bits(np.arange(1, n + 1, dtype=np.uint64))
    bits = mix_bits(keys[:, None] ^ columns[None, :])
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normals(keys: Keys, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Standard normal numbers, (B, *shape), each sample from a generator of its own.

    CPU and GPU return different numbers for the same key.
    """
    import torch  # only here: the processes that only need keys start without torch

    values = torch.empty(len(keys), *shape, device=device)
    generator = torch.Generator(device)
    for row, key in zip(values, keys, strict=True):
        row.normal_(generator=generator.manual_seed(int(key) >> 1))
    return values


def permute(places: ArrayLike, n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of ``n`` items is at each place (0 <= place < n) of an epoch's order, without a table.

    A Feistel network over the next power of four, applied again while the result is not below ``n`` (cycle
    walking, Black & Rogaway 2002): a bijection for every key, so each item is at exactly one place.
    """
    keys = [np.uint64(derive_key(seed, epoch, number)) for number in range(FEISTEL_ROUNDS)]
    half = np.uint64(_count_half_bits(n))
    return _walk_cycles(np.asarray(places, np.uint64), np.uint64(n), half, keys)


def permute_each(places: ArrayLike, sizes: ArrayLike, keys: Keys) -> NDArray[np.int64]:
    """``permute`` with a number of items (B,) and a key (B,) of each place's own: (B,)."""
    sizes = np.asarray(sizes, np.uint64)
    unique_sizes, which = np.unique(sizes, return_inverse=True)
    half = np.array([_count_half_bits(int(size)) for size in unique_sizes], np.uint64)[which]
    round_keys = [derive_keys(keys, np.full_like(keys, number)) for number in range(FEISTEL_ROUNDS)]
    return _walk_cycles(np.asarray(places, np.uint64), sizes, half, round_keys)


def _count_half_bits(n: int) -> int:
    """Bits of each half of the numbers below the power of four that is not less than ``n``."""
    return max(1, (max(n - 1, 1).bit_length() + 1) // 2)


def _walk_cycles(
    places: Keys, n: np.uint64 | Keys, half: np.uint64 | Keys, keys: Sequence[np.uint64 | Keys]
) -> NDArray[np.int64]:
    """The items at ``places`` (B,); the others are one number for all of them, or (B,)."""
    items = _encrypt(places, half, keys)
    outside = items >= n

    def select(numbers: np.uint64 | Keys) -> np.uint64 | Keys:
        return numbers[outside] if isinstance(numbers, np.ndarray) else numbers

    while outside.any():
        items[outside] = _encrypt(items[outside], select(half), [select(key) for key in keys])
        outside = items >= n
    return items.astype(np.int64)


def _encrypt(values: Keys, half: np.uint64 | Keys, keys: Sequence[np.uint64 | Keys]) -> Keys:
    """A Feistel network on numbers of two halves."""
    low = (np.uint64(1) << half) - np.uint64(1)
    high_bits, low_bits = values >> half, values & low
    for key in keys:
        high_bits, low_bits = low_bits, high_bits ^ (mix_bits(low_bits ^ key) & low)
    return np.asarray((high_bits << half) | low_bits)


def epoch_order(positions: ArrayLike, n: int, *, seed: int) -> NDArray[np.int64]:
    """Which of ``n`` items is at each position of the endless sequence of shuffled epochs."""
    positions = np.asarray(positions, np.int64)
    items = np.empty_like(positions)
    for epoch in np.unique(positions // n):
        in_epoch = positions // n == epoch
        items[in_epoch] = permute(positions[in_epoch] % n, n, seed=seed, epoch=int(epoch))
    return items
