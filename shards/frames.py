"""FrameSource by number: which clip each belongs to, which ones a batch needs, and what was found for it.

A dataset may lie in memory, on this machine's disk or elsewhere (``shards.resident``, ``shards.streaming``): for
training it is a ``FrameSource``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shards.schema import ShardError

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class ClipTable:
    """Clips end to end, in the order of their ids: however they were sharded, frame n is the same."""

    ids: Sequence[str]
    starts: Numbers  # (C + 1,): the number of each clip's first frame, and of all frames

    @classmethod
    def of(cls, ids: Sequence[str], lengths: ArrayLike) -> ClipTable:
        return cls(ids, np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def lengths(self) -> Numbers:
        return np.diff(self.starts)

    def clip_of(self, index: Numbers) -> Numbers:
        """The place in ``ids`` of each frame's clip."""
        return np.searchsorted(self.starts, index, side="right") - 1


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """What a network takes."""

    size: int  # px of a crop's side
    n_mels: int
    silence_db: float
    top: int = 0  # the first row that it looks at

    def check_dataset(self, manifest: Mapping[str, Any], name: str) -> None:
        """Raise ShardError when a dataset was built for another network, as far as its manifest tells."""
        params: Any = manifest.get("params") or {}
        for section, key, wanted, what in (
            ("align", "size", self.size, "px crops"),
            ("mels", "n_mels", self.n_mels, "mel bins"),
            ("mels", "top_db", -self.silence_db, "dB of range"),
        ):
            found = params.get(section, {}).get(key)
            if found is not None and found != wanted:
                raise ShardError(f"{name}: holds {found:g} {what}, the network takes {wanted:g}")

    def check_clip(
        self, name: str, n_frames: int, shape: tuple[int, ...], boxes: NDArray[Any], mels: NDArray[Any]
    ) -> None:
        """Raise ShardError unless a clip's frames are ``n_frames`` of (T, H, W, 3), and all of it fits."""
        highest = int(boxes[:, 1].min())
        if highest < self.top:
            raise ShardError(
                f"{name} has a mask box that begins at row {highest}, the network looks at rows from "
                f"{self.top} on"
            )
        if shape != (n_frames, self.size, self.size, 3) or mels.shape[1] != self.n_mels:
            raise ShardError(
                f"{name} holds frames {shape} and {mels.shape[1]} mel bins, "
                f"expected {(n_frames, self.size, self.size, 3)} and {self.n_mels}"
            )


class BatchIndex(NamedTuple):
    """What the samples of a batch are made of, (B,) each: frames by number."""

    positions: Numbers  # of the draws, in the endless sequence of epochs
    target: Numbers  # the frame itself
    before: Numbers  # the one before it; a clip's first frame stands before itself
    identity: Numbers
    mel_rows: tuple[int, int]  # before and after the first row of the frame itself


class RawBatch(NamedTuple):
    """What was found, on the device but for ``wanted``."""

    wanted: BatchIndex
    pixels: Tensor  # (3, B, H, W, 3) uint8: the frame itself, the one before, the identity
    boxes: Tensor  # (2, B, 4) int16: of the frame itself, and of the one before
    mels: Tensor  # (B, rows, M) float32, dB

    def to(self, device: torch.device) -> RawBatch:
        moved = (part.to(device, non_blocking=True) for part in self[1:])
        return RawBatch(self.wanted, *moved)


class FrameSource(Protocol):
    """The frames of some clips, however they are held."""

    @property
    def clips(self) -> ClipTable: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Which frame is drawn at each position of the endless sequence of epochs."""

    def seen(self, wanted: BatchIndex) -> RawBatch: ...

    def ahead(self, wanted: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """The same for the batches of an order, made before they are asked for where that takes time."""
