"""A dataset in memory: decoded once and then read by frame number, so that the GPU never waits for data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from shards.background import map_ahead, prefetch
from shards.balance import Balance
from shards.frames import BatchIndex, BoxMargins, ClipTable, NetworkInput, Numbers, RawBatch
from shards.memory import find_free_memory
from shards.reader import Dataset, read_clip
from shards.rng import derive_key, derive_keys
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME, ShardError

TRAIN_SPLIT = "train"
MEMORY_SHARE = 0.8  # of the free memory; the rest is for everything else


@dataclass(frozen=True)
class Resident:
    """A ``FrameSource`` with all frames decoded, in memory."""

    clips: ClipTable
    frames: Tensor  # (N, H, W, 3) uint8; in the host's memory if the device has no room
    boxes: Tensor  # (N, 4) int16, on the device as all below
    mels: Tensor  # (R, M) float32, dB; each clip's rows with silent ones before and after
    mel_row: Tensor  # (N,) int64: the row of mels that is row 2i of frame i's clip
    speech: Tensor | None = None  # (R', D) float16; each clip's rows with zeros before and after
    speech_row: Tensor | None = None  # (N,) int64, as mel_row

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def device(self) -> torch.device:
        return self.boxes.device

    @property
    def has_exact_epochs(self) -> bool:
        return self.clips.groups is None

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return self.clips.epoch_order(positions, seed=seed)

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        frames = torch.from_numpy(np.concatenate(indices.images))
        device_frames = frames.to(self.device, non_blocking=True)
        n = len(indices.target)
        pixels = self._read_pixels(frames if self._on_host else device_frames)
        target = device_frames[:n]
        speech = None
        if indices.speech_rows is not None:
            assert self.speech is not None and self.speech_row is not None, "loaded without speech features"
            speech = _take_windows(self.speech, self.speech_row[target], indices.speech_rows)
        return RawBatch(
            indices,
            pixels.view(-1, n, *pixels.shape[1:]),
            self.boxes[device_frames[: 2 * n]].view(2, n, 4),
            _take_windows(self.mels, self.mel_row[target], indices.mel_rows),
            speech,
        )

    def _read_pixels(self, frames: Tensor) -> Tensor:
        """The pixels of frames (M,), on the device: (M, H, W, 3)."""
        shape = len(frames), *self.frames.shape[1:]
        # From memory that is not pinned, a copy to a GPU waits for the work that the GPU has already.
        is_pinned = self._on_host and self.device.type == "cuda"
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.frames.device, pin_memory=is_pinned)
        # On a CPU index_select copies whole frames: ten times as fast as indexing, which copies bytes.
        torch.index_select(self.frames, 0, frames, out=pixels)
        return pixels.to(self.device, non_blocking=True)

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        batches = map(self.read_batch, indices)
        return prefetch(batches, 1) if self._on_host else batches

    @property
    def _on_host(self) -> bool:
        return self.frames.device != self.device


def _take_windows(rows: Tensor, first: Tensor, window: tuple[int, int]) -> Tensor:
    """(R, M), a row for each sample (B,), and how many rows before and after it -> (B, rows, M)."""
    before, after = window
    numbers = first[:, None] + torch.arange(-before, after + 1, device=rows.device)
    return rows.index_select(0, numbers.flatten()).view(*numbers.shape, -1)


def split_held_out(clip_ids: Iterable[str], share: float, *, seed: int) -> tuple[list[str], list[str]]:
    """Clips to train on and a held-out share of them, chosen by a hash of their ids, whatever their order.

    At least one clip is held out, unless there is only one or the share is 0.
    """
    ids = sorted(clip_ids)
    numbers = (int.from_bytes(clip_id.encode(), "big") % (2**64 - 59) for clip_id in ids)
    keys = derive_keys(derive_key(seed), np.fromiter(numbers, np.uint64, len(ids)))
    ranked = [ids[place] for place in np.argsort(keys, kind="stable")]
    n_held_out = min(math.ceil(share * len(ranked)), len(ranked) - 1)
    return sorted(ranked[n_held_out:]), sorted(ranked[:n_held_out])


def load_resident(
    dataset: Dataset,
    clip_ids: Sequence[str],
    network_input: NetworkInput,
    *,
    device: torch.device,
    frames_on: torch.device | None = None,
    workers: int,
    balance: Balance = "frames",
    done: Callable[[int], object] = lambda n_frames: None,
) -> Resident:
    """Read and decode clips onto a device, with ``workers`` threads; call ``done`` with each clip's frames.

    ``frames_on``: the host, where the device has no room for the pixels; None: the device too.
    Raises ShardError for a clip that is damaged or does not fit the network, and if there is not enough
    memory.
    """
    frames_on = frames_on or device
    clips = build_clip_table(dataset, clip_ids, balance)
    network_input.check_members(dataset.clips, clips.ids, dataset.storage.address)
    n_frames, lengths = len(clips), clips.lengths
    size, n_mels, silence_db = network_input.size, network_input.n_mels, network_input.silence_db
    _check_memory(dataset, n_frames * size**2 * 3, n_frames, frames_on)

    is_pinned = frames_on.type == "cpu" and device.type == "cuda"
    frames = torch.empty(n_frames, size, size, 3, dtype=torch.uint8, device=frames_on, pin_memory=is_pinned)
    boxes = torch.empty(n_frames, 4, dtype=torch.int16, device=device)
    mel_starts, n_rows = place_clips(MELS_PER_FRAME * lengths, network_input.mel_pad)
    mels = torch.full((n_rows, n_mels), silence_db, dtype=torch.float32, device=device)
    speech_starts, n_rows = place_clips(SPEECH_PER_FRAME * lengths, network_input.speech_pad)
    speech = torch.zeros(n_rows, network_input.speech_size, dtype=torch.float16, device=device)
    # Decoding releases the GIL.
    with closing(map_ahead(partial(read_clip, dataset), clips.ids, workers)) as samples:
        for k, clip in enumerate(samples):
            length = int(lengths[k])
            name = f"{dataset.storage.address}: {clip.key}"
            network_input.check_clip(name, length, clip.frames.shape, clip.boxes, clip.mels, clip.speech)
            clip_frames = slice(clips.starts[k], clips.starts[k + 1])
            frames[clip_frames].copy_(torch.from_numpy(clip.frames))
            boxes[clip_frames].copy_(torch.from_numpy(clip.boxes))
            mels[mel_starts[k] :][: len(clip.mels)].copy_(torch.from_numpy(clip.mels))
            if network_input.speech_size and clip.speech is not None:
                speech[speech_starts[k] :][: len(clip.speech)].copy_(torch.from_numpy(clip.speech))
            done(length)

    clip_of_frame = np.repeat(np.arange(len(lengths)), lengths)
    numbers = np.arange(n_frames) - clips.starts[clip_of_frame]  # in their clips
    mel_row = torch.from_numpy(mel_starts[clip_of_frame] + MELS_PER_FRAME * numbers).to(device)
    if not network_input.speech_size:
        return Resident(clips, frames, boxes, mels, mel_row)
    speech_row = torch.from_numpy(speech_starts[clip_of_frame] + SPEECH_PER_FRAME * numbers).to(device)
    return Resident(clips, frames, boxes, mels, mel_row, speech, speech_row)


def place_clips(rows: Numbers, pad: int) -> tuple[Numbers, int]:
    """Where clips of so many rows begin with ``pad`` rows before and after each, and the rows of all."""
    ends = np.cumsum(rows + 2 * pad)
    return ends - rows - pad, int(ends[-1])


def build_clip_table(dataset: Dataset, clip_ids: Iterable[str], balance: Balance = "frames") -> ClipTable:
    """Number the frames of some clips. Raises ShardError if there are none."""
    ids = sorted(clip_ids)
    if not ids:
        raise ShardError(f"{dataset.storage.address}: no clips to load")
    margins = BoxMargins.from_manifest(dataset.manifest)
    groups = None
    if balance == "clips":
        groups = np.arange(len(ids))
    elif balance == "speakers":
        # numbered by name, so that the order does not depend on how clips are sharded
        groups = np.unique(dataset.clips.column("speaker", ids), return_inverse=True)[1]
    return ClipTable.from_lengths(ids, dataset.clips.column("frames", ids), margins, groups)


def _check_memory(dataset: Dataset, n_bytes: int, n_frames: int, device: torch.device) -> None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = find_free_memory()
    if n_bytes > MEMORY_SHARE * free:
        raise ShardError(
            f"{dataset.storage.address}: {n_frames} frames take {n_bytes / 1e9:.1f} GB, "
            f"of {free / 1e9:.1f} GB free on {device.type} {MEMORY_SHARE:.0%} may be used"
        )
