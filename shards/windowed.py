"""Frames of one window of shards at a time, each decoded once and held in memory.

The samples of a window are one block. Its frames are decoded by threads into one array while the block before
is drawn; its batches are then drawn from that array as from a dataset in memory (``shards.resident``). Which
frames a block holds follows from its samples: a rank decodes those that its own samples take, and no others.

Where two windows do not fit into the memory that may be used, a window is several blocks, and frames that
more than one of them takes are decoded for each. That changes the speed and nothing else.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from shards.background import Item, prefetch
from shards.cache import ShardStore
from shards.frames import BatchIndex, Numbers, RawBatch
from shards.index import ShardEntry
from shards.memory import find_free_memory
from shards.resident import MEMORY_SHARE, Resident, place_clips
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME, ShardError
from shards.streaming import Cached, ClipArrays, Decoder
from shards.windows import Window, Windows

BLOCKS = 2  # in memory: one is drawn while the next is decoded
DEFAULT_MEMORY_GB = 16.0


class BatchPart(NamedTuple):
    """The samples of a batch that lie in one window: all of them, unless the batch extends over several."""

    window: Window
    indices: BatchIndex
    batch: BatchIndex | None  # the whole batch, at its last part


@dataclass(slots=True)
class Block:
    """Consecutive parts in one window, and the numbers of the frames that they take."""

    parts: list[BatchPart] = field(default_factory=list)
    frames: set[int] = field(default_factory=set)


class DecodedBlock(NamedTuple):
    """A block with its frames in memory."""

    parts: list[BatchPart]
    frames: Numbers  # (F,), increasing: the number of each row of ``memory``
    memory: Resident
    buffer: NDArray[np.uint8]  # that the pixels of ``memory`` are a part of


class Windowed(Cached):
    """A ``FrameSource`` of which one or two windows of shards are on this machine's disk and in memory."""

    def __init__(
        self,
        decoder: Decoder,
        device: torch.device,
        workers: int,
        *,
        store: ShardStore,
        window: int,
        memory_bytes: int | None = None,
    ) -> None:
        """``workers`` threads decode ahead; with 0, a block is decoded when its first batch is asked for.

        ``memory_bytes`` limits the decoded frames; None: DEFAULT_MEMORY_GB, or less where less is free.
        Raises ShardError if they may take more than is free.
        """
        super().__init__(decoder, device, workers)
        self._store = store
        self._shards, self._shard_of = decoder.locate_shards()
        self._windows = Windows(decoder.clips, self._shard_of, window)
        self._spare: deque[NDArray[np.uint8]] = deque()  # buffers of blocks that have been drawn
        frame_bytes = decoder.network_input.size**2 * 3
        largest = int(np.sort(self._windows.frames)[-window:].sum())  # frames of the K largest shards
        self.window_bytes = largest * frame_bytes
        free = find_free_memory()
        if memory_bytes is None:
            memory_bytes = min(int(DEFAULT_MEMORY_GB * 1e9), int(MEMORY_SHARE * free))
        self.memory_bytes = min(memory_bytes, BLOCKS * self.window_bytes)
        self._max_frames = self.memory_bytes // (BLOCKS * frame_bytes)
        if self.memory_bytes > MEMORY_SHARE * free:
            raise ShardError(
                f"the frames of windows of {window} shards may take {self.memory_bytes / 1e9:.1f} GB, "
                f"of {free / 1e9:.1f} GB free memory {MEMORY_SHARE:.0%} may be used; "
                "allow less with --memory-gb"
            )

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return self._windows.epoch_order(positions, seed=seed)

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        """A single batch: its shards are downloaded and its frames decoded for it alone."""
        entries = self._list_entries(indices.target)
        self._store.hold(entries)
        try:
            return super().read_batch(indices)
        finally:
            self._store.release(entries)

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """Download a block while the one before is decoded, and decode that one while another is drawn."""
        batches = self._draw_batches(indices, seed)
        return batches if self.device.type == "cpu" else prefetch(batches, n_ahead=1)

    def _draw_batches(self, indices: Iterator[BatchIndex], seed: int) -> Iterator[RawBatch]:
        held: deque[list[ShardEntry]] = deque()  # the shards of blocks that are not yet decoded
        pool = ThreadPoolExecutor(max(1, self._workers))

        def download(block: Block) -> Block:
            entries = self._list_entries(np.concatenate([part.indices.target for part in block.parts]))
            self._store.hold(entries)
            held.append(entries)
            return block

        def decode(block: Block) -> DecodedBlock:
            decoded = self._decode(block, pool)
            self._store.release(held.popleft())
            return decoded

        run = functools.partial(prefetch, n_ahead=1) if self._workers else yield_each
        downloaded = run(
            map(download, split_into_blocks(self._split_batches(indices, seed), self._max_frames))
        )
        decoded = run(map(decode, downloaded))
        cv2.setNumThreads(1)
        raw_parts: list[RawBatch] = []
        try:
            for block in decoded:
                for part in block.parts:
                    raw_parts.append(draw_part(block, part.indices))
                    if part.batch is not None:
                        yield join_parts(raw_parts, part.batch)
                        raw_parts = []
                # Memory is given back and taken again page by page, which can take as long as decoding.
                self._spare.append(block.buffer)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # or the next line would wait for all of a block
            decoded.close()
            downloaded.close()
            pool.shutdown()
            self._spare.clear()
            for entries in held:
                self._store.release(entries)

    def _list_entries(self, frames: Numbers) -> list[ShardEntry]:
        """The shards that contain some frames."""
        return [self._shards[shard] for shard in np.unique(self._shard_of[self.clips.find_clips(frames)])]

    def _split_batches(self, batches: Iterator[BatchIndex], seed: int) -> Iterator[BatchPart]:
        for batch in batches:
            runs = self._windows.split_positions(batch.positions, seed=seed)
            for number, (window, samples) in enumerate(runs, start=1):
                yield BatchPart(window, batch.take(samples), batch if number == len(runs) else None)

    def _decode(self, block: Block, pool: ThreadPoolExecutor) -> DecodedBlock:
        """Decode a block's frames, and read all of their clips' sound. Raises ShardError."""
        size, n_mels = self._decoder.network_input.size, self._decoder.network_input.n_mels
        indices = block.parts[0].indices
        frames = np.array(sorted(block.frames))
        clip_of_frame = self.clips.find_clips(frames)
        clips, first_rows, clip_of_frame_in_block = np.unique(
            clip_of_frame, return_index=True, return_inverse=True
        )
        numbers = frames - self.clips.starts[clip_of_frame]  # in their clips
        lengths = self.clips.lengths[clips]

        # Large arrays of numpy's are in huge pages, which makes reading rows at random faster.
        while self._spare and len(self._spare[0]) < len(frames):
            self._spare.popleft()  # too small: a block has at least one part of a batch, whatever the limit
        if self._spare:
            buffer = self._spare.popleft()
        else:
            buffer = np.empty((max(len(frames), self._max_frames), size, size, 3), np.uint8)
        pixels = buffer[: len(frames)]
        boxes = np.empty((len(frames), 4), np.int16)
        mel_starts, n_rows = place_clips(MELS_PER_FRAME * lengths, pad=max(indices.mel_rows))
        mels = np.full((n_rows, n_mels), self._decoder.network_input.silence_db, np.float32)
        speech = None
        if indices.speech_rows is not None:
            speech_starts, n_rows = place_clips(SPEECH_PER_FRAME * lengths, pad=max(indices.speech_rows))
            speech = np.zeros((n_rows, self._decoder.network_input.speech_size), np.float16)

        def read(k: int) -> None:
            rows = slice(first_rows[k], first_rows[k + 1] if k + 1 < len(clips) else None)
            clip_speech = None
            if speech is not None:
                clip_speech = speech[speech_starts[k] : speech_starts[k] + SPEECH_PER_FRAME * lengths[k]]
            clip_mels = mels[mel_starts[k] : mel_starts[k] + MELS_PER_FRAME * lengths[k]]
            out = ClipArrays(pixels[rows], boxes[rows], clip_mels, clip_speech)
            self._decoder.read_clip(int(clips[k]), numbers[rows].tolist(), out)

        if self._workers:
            for future in [pool.submit(read, k) for k in range(len(clips))]:
                future.result()
        else:
            for k in range(len(clips)):
                read(k)

        def number_rows(starts: Numbers, rows_per_frame: int) -> torch.Tensor:
            rows = starts[clip_of_frame_in_block] + rows_per_frame * numbers
            return torch.from_numpy(rows).to(self.device)

        memory = Resident(
            self.clips,
            torch.from_numpy(pixels),
            torch.from_numpy(boxes).to(self.device),
            torch.from_numpy(mels).to(self.device),
            number_rows(mel_starts, MELS_PER_FRAME),
            None if speech is None else torch.from_numpy(speech).to(self.device),
            None if speech is None else number_rows(speech_starts, SPEECH_PER_FRAME),
        )
        return DecodedBlock(block.parts, frames, memory, buffer)


def yield_each(items: Iterator[Item]) -> Generator[Item]:
    """The same items, each made when it is asked for."""
    yield from items


def split_into_blocks(parts: Iterator[BatchPart], max_frames: int) -> Iterator[Block]:
    """Divide parts by window, and a window where the next part would make it more than ``max_frames``."""
    block = Block()
    for part in parts:
        frames = set(np.concatenate(part.indices.images).tolist())
        if block.parts:
            is_full = len(block.frames) + len(frames - block.frames) > max_frames
            if is_full or part.window != block.parts[0].window:
                yield block
                block = Block()
        block.parts.append(part)
        block.frames |= frames
    if block.parts:
        yield block


def draw_part(block: DecodedBlock, indices: BatchIndex) -> RawBatch:
    """Some samples of a block, from its memory."""
    rows = [np.searchsorted(block.frames, frames) for frames in indices.images]
    return block.memory.read_batch(indices.replace_images(rows))


def join_parts(parts: list[RawBatch], batch: BatchIndex) -> RawBatch:
    """A batch of its parts."""
    if len(parts) == 1:
        return parts[0]._replace(indices=batch)
    speech = [part.speech for part in parts if part.speech is not None]
    return RawBatch(
        batch,
        torch.cat([part.pixels for part in parts], dim=1),
        torch.cat([part.boxes for part in parts], dim=1),
        torch.cat([part.mels for part in parts]),
        torch.cat(speech) if speech else None,
    )
