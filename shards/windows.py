"""The order of an epoch in windows of K shards, for datasets that are larger than the disk.

The shards of an epoch are shuffled, then divided into windows of at most K. Within a window, every frame of
its shards is equally likely at every position. So K shards are enough at any moment, and an epoch still
contains each frame once. The order is a function of (seed, epoch, K) and of the shards: a dataset that is
sharded in another way has another order.

Groups of clips that take turns (``shards.balance``) do so within a window, which has as many positions as
frames: a small group's frames come several times, and some of a large group's do not come in this epoch.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from shards.balance import Turns
from shards.frames import ClipTable, Numbers
from shards.rng import derive_key, permute

SHARDS, FRAMES, TURNS = 0, 1, 2  # what a key shuffles


class Window(NamedTuple):
    """One window of an epoch."""

    epoch: int
    number: int


class _EpochWindows(NamedTuple):
    shards: list[Numbers]  # of each window
    ends: Numbers  # one past the position of each window's last frame


class Windows:
    """The order of a table's frames, one window of shards after the other."""

    def __init__(self, clips: ClipTable, shard_of: ArrayLike, size: int) -> None:
        """``shard_of``: the number of each clip's shard, 0, 1, ..., (C,); ``size`` is K."""
        self.clips = clips
        self.size = size
        shards = np.asarray(shard_of, np.int64)
        self.members = np.argsort(shards, kind="stable")  # clips, shard by shard
        self.bounds = np.searchsorted(shards[self.members], np.arange(shards.max() + 2))
        self.frames = np.bincount(shards, clips.lengths).astype(np.int64)  # of each shard
        self._get_epoch = functools.lru_cache(maxsize=2)(self._shuffle_shards)
        self._get_clips = functools.lru_cache(maxsize=4)(self._list_clips)
        self._get_turns = functools.lru_cache(maxsize=4)(self._group_clips)

    def find_windows(self, positions: ArrayLike, *, seed: int) -> list[Window]:
        """The windows that contain these positions of the endless sequence, in order."""
        return sorted({window for window, _ in self.split_positions(positions, seed=seed)})

    def split_positions(self, positions: ArrayLike, *, seed: int) -> list[tuple[Window, slice]]:
        """Positions of the endless sequence in runs that lie in one window: the window and the run."""
        epochs, windows, _ = self._locate(np.asarray(positions, np.int64), seed)
        changes = np.flatnonzero((np.diff(epochs) != 0) | (np.diff(windows) != 0)) + 1
        bounds = pairwise([0, *changes.tolist(), len(epochs)]) if len(epochs) else ()
        return [(Window(int(epochs[a]), int(windows[a])), slice(a, b)) for a, b in bounds]

    def locate_shards(self, window: Window, *, seed: int) -> list[int]:
        """The shards of a window, by number."""
        return [int(shard) for shard in self._get_epoch(window.epoch, seed).shards[window.number]]

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Which frame is at each position of the endless sequence of epochs."""
        positions = np.asarray(positions, np.int64)
        epochs, windows, offsets = self._locate(positions, seed)
        frames = np.empty_like(positions)
        for window in self.find_windows(positions, seed=seed):
            in_window = (epochs == window.epoch) & (windows == window.number)
            if self.clips.groups is not None:
                key = derive_key(seed, TURNS, window.epoch, window.number)
                turns = self._get_turns(window, seed)
                frames[in_window] = turns.select_frames(offsets[in_window], seed=key)
                continue
            clips, firsts = self._get_clips(window, seed)
            n_frames = int(firsts[-1] + self.clips.lengths[clips[-1]])
            key = derive_key(seed, FRAMES, window.number)
            items = permute(offsets[in_window], n_frames, seed=key, epoch=window.epoch)
            clip = np.searchsorted(firsts, items, side="right") - 1
            frames[in_window] = self.clips.starts[clips[clip]] + items - firsts[clip]
        return frames

    def _shuffle_shards(self, epoch: int, seed: int) -> _EpochWindows:
        n_shards = len(self.frames)
        shuffled = permute(np.arange(n_shards), n_shards, seed=derive_key(seed, SHARDS), epoch=epoch)
        # as even as possible: a last window of one shard would hardly be shuffled
        windows = np.array_split(shuffled, -(-n_shards // self.size))
        return _EpochWindows(windows, np.cumsum([self.frames[window].sum() for window in windows]))

    def _list_clips(self, window: Window, seed: int) -> tuple[Numbers, Numbers]:
        """The clips of a window, and the offset in it of each one's first frame."""
        shards = self.locate_shards(window, seed=seed)
        clips = np.concatenate([self.members[self.bounds[s] : self.bounds[s + 1]] for s in shards])
        lengths = self.clips.lengths[clips]
        return clips, np.cumsum(lengths) - lengths

    def _group_clips(self, window: Window, seed: int) -> Turns:
        """The groups of a window's clips; which clips does not depend on the order of its shards."""
        return self.clips.group_clips(np.sort(self._get_clips(window, seed)[0]))

    def _locate(self, positions: Numbers, seed: int) -> tuple[Numbers, Numbers, Numbers]:
        """Epoch, window and offset in the window of each position."""
        epochs, offsets = np.divmod(positions, len(self.clips))
        windows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            ends = self._get_epoch(int(epoch), seed).ends
            windows[in_epoch] = np.searchsorted(ends, offsets[in_epoch], side="right")
            offsets[in_epoch] -= np.concatenate([[0], ends])[windows[in_epoch]]
        return epochs, windows, offsets
