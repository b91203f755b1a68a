"""The order in which frames are drawn: a pure function of (seed, epoch), at any place of it, in no memory.

Every draw of training has a position 0, 1, 2, ... that counts on over the epochs. So the state of a
reader is one integer, and ranks, workers and batch sizes are only ways to cut the same sequence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's step


def mixed(words: ArrayLike) -> Words:
    """Steele et al. 2014, splitmix64's finaliser: every bit of the result hangs on every bit of the word."""
    x = np.asarray(words, np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def derive_key(*numbers: int) -> int:
    """One 64-bit key of several whole numbers, in this order."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = mixed(key + np.uint64((number + GOLDEN) % 2**64))
    return int(key[0])


def keys_of(key: int, numbers: Words) -> Words:
    """``derive_key`` with one more number, for many: keys_of(derive_key(a), [b])[0] is derive_key(a, b)."""
    return mixed(np.uint64(key) + numbers + np.uint64(GOLDEN))


def permuted(places: ArrayLike, n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Which of ``n`` things stands at each place (0 <= place < n) of an epoch's order.

    A Feistel network over the next power of four, walked on until it lands below ``n`` (Black & Rogaway
    2002): a bijection for every key, so each thing stands at exactly one place.
    """
    wanted = np.asarray(places, np.uint64)
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(derive_key(seed, epoch, turn)) for turn in range(ROUNDS)]

    def encrypted(words: Words) -> Words:
        left, right = words >> half, words & low
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) & low)
        return np.asarray((left << half) | right)

    found = encrypted(wanted)
    outside = found >= n
    while outside.any():
        found[outside] = encrypted(found[outside])
        outside = found >= n
    return found.astype(np.int64)


def drawn(positions: ArrayLike, n: int, *, seed: int) -> NDArray[np.int64]:
    """Which of ``n`` things is drawn at each position of the endless sequence of epochs."""
    wanted = np.asarray(positions, np.int64)
    things = np.empty_like(wanted)
    for epoch in np.unique(wanted // n):
        chosen = wanted // n == epoch
        things[chosen] = permuted(wanted[chosen] % n, n, seed=seed, epoch=int(epoch))
    return things
