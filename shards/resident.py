"""A dataset held in memory: decoded once, then drawn from by number, so that no GPU ever waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from shards.frames import BatchIndex, ClipTable, NetworkInput, Numbers, RawBatch
from shards.reader import Dataset, read_clip
from shards.rng import derive_key, derive_keys, epoch_order
from shards.schema import MELS_PER_FRAME, ClipSample, ShardError

TRAIN_SPLIT = "train"
# Of the memory that is free; the rest is for everything else.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Resident:
    """All frames decoded, in memory."""

    clips: ClipTable
    frames: Tensor  # (N, H, W, 3) uint8; where the device has no room, in the host's memory
    boxes: Tensor  # (N, 4) int16, on the device as all below
    mels: Tensor  # (R, M) float32, dB; each clip's rows with silent ones before and after
    mel_row: Tensor  # (N,) int64: where row 2i of the frame's own clip lies in mels

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def device(self) -> torch.device:
        return self.boxes.device

    def order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return epoch_order(positions, len(self), seed=seed)

    def seen(self, wanted: BatchIndex) -> RawBatch:
        chosen = torch.from_numpy(np.concatenate([wanted.target, wanted.before, wanted.identity]))
        here = chosen.to(self.device, non_blocking=True)
        n = len(wanted.target)
        pixels = self.frames[chosen if self._on_host else here].to(self.device, non_blocking=True)
        before, after = wanted.mel_rows
        reach = torch.arange(-before, after + 1, device=self.device)
        return RawBatch(
            wanted,
            pixels.view(3, n, *pixels.shape[1:]),
            self.boxes[here[: 2 * n]].view(2, n, 4),
            self.mels[self.mel_row[here[:n]][:, None] + reach],
        )

    def ahead(self, wanted: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        batches = map(self.seen, wanted)
        return one_ahead(batches) if self._on_host else batches

    @property
    def _on_host(self) -> bool:
        return self.frames.device != self.device


def one_ahead(batches: Iterator[RawBatch]) -> Iterator[RawBatch]:
    """The same, each found by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (ready := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield ready


def split_held_out(clip_ids: Iterable[str], share: float, *, seed: int) -> tuple[list[str], list[str]]:
    """Clips to train on, and a share of them held out: chosen by a hash of their ids, whatever their order.

    At least one is held out, unless there is only one or the share is 0.
    """

    ids = sorted(clip_ids)
    numbers = (int.from_bytes(clip_id.encode(), "big") % (2**64 - 59) for clip_id in ids)
    order = np.argsort(derive_keys(derive_key(seed), np.fromiter(numbers, np.uint64, len(ids))), kind="stable")
    ranked = [ids[place] for place in order]
    n_held = min(math.ceil(share * len(ranked)), len(ranked) - 1)
    return sorted(ranked[n_held:]), sorted(ranked[:n_held])


def load_resident(
    dataset: Dataset,
    clip_ids: Sequence[str],
    fit: NetworkInput,
    *,
    mel_pad: int,
    device: torch.device,
    frames_on: torch.device,
    workers: int,
    done: Callable[[int], object] = lambda n_frames: None,
) -> Resident:
    """Read and decode clips onto a device, several at a time; ``done`` hears of each clip's frames.

    Raises ShardError for a clip that is damaged or of another size, and when memory cannot hold them.
    """
    clips = build_clip_table(dataset, clip_ids)
    total, lengths = len(clips), clips.lengths.tolist()
    rows = sum(MELS_PER_FRAME * length + 2 * mel_pad for length in lengths)
    _check_memory(dataset, total * fit.size**2 * 3, total, frames_on)

    pinned = frames_on.type == "cpu" and device.type == "cuda"
    frames = torch.empty(total, fit.size, fit.size, 3, dtype=torch.uint8, device=frames_on, pin_memory=pinned)
    boxes = torch.empty(total, 4, dtype=torch.int16, device=device)
    mels = torch.full((rows, fit.n_mels), fit.silence_db, dtype=torch.float32, device=device)
    mel_row = torch.empty(total, dtype=torch.int64)
    frame, row = 0, 0
    with ThreadPoolExecutor(workers) as pool:  # decoding lets go of the interpreter
        read = _a_few_ahead(pool, lambda clip_id: read_clip(dataset, clip_id), clips.ids, 2 * workers)
        for length, clip in zip(lengths, read, strict=True):
            fit.check_clip(
                f"{dataset.storage.address}: {clip.key}", length, clip.frames.shape, clip.boxes, clip.mels
            )
            here = slice(frame, frame + length)
            frames[here].copy_(torch.from_numpy(clip.frames))
            boxes[here].copy_(torch.from_numpy(clip.boxes))
            row += mel_pad
            mels[row : row + len(clip.mels)].copy_(torch.from_numpy(clip.mels))
            mel_row[here] = row + MELS_PER_FRAME * torch.arange(length)
            frame += length
            row += len(clip.mels) + mel_pad
            done(length)
    return Resident(clips, frames, boxes, mels, mel_row.to(device))


def build_clip_table(dataset: Dataset, clip_ids: Iterable[str]) -> ClipTable:
    """The clips to read, by number. Raises ShardError when there are none."""
    ids = sorted(clip_ids)
    if not ids:
        raise ShardError(f"{dataset.storage.address}: no clips to load")
    return ClipTable.of(ids, dataset.clips.column("frames", ids))


def _a_few_ahead(
    pool: ThreadPoolExecutor, read: Callable[[str], ClipSample], ids: Sequence[str], ahead: int
) -> Iterable[ClipSample]:
    """``map`` in order, with at most ``ahead`` clips waiting in memory."""
    waiting = [pool.submit(read, clip_id) for clip_id in ids[:ahead]]
    for i in range(len(ids)):
        clip = waiting.pop(0).result()
        if i + ahead < len(ids):
            waiting.append(pool.submit(read, ids[i + ahead]))
        yield clip


def _check_memory(dataset: Dataset, needed: int, n_frames: int, device: torch.device) -> None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise ShardError(
            f"{dataset.storage.address}: {n_frames} frames take {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB "
            f"free on {device.type} {MEMORY_SHARE:.0%} may be used"
        )
