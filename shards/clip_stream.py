"""Frames for training from a stock webdataset pipeline: no cache, little memory, and no exact epochs.

DataLoader workers read shards from first to last and decode whole clips. Each batch is drawn at random from a
buffer of decoded clips.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from shards.frames import BatchIndex, NetworkInput, Numbers, RawBatch
from shards.reader import Dataset
from shards.resident import build_clip_table
from shards.rng import derive_key
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME, ClipSample, ShardError
from shards.streaming import allocate_batch, ignore_stop_signals, return_unchanged
from shards.webdataset_reader import from_dataset

# Decoded, of each rank: at most so many clips, and no further ones once they take so many bytes. 128 clips of
# 75 frames of 128 px, with mels and speech features, take 0.5 GB.
BUFFER_CLIPS = 128
BUFFER_BYTES = 2**29
MIN_BUFFER_CLIPS = 4  # of any length, or samples of a batch would be from one clip
ENCODED_CLIPS = 32  # in the shuffle buffer of each worker
CLIPS_AHEAD = 2  # decoded by each worker before they are needed


class DecodedClip(NamedTuple):
    """A clip as it crosses processes."""

    clip_id: str
    frames: Tensor  # (T, H, W, 3) uint8
    boxes: Tensor  # (T, 4) int16
    mels: Tensor  # (2T, M) float32, dB
    speech: Tensor | None  # (2T, D) float16; None if the network takes none

    @property
    def n_bytes(self) -> int:
        """What it takes in memory."""
        arrays = (self.frames, self.boxes, self.mels, self.speech)
        return sum(array.nbytes for array in arrays if array is not None)


class ClipStream:
    """A ``FrameSource`` that chooses the frames of a batch itself, among those in its buffer.

    A pass over the shards uses every frame as a target once. Ranks and workers can be in different passes.
    The order depends on ``seed``, ``start_step`` and the number of ranks and workers: a run that is resumed
    at another step gets a new order. The buffer has ``buffer_clips`` clips, or as many as make
    ``buffer_bytes`` full, but at least MIN_BUFFER_CLIPS.
    """

    has_exact_epochs = False

    def __init__(
        self,
        dataset: Dataset,
        clip_ids: Sequence[str],
        network_input: NetworkInput,
        device: torch.device,
        *,
        workers: int,
        seed: int,
        start_step: int,
        rank: int = 0,
        world: int = 1,
        buffer_clips: int = BUFFER_CLIPS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Start up to ``workers`` processes, at most one per shard of this rank; 0 decodes in this process.

        Raises ShardError when there are fewer shards than ranks.
        """
        self.clips = build_clip_table(dataset, clip_ids)
        network_input.check_members(dataset.clips, self.clips.ids, dataset.storage.address)
        self.device = device
        self.network_input = network_input
        shard_names, _ = dataset.clips.locate_shards(self.clips.ids)
        if len(shard_names) < world:
            raise ShardError(
                f"{dataset.storage.address}: {len(shard_names)} shards cannot be divided among {world} "
                "ranks; use --hold cached or windowed"
            )
        self._numbers = {clip_id: number for number, clip_id in enumerate(self.clips.ids)}
        self._buffer_clips = min(buffer_clips, len(self.clips.ids))
        self._buffer_bytes = buffer_bytes
        self._n_bytes = 0  # of the clips in the buffer
        self._buffer: list[tuple[DecodedClip, list[int]]] = []  # clips, and their frames not yet drawn
        self._batch_clips: dict[int, DecodedClip] = {}
        self._rng = np.random.default_rng(derive_key(seed, start_step, rank))
        workers = min(workers, len(shard_names) // world)
        cv2.setNumThreads(1)  # before processes are started: a fork of OpenCV's threads hangs
        self._decoded: Iterator[DecodedClip | ShardError] = iter(
            DataLoader(
                _DecodedClips(
                    dataset,
                    self.clips.ids,
                    network_input,
                    derive_key(seed, start_step),
                    rank=rank,
                    world=world,
                ),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=CLIPS_AHEAD if workers else None,
                collate_fn=return_unchanged,
                worker_init_fn=ignore_stop_signals,
            )
        )

    def __len__(self) -> int:
        return len(self.clips)

    def close(self) -> None:
        """End the processes."""
        self._decoded = iter(())

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        """Draw the frames of the next batch. Only the number of ``positions`` counts; ``seed`` is ignored."""
        self._batch_clips = {}
        return np.array([self._draw_frame() for _ in range(len(np.asarray(positions)))], np.int64)

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        """Pixels of a batch whose targets ``epoch_order`` has just drawn."""
        batch = allocate_batch(indices, self.network_input)
        pixels_out, boxes_out = batch.pixels.numpy(), batch.boxes.numpy()
        for row, (number, clip_frames) in enumerate(self.clips.locate_samples(indices)):
            clip = self._batch_clips[number]
            for image, frame in zip(pixels_out[:, row], clip_frames, strict=True):
                image[...] = clip.frames[frame].numpy()
            boxes_out[:, row] = clip.boxes.numpy()[clip_frames[:2]]
            _copy_rows(clip.mels, MELS_PER_FRAME * clip_frames[0] - indices.mel_rows[0], batch.mels[row])
            if batch.speech is not None and indices.speech_rows is not None:
                assert clip.speech is not None, "checked when the clip was decoded"
                first = SPEECH_PER_FRAME * clip_frames[0] - indices.speech_rows[0]
                _copy_rows(clip.speech, first, batch.speech[row])
        return batch.to(self.device)

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """Read batches one by one: the processes are ahead already."""
        return map(self.read_batch, indices)

    def _draw_frame(self) -> int:
        while len(self._buffer) < self._buffer_clips and (
            len(self._buffer) < MIN_BUFFER_CLIPS or self._n_bytes < self._buffer_bytes
        ):
            self._buffer.append(self._load_clip())
            self._n_bytes += self._buffer[-1][0].n_bytes
        place = int(self._rng.integers(len(self._buffer)))
        clip, remaining = self._buffer[place]
        number, frame = self._numbers[clip.clip_id], remaining.pop()
        if not remaining:
            self._buffer[place] = self._buffer[-1]
            self._buffer.pop()
            self._n_bytes -= clip.n_bytes
        self._batch_clips[number] = clip
        return int(self.clips.starts[number]) + frame

    def _load_clip(self) -> tuple[DecodedClip, list[int]]:
        clip = next(self._decoded)
        if isinstance(clip, ShardError):
            raise clip
        # out of shared memory, of which a container may have little
        speech = None if clip.speech is None else clip.speech.clone()
        clip = DecodedClip(clip.clip_id, clip.frames.clone(), clip.boxes.clone(), clip.mels.clone(), speech)
        return clip, self._rng.permutation(len(clip.frames)).tolist()


class _DecodedClips(IterableDataset[DecodedClip | ShardError]):
    """The clips of one worker, pass after pass, without end. An error is the last item."""

    def __init__(
        self,
        dataset: Dataset,
        clip_ids: Sequence[str],
        network_input: NetworkInput,
        seed: int,
        *,
        rank: int,
        world: int,
    ) -> None:
        self._dataset = dataset
        self._clip_ids = clip_ids
        self._network_input = network_input
        self._seed = seed
        self._nodesplitter = functools.partial(_take_every, start=rank, step=world)

    def __iter__(self) -> Iterator[DecodedClip | ShardError]:
        try:
            for epoch in itertools.count():
                for clip in from_dataset(
                    self._dataset,
                    clip_ids=self._clip_ids,
                    shuffle=ENCODED_CLIPS,
                    seed=self._seed,
                    epoch=epoch,
                    nodesplitter=self._nodesplitter,
                ):
                    yield self._convert(clip)
        except ShardError as err:
            # Raised here it would lose its type on the way to the main process. A new one, because
            # `distributed`, once imported, makes pickle follow the cause of an error too.
            yield ShardError(str(err))

    def _convert(self, clip: ClipSample) -> DecodedClip:
        name = f"{self._dataset.storage.address}: {clip.key}"
        n_frames = self._dataset.clips[clip.key]["frames"]
        self._network_input.check_clip(name, n_frames, clip.frames.shape, clip.boxes, clip.mels, clip.speech)
        is_used = self._network_input.speech_size and clip.speech is not None
        return DecodedClip(
            clip.key,
            frames=torch.from_numpy(clip.frames),
            boxes=torch.from_numpy(clip.boxes),
            mels=torch.from_numpy(clip.mels),
            speech=torch.from_numpy(clip.speech) if is_used else None,
        )


def _copy_rows(rows: Tensor, first: int, out: Tensor) -> None:
    """Fill ``out`` with a clip's rows from ``first`` on; where the clip has none it is left as it is."""
    start, stop = max(0, first), min(len(rows), first + len(out))
    out[start - first : stop - first] = rows[start:stop]


def _take_every(shards: Iterator[dict[str, Any]], start: int, step: int) -> Iterator[dict[str, Any]]:
    return itertools.islice(shards, start, None, step)
