"""Frames by number: which clip a frame belongs to, which frames a batch needs, and their pixels.

A dataset can be in memory, on this machine's disk, in windows there, or elsewhere (``shards.resident``,
``shards.streaming``, ``shards.windowed``, ``shards.clip_stream``). For training each is a ``FrameSource``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from shards.balance import Turns
from shards.index import Clips, get_params_section
from shards.rng import epoch_order
from shards.schema import SPEECH_MEMBER, ShardError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BoxMargins:
    """How far the mask boxes of a dataset extend beyond the lower face, in px of a crop of 128."""

    below_nose: float = 2.0
    below_chin: float = 4.0
    beside_face: float = 2.0

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> BoxMargins:
        """The margins that a dataset was built with; the default ones if its manifest does not say."""
        align = get_params_section(manifest, "align")
        values = {field.name: align.get(field.name) for field in fields(cls)}
        return cls(**{name: float(value) for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class ClipTable:
    """Clips end to end, sorted by id: the number of a frame does not depend on how clips are sharded."""

    ids: Sequence[str]
    starts: Numbers  # (C + 1,): the number of each clip's first frame, then the number of frames
    margins: BoxMargins = BoxMargins()  # of the clips' mask boxes
    # The group of each clip, (C,), if groups take turns (``shards.balance``); None: each frame once an epoch.
    groups: Numbers | None = None

    @classmethod
    def from_lengths(
        cls,
        ids: Sequence[str],
        lengths: ArrayLike,
        margins: BoxMargins = BoxMargins(),
        groups: Numbers | None = None,
    ) -> ClipTable:
        """A table of clips that have ``lengths`` frames, (C,)."""
        return cls(ids, np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]), margins, groups)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def lengths(self) -> Numbers:
        return np.diff(self.starts)

    @functools.cached_property
    def turns(self) -> Turns | None:
        """The groups of all clips, if they take turns."""
        return None if self.groups is None else self.group_clips(np.arange(len(self.ids)))

    def group_clips(self, clips: Numbers) -> Turns:
        """The groups of some clips, by their positions in ``ids``."""
        assert self.groups is not None, "without groups there are no turns"
        return Turns(self.starts[clips], self.lengths[clips], self.groups[clips])

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Which frame is at each position of the endless sequence, of epochs or of turns."""
        if self.turns is None:
            return epoch_order(positions, len(self), seed=seed)
        return self.turns.select_frames(np.asarray(positions, np.int64), seed=seed)

    def find_clips(self, frames: Numbers) -> Numbers:
        """The position in ``ids`` of each frame's clip."""
        return np.searchsorted(self.starts, frames, side="right") - 1

    def locate_samples(self, indices: BatchIndex) -> Iterator[tuple[int, list[int]]]:
        """Of each sample the position of its clip in ``ids``, and its ``images`` by number in the clip."""
        clips = self.find_clips(indices.target)
        frames = np.stack(indices.images) - self.starts[clips]
        return zip(clips.tolist(), frames.T.tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """What a network expects of a dataset."""

    size: int  # px of a crop's side
    n_mels: int
    silence_db: float
    top: int = 0  # the first pixel row that the network looks at
    speech_size: int = 0  # features in a row of speech; 0: the network takes none
    mel_pad: int = 0  # rows of silence that it can hear before a clip, and after it
    speech_pad: int = 0  # as mel_pad, rows of zeros of speech features

    def check_dataset(self, manifest: Mapping[str, Any], name: str) -> None:
        """Raise ShardError if a dataset's manifest says that it was built for another network."""
        for section, key, expected, what in (
            ("align", "size", self.size, "px crops"),
            ("mels", "n_mels", self.n_mels, "mel bins"),
            ("mels", "top_db", -self.silence_db, "dB of range"),
        ):
            value = get_params_section(manifest, section).get(key)
            if value is not None and value != expected:
                raise ShardError(f"{name}: holds {value:g} {what}, the network takes {expected:g}")

    def check_members(self, clips: Clips, clip_ids: Sequence[str], name: str) -> None:
        """Raise ShardError if one of some clips of a dataset lacks a member that the network takes."""
        if not self.speech_size or not (without := clips.list_without_speech(clip_ids)):
            return
        what = f"has no speech features ({SPEECH_MEMBER}), which the network takes"
        if len(without) < len(clip_ids):
            raise ShardError(f"{name}: {without[0]} {what}; other clips have them")
        raise ShardError(
            f"{name}: {what}; build it with --speech-encoder whisper-tiny.en, or speech.encoder in the params"
        )

    def check_clip(
        self,
        name: str,
        n_frames: int,
        shape: tuple[int, ...],
        boxes: NDArray[Any],
        mels: NDArray[Any],
        speech: NDArray[Any] | None = None,
    ) -> None:
        """Raise ShardError unless a clip has ``n_frames`` frames, and its arrays fit the network.

        ``shape`` is the shape of its frames, (T, H, W, 3).
        """
        if self.speech_size:
            self.check_speech(name, speech)
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

    def check_speech(self, name: str, speech: NDArray[Any] | None) -> None:
        """Raise ShardError unless a clip's speech features are as many as the network takes."""
        if speech is None or speech.shape[1] != self.speech_size:
            actual = "no" if speech is None else speech.shape[1]
            raise ShardError(f"{name} holds {actual} speech features, the network takes {self.speech_size}")


class BatchIndex(NamedTuple):
    """The frames of a batch by number, (B,) each."""

    positions: Numbers  # of the samples, in the endless sequence of epochs
    target: Numbers
    previous: Numbers  # the frame before the target; a clip's first frame is its own previous frame
    identity: Numbers
    mel_rows: tuple[int, int]  # how many rows before and after the target's first row
    context: Numbers | None = None  # the frame that can be shown outside the mask; None: none is read
    speech_rows: tuple[int, int] | None = None  # as mel_rows, of speech features; None: none are read

    @property
    def images(self) -> list[Numbers]:
        """The frames whose pixels are read: target, previous, identity, and the context if there is one."""
        images = [self.target, self.previous, self.identity]
        return images if self.context is None else [*images, self.context]

    def replace_images(self, images: Sequence[Numbers]) -> BatchIndex:
        """The same with other ``images``, as many as before."""
        target, previous, identity, *others = images
        context = others[0] if others else None
        return self._replace(target=target, previous=previous, identity=identity, context=context)

    def take(self, samples: slice) -> BatchIndex:
        """Some of its samples."""
        part = self.replace_images([images[samples] for images in self.images])
        return part._replace(positions=self.positions[samples])


class RawBatch(NamedTuple):
    """The pixels and mels of a batch, on the device, and the index they were read by, on the CPU."""

    indices: BatchIndex
    pixels: Tensor  # (3 or 4, B, H, W, 3) uint8: the ``images`` of the index
    boxes: Tensor  # (2, B, 4) int16: of the target and the previous frames
    mels: Tensor  # (B, rows, M) float32, dB
    speech: Tensor | None = None  # (B, rows, D) float16; zeros before and after the clip

    def to(self, device: torch.device) -> RawBatch:
        """Copy the tensors to a device without waiting for it."""
        pixels, boxes, mels = (
            part.to(device, non_blocking=True) for part in (self.pixels, self.boxes, self.mels)
        )
        speech = None if self.speech is None else self.speech.to(device, non_blocking=True)
        return RawBatch(self.indices, pixels, boxes, mels, speech)


class FrameSource(Protocol):
    """The frames of some clips, wherever they are stored."""

    @property
    def clips(self) -> ClipTable: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def has_exact_epochs(self) -> bool:
        """Whether ``epoch_order`` visits each frame exactly once an epoch of ``len(self)`` positions."""

    def __len__(self) -> int: ...

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Which frame is at each position of the endless sequence of epochs, or of turns."""

    def read_batch(self, indices: BatchIndex) -> RawBatch: ...

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """Read the batches of an order, ahead of their use where reading takes time."""
