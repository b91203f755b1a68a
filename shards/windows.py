"""The order of an epoch in windows of K shards, for datasets that are larger than any disk at hand.

The epoch's shards are shuffled, then dealt out in windows of at most K, and within a window every frame of
its shards is as likely at every place. So K shards suffice at any moment, and an epoch still holds each frame
once. It is a function of (seed, epoch, K) and of the shards, so a dataset that is sharded anew has another.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from shards.frames import ClipTable, Numbers
from shards.rng import derive_key, permute

SHARDS, FRAMES = 0, 1  # what is shuffled


class Window(NamedTuple):
    """One window of an epoch."""

    epoch: int
    number: int


class _Epoch(NamedTuple):
    windows: list[Numbers]  # the shards of each
    ends: Numbers  # the place after the last frame of each


class Windows:
    """FrameSource of a table of clips, drawn a window of shards after the other."""

    def __init__(self, clips: ClipTable, shard_of: ArrayLike, size: int) -> None:
        """``shard_of`` says which shard, 0, 1, ..., each of the clips lies in; ``size`` is K."""
        self.clips = clips
        self.size = size
        shards = np.asarray(shard_of, np.int64)
        self.members = np.argsort(shards, kind="stable")  # clips, shard by shard
        self.bounds = np.searchsorted(shards[self.members], np.arange(shards.max() + 2))
        self.frames = np.bincount(shards, clips.lengths).astype(np.int64)  # of each shard
        self._epochs = functools.lru_cache(maxsize=2)(self._epoch)
        self._clips = functools.lru_cache(maxsize=4)(self._clips_of)

    def windows_at(self, positions: ArrayLike, *, seed: int) -> list[Window]:
        """The windows that these positions of the endless sequence fall into, in order."""
        epochs, windows, _ = self._places(np.asarray(positions, np.int64), seed)
        return [Window(*pair) for pair in sorted(set(zip(epochs.tolist(), windows.tolist(), strict=True)))]

    def locate_shards(self, window: Window, *, seed: int) -> list[int]:
        return [int(shard) for shard in self._epochs(window.epoch, seed).windows[window.number]]

    def after(self, window: Window, *, seed: int) -> Window:
        """The one that comes next."""
        if window.number + 1 < len(self._epochs(window.epoch, seed).windows):
            return Window(window.epoch, window.number + 1)
        return Window(window.epoch + 1, 0)

    def drawn(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Which frame is drawn at each position of the endless sequence of epochs."""
        wanted = np.asarray(positions, np.int64)
        epochs, windows, places = self._places(wanted, seed)
        frames = np.empty_like(wanted)
        for window in self.windows_at(wanted, seed=seed):
            here = (epochs == window.epoch) & (windows == window.number)
            clips, firsts = self._clips(window, seed)
            n_frames = int(firsts[-1] + self.clips.lengths[clips[-1]])
            key = derive_key(seed, FRAMES, window.number)
            things = permute(places[here], n_frames, seed=key, epoch=window.epoch)
            clip = np.searchsorted(firsts, things, side="right") - 1
            frames[here] = self.clips.starts[clips[clip]] + things - firsts[clip]
        return frames

    def _epoch(self, epoch: int, seed: int) -> _Epoch:
        n_shards = len(self.frames)
        shuffled = permute(np.arange(n_shards), n_shards, seed=derive_key(seed, SHARDS), epoch=epoch)
        # as even as can be: a last window of one shard would be hardly shuffled
        windows = np.array_split(shuffled, -(-n_shards // self.size))
        return _Epoch(windows, np.cumsum([self.frames[window].sum() for window in windows]))

    def _clips_of(self, window: Window, seed: int) -> tuple[Numbers, Numbers]:
        """The clips of a window, and the place in it of each one's first frame."""
        shards = self.locate_shards(window, seed=seed)
        clips = np.concatenate([self.members[self.bounds[s] : self.bounds[s + 1]] for s in shards])
        lengths = self.clips.lengths[clips]
        return clips, np.cumsum(lengths) - lengths

    def _places(self, wanted: Numbers, seed: int) -> tuple[Numbers, Numbers, Numbers]:
        """Epoch, window and place in the window of each position."""
        epochs, places = np.divmod(wanted, len(self.clips))
        windows = np.empty_like(wanted)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ends = self._epochs(int(epoch), seed).ends
            windows[here] = np.searchsorted(ends, places[here], side="right")
            places[here] -= np.concatenate([[0], ends])[windows[here]]
        return epochs, windows, places
