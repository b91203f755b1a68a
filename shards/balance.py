"""An order in which clips or speakers take turns, however many frames each of them has.

The groups (clips or speakers) have a fixed order, shuffled once; position p belongs to group p modulo their
number. So among any consecutive positions no group has more than one frame more than another. A group's
frames come in a shuffled order, and in another one as soon as all have been used: each group has epochs of
its own, which are as long as it has frames. The order is a function of (seed, position), as all others are.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.rng import derive_key, derive_keys, permute, permute_each

Balance = Literal["frames", "clips", "speakers"]

TURNS, FRAMES = 0, 1  # what a key shuffles


class Turns:
    """Groups of clips that take turns."""

    def __init__(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], groups: NDArray[np.int64]
    ) -> None:
        """Each clip's first frame, how many it has, and its group by any numbers, (C,) each; C is not 0."""
        order = np.argsort(groups, kind="stable")
        self._starts = starts[order]  # of the clips, group by group
        self._ends = np.cumsum(lengths[order])  # the same frames, counted group by group
        self._firsts = self._ends - lengths[order]
        numbers, first_clips = np.unique(groups[order], return_index=True)
        self._group_keys = numbers.astype(np.uint64)
        self._group_firsts = self._firsts[first_clips]
        self._group_sizes = np.diff(np.append(self._group_firsts, self._ends[-1]))

    def __len__(self) -> int:
        """The number of groups."""
        return len(self._group_sizes)

    def select_frames(self, positions: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
        """Which frame is at each position, (B,)."""
        rounds, places = np.divmod(positions, len(self))
        group = permute(places, len(self), seed=derive_key(seed, TURNS), epoch=0)
        epochs, places = np.divmod(rounds, self._group_sizes[group])
        keys = derive_keys(derive_key(seed, FRAMES), self._group_keys[group])
        keys = derive_keys(keys, epochs.astype(np.uint64))
        items = self._group_firsts[group] + permute_each(places, self._group_sizes[group], keys)
        clip = np.searchsorted(self._ends, items, side="right")
        frames: NDArray[np.int64] = self._starts[clip] + items - self._firsts[clip]
        return frames
