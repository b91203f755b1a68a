"""A dataset held in memory: decoded once, then drawn from by index, so that no GPU ever waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from shards.order import key_of
from shards.reader import Dataset, read_clip
from shards.schema import MELS_PER_FRAME, ClipSample, ShardError

TRAIN_SPLIT = "train"
# Of the memory that is free; the rest is for everything else.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Resident:
    """Clips end to end, in the order of their ids: however they were sharded, frame n is the same."""

    clip_ids: tuple[str, ...]
    frames: Tensor  # (N, H, W, 3) uint8; where the device has no room, in the host's memory
    boxes: Tensor  # (N, 4) int16, on the device as all below
    mels: Tensor  # (R, M) float32, dB; each clip's rows with silent ones before and after
    mel_row: Tensor  # (N,) int64: where row 2i of the frame's own clip lies in mels
    first: Tensor  # (N,) int64: the first frame of the frame's own clip
    length: Tensor  # (N,) int64: frames of the frame's own clip

    def __len__(self) -> int:
        return len(self.frames)

    def pixels(self, index: Tensor) -> Tensor:
        """Frames on the device: (B,) -> (B, 3, H, W) uint8, channels last in memory."""
        chosen = self.frames[index.to(self.frames.device)].to(self.boxes.device, non_blocking=True)
        return chosen.permute(0, 3, 1, 2)

    def mel_windows(self, index: Tensor, before: int, after: int) -> Tensor:
        """Rows 2i - before .. 2i + after of each frame's clip: (B,) -> (B, before + 1 + after, M)."""
        reach = torch.arange(-before, after + 1, device=self.mels.device)
        return self.mels[self.mel_row[index][:, None] + reach]


def split_off(clip_ids: Iterable[str], share: float, *, seed: int) -> tuple[list[str], list[str]]:
    """Clips to train on, and a share of them held out: chosen by a hash of their ids, whatever their order.

    At least one is held out, unless there is only one or the share is 0.
    """

    def rank(clip_id: str) -> int:
        return key_of(seed, int.from_bytes(clip_id.encode(), "big") % (2**64 - 59))

    ranked = sorted(sorted(clip_ids), key=rank)
    n_held = min(math.ceil(share * len(ranked)), len(ranked) - 1)
    return sorted(ranked[n_held:]), sorted(ranked[:n_held])


def check_fits(dataset: Dataset, *, size: int, n_mels: int, silence_db: float) -> None:
    """Raise ShardError unless the dataset was built for a network of this crop size and these mels."""
    params: Any = dataset.manifest.get("params") or {}
    for section, key, wanted, what in (
        ("align", "size", size, "px crops"),
        ("mels", "n_mels", n_mels, "mel bins"),
        ("mels", "top_db", -silence_db, "dB of range"),
    ):
        found = params.get(section, {}).get(key)
        if found is not None and found != wanted:
            raise ShardError(f"{dataset.place.address}: holds {found:g} {what}, the network takes {wanted:g}")


def load_resident(
    dataset: Dataset,
    clip_ids: Sequence[str],
    *,
    size: int,
    n_mels: int,
    mel_pad: int,
    silence_db: float,
    top: int,
    device: torch.device,
    frames_on: torch.device,
    workers: int,
    done: Callable[[int], object] = lambda n_frames: None,
) -> Resident:
    """Read and decode clips onto a device, several at a time; ``done`` hears of each clip's frames.

    Raises ShardError for a clip that is damaged or of another size, and when memory cannot hold them.
    """
    ids = sorted(clip_ids)
    if not ids:
        raise ShardError(f"{dataset.place.address}: no clips to load")
    lengths = [int(dataset.clips[clip_id]["frames"]) for clip_id in ids]
    total = sum(lengths)
    rows = sum(MELS_PER_FRAME * length + 2 * mel_pad for length in lengths)
    _check_memory(dataset, total * size * size * 3, total, frames_on)

    pinned = frames_on.type == "cpu" and device.type == "cuda"
    frames = torch.empty(total, size, size, 3, dtype=torch.uint8, device=frames_on, pin_memory=pinned)
    boxes = torch.empty(total, 4, dtype=torch.int16, device=device)
    mels = torch.full((rows, n_mels), silence_db, dtype=torch.float32, device=device)
    mel_row, first, length_of = (torch.empty(total, dtype=torch.int64) for _ in range(3))
    frame, row = 0, 0
    with ThreadPoolExecutor(workers) as pool:  # decoding lets go of the interpreter
        clips = _a_few_ahead(pool, lambda clip_id: read_clip(dataset, clip_id), ids, 2 * workers)
        for clip_id, length, clip in zip(ids, lengths, clips, strict=True):
            _check_clip(dataset, clip, length, size, n_mels, top)
            here = slice(frame, frame + length)
            frames[here].copy_(torch.from_numpy(clip.frames))
            boxes[here].copy_(torch.from_numpy(clip.boxes))
            row += mel_pad
            mels[row : row + len(clip.mels)].copy_(torch.from_numpy(clip.mels))
            mel_row[here] = row + MELS_PER_FRAME * torch.arange(length)
            first[here] = frame
            length_of[here] = length
            frame += length
            row += len(clip.mels) + mel_pad
            done(length)
            assert clip.key == clip_id
    return Resident(
        tuple(ids), frames, boxes, mels, mel_row.to(device), first.to(device), length_of.to(device)
    )


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


def _check_clip(dataset: Dataset, clip: ClipSample, length: int, size: int, n_mels: int, top: int) -> None:
    highest = int(clip.boxes[:, 1].min())
    if highest < top:
        raise ShardError(
            f"{dataset.place.address}: {clip.key} has a mask box that begins at row {highest}, "
            f"the network looks at rows from {top} on"
        )
    if clip.frames.shape != (length, size, size, 3) or clip.mels.shape[1] != n_mels:
        raise ShardError(
            f"{dataset.place.address}: {clip.key} holds frames {clip.frames.shape} and "
            f"{clip.mels.shape[1]} mel bins, expected {(length, size, size, 3)} and {n_mels}"
        )


def _check_memory(dataset: Dataset, needed: int, n_frames: int, device: torch.device) -> None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise ShardError(
            f"{dataset.place.address}: {n_frames} frames take {needed / 1e9:.1f} GB, "
            f"of {free / 1e9:.1f} GB free on {device.type} {MEMORY_SHARE:.0%} may be used"
        )
