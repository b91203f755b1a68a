"""Frames decoded for each batch, from shards on this machine's disk, by processes that work ahead.

Batches are given to the processes in order and returned in order: how many processes there are changes the
speed and nothing else. They read files and decode; downloads are made by the process that trains.
"""

from __future__ import annotations

import math
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from shards.cache import ShardStore
from shards.codec import check_offsets, decode_frame
from shards.files import open_file
from shards.frames import BatchIndex, ClipTable, NetworkInput, Numbers, RawBatch
from shards.index import SPEECH, ShardEntry, list_members
from shards.reader import Dataset, check_index_row, find_altered_member
from shards.schema import (
    MELS_PER_FRAME,
    SPEECH_PER_FRAME,
    Codec,
    ShardError,
    check_arrays,
    json_to_info,
    npy_to_array,
)

OPEN_CLIPS = 2**14  # clips whose layout a process remembers
BATCHES_AHEAD = 2  # of each process


@dataclass(frozen=True, slots=True)
class _ClipLayout:
    """Where the parts of a clip are in a file."""

    path: Path
    codec: Codec
    frame_offsets: Sequence[int]  # (T + 1,): frame k is the bytes from frame_offsets[k] to [k + 1]
    boxes: NDArray[np.int16]  # (T, 4)
    mels_offset: int
    speech_offset: int | None  # None where the clip has no speech features


class ClipArrays(NamedTuple):
    """Where some frames of a clip are written, and rows of its sound. Rows outside the clip are left."""

    pixels: NDArray[np.uint8]  # (n, H, W, 3)
    boxes: NDArray[np.int16]  # (m, 4), m <= n: of the first m frames
    mels: NDArray[np.float32]  # (rows, M)
    speech: NDArray[np.float16] | None  # (rows, D)


class Decoder:
    """Makes batches from local files. Processes can have copies of it."""

    def __init__(
        self, dataset: Dataset, clips: ClipTable, store: ShardStore, network_input: NetworkInput
    ) -> None:
        self.clips = clips
        self.network_input = network_input
        network_input.check_members(dataset.clips, clips.ids, dataset.storage.address)
        self._dataset = dataset
        self._paths = {name: store.path(entry) for name, entry in dataset.shards.items()}
        self._layouts: OrderedDict[int, _ClipLayout] = OrderedDict()
        # For each clip, whether its CRCs have been checked: one process does it for all.
        self._is_checked = torch.zeros(len(clips.ids), dtype=torch.bool)
        self._is_checked.share_memory_()  # type: ignore[no-untyped-call]

    def locate_shards(self) -> tuple[list[ShardEntry], NDArray[np.int64]]:
        """The shards that contain the clips, by name, and the number of each clip's shard."""
        names, shard_of = self._dataset.clips.locate_shards(self.clips.ids)
        return [self._dataset.shards[name] for name in names], shard_of

    def __getitem__(self, indices: BatchIndex) -> RawBatch | ShardError:
        """A batch, or the error: errors that are raised across processes lose their type."""
        try:
            return self.read_batch(indices)
        except ShardError as err:
            return ShardError(str(err))  # without its cause, which pickle may not take

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        """A batch in the host's memory. Raises ShardError for a clip that is damaged or does not fit."""
        batch = allocate_batch(indices, self.network_input)
        pixels, boxes, mels = batch.pixels.numpy(), batch.boxes.numpy(), batch.mels.numpy()
        speech = None if batch.speech is None else batch.speech.numpy()
        speech_before = indices.speech_rows[0] if indices.speech_rows is not None else 0
        for row, (clip, frames) in enumerate(self.clips.locate_samples(indices)):
            first_mels = MELS_PER_FRAME * frames[0] - indices.mel_rows[0]
            first_speech = SPEECH_PER_FRAME * frames[0] - speech_before
            speech_out = None if speech is None else speech[row]
            out = ClipArrays(pixels[:, row], boxes[:, row], mels[row], speech_out)
            self.read_clip(clip, frames, out, first_mels, first_speech)
        return batch

    def read_clip(
        self, clip: int, frames: Sequence[int], out: ClipArrays, first_mels: int = 0, first_speech: int = 0
    ) -> None:
        """Fill ``out`` with some frames of a clip, by their numbers in it, and with rows of its sound.

        ``first_mels`` and ``first_speech`` are the clip's rows that come first in ``out``. Threads can call
        it at the same time. Raises ShardError for a clip that is damaged or does not fit.
        """
        size = self.network_input.size
        layout = self._get_layout(clip)
        with _RangeReader(layout.path) as file:
            for image, frame in zip(out.pixels, frames, strict=True):
                data = file.read(layout.frame_offsets[frame], layout.frame_offsets[frame + 1])
                try:
                    image[...] = decode_frame(data, layout.codec, (size, size))
                except ShardError as err:
                    name = f"{layout.path}: {self.clips.ids[clip]}: frame {frame}"
                    raise ShardError(f"{name}: {err}") from err
            out.boxes[...] = layout.boxes[frames[: len(out.boxes)]]
            n_rows = MELS_PER_FRAME * len(layout.boxes)
            _read_rows(file, layout.mels_offset, n_rows, first_mels, out.mels)
            if out.speech is not None:
                assert layout.speech_offset is not None, "checked when the clip was first read"
                n_rows = SPEECH_PER_FRAME * len(layout.boxes)
                _read_rows(file, layout.speech_offset, n_rows, first_speech, out.speech)

    def _get_layout(self, clip: int) -> _ClipLayout:
        layout = self._layouts.get(clip)
        if layout is None:
            layout = self._layouts[clip] = self._read_layout(clip)
            if len(self._layouts) > OPEN_CLIPS:
                self._layouts.popitem(last=False)
        return layout

    def _read_layout(self, clip: int) -> _ClipLayout:
        """A clip's layout; the first process that reads it checks the whole clip."""
        clip_id, is_checked = self.clips.ids[clip], bool(self._is_checked[clip])
        row = self._dataset.clips[clip_id]
        path = self._paths[row["shard"]]
        with _RangeReader(path) as file:
            members = {
                name: file.read(row[f"{name}_offset"], row[f"{name}_offset"] + row[f"{name}_size"])
                for name in (("boxes", "json") if is_checked else list_members(row))
            }
        name = f"{path}: {clip_id}"
        if (member := find_altered_member(row, members)) is not None:
            raise ShardError(f"{name}'s {member} are not the bytes that the index names")
        info = json_to_info(members["json"], f"{name}.json")
        boxes = npy_to_array(members["boxes"], f"{name}.boxes")
        check_index_row(info, row, name)
        offsets = info["frame_offsets"]
        check_offsets(offsets, row["frames"], row["frames_size"], name)
        if not is_checked:
            mels, affine = (npy_to_array(members[part], f"{name}.{part}") for part in ("mels", "affine"))
            speech = npy_to_array(members[SPEECH], f"{name}.{SPEECH}") if SPEECH in members else None
            side = info["size"]
            check_arrays(name, row["frames"], (side, side), boxes, mels, affine, speech)
            shape = (len(offsets) - 1, side, side, 3)
            self.network_input.check_clip(name, row["frames"], shape, boxes, mels, speech)
            for part, array in (("mels", mels), (SPEECH, speech)):
                # rows are read from the file's end, so they must be there one after another
                if array is not None and not members[part].endswith(array.tobytes()):
                    raise ShardError(f"{name}.{part}: stored column by column, expected row by row")
            self._is_checked[clip] = True
        mels_bytes = (
            row["frames"] * MELS_PER_FRAME * self.network_input.n_mels * np.dtype(np.float32).itemsize
        )
        speech_offset = None
        if self.network_input.speech_size:
            speech_values = row["frames"] * SPEECH_PER_FRAME * self.network_input.speech_size
            speech_end = row[f"{SPEECH}_offset"] + row[f"{SPEECH}_size"]
            speech_offset = speech_end - speech_values * np.dtype(np.float16).itemsize
        return _ClipLayout(
            path,
            info["codec"],
            [row["frames_offset"] + offset for offset in offsets],
            boxes,
            row["mels_offset"] + row["mels_size"] - mels_bytes,  # a .npy file ends with its rows
            speech_offset,
        )


def _read_rows(file: _RangeReader, offset: int, n_rows: int, first: int, out: NDArray[Any]) -> None:
    """Fill ``out`` with a clip's rows from ``first`` on; where the clip has none it is left as it is.

    ``offset`` is that of the clip's row 0 in the file.
    """
    row_bytes = out[0].nbytes
    start, stop = max(0, first), min(n_rows, first + len(out))
    data = file.read(offset + start * row_bytes, offset + stop * row_bytes)
    out[start - first : stop - first] = np.frombuffer(data, out.dtype).reshape(stop - start, -1)


def allocate_batch(indices: BatchIndex, network_input: NetworkInput) -> RawBatch:
    """A batch in the host's memory, to be filled: its pixels and boxes are arbitrary, its mels silence.

    Its speech features are zeros, if there are any.
    """
    size, n = network_input.size, len(indices.target)
    before, after = indices.mel_rows
    speech = None
    if indices.speech_rows is not None:
        n_rows = indices.speech_rows[0] + 1 + indices.speech_rows[1]
        speech = torch.zeros(n, n_rows, network_input.speech_size, dtype=torch.float16)
    return RawBatch(
        indices,
        pixels=_allocate_shared((len(indices.images), n, size, size, 3)),
        boxes=torch.empty(2, n, 4, dtype=torch.int16),
        mels=torch.full((n, before + 1 + after, network_input.n_mels), network_input.silence_db),
        speech=speech,
    )


def _allocate_shared(shape: tuple[int, ...]) -> Tensor:
    """An empty uint8 tensor; in a DataLoader worker in shared memory, which saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class _RangeReader:
    """A file that is read at any offset."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _RangeReader:
        try:
            self._file = open_file(self.path)
            self._n_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as err:
            raise ShardError(f"{self.path}: cannot be read ({err.strerror})") from err
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``. Raises ShardError if the file ends before."""
        if stop > self._n_bytes:  # before memory is taken for the range
            raise ShardError(f"{self.path}: ends before byte {stop}")
        try:
            data = os.pread(self._file.fileno(), stop - start, start)
        except OSError as err:
            raise ShardError(f"{self.path}: cannot be read ({err.strerror})") from err
        if len(data) != stop - start:
            raise ShardError(f"{self.path}: ends before byte {stop}")
        return data


class Cached:
    """A ``FrameSource`` of shards that are all on this machine's disk."""

    def __init__(self, decoder: Decoder, device: torch.device, workers: int) -> None:
        self.device = device
        self.clips = decoder.clips
        self._decoder = decoder
        self._workers = workers

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def has_exact_epochs(self) -> bool:
        return self.clips.groups is None

    def epoch_order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return self.clips.epoch_order(positions, seed=seed)

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        return self._decoder.read_batch(indices).to(self.device)

    def prefetch(self, indices: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """Read batches in ``workers`` processes. Raises ShardError, also when a process is killed."""
        # An error must not pass through the DataLoader: its traceback would keep the loader alive, whose
        # processes would then end at an unexpected time. So errors are raised when the loader is gone.
        errors: list[ShardError] = []

        def catch_errors() -> Iterator[BatchIndex]:
            try:
                yield from indices
            except ShardError as err:
                errors.append(err)

        # Here and not in the new processes: a fork does not copy OpenCV's threads, and waits for them for
        # ever as soon as it asks for fewer.
        cv2.setNumThreads(1)
        batches = iter(
            DataLoader(
                cast(Any, self._decoder),  # has no length, and needs none: the sampler yields its indices
                batch_size=None,
                sampler=cast(Any, catch_errors()),
                num_workers=self._workers,
                prefetch_factor=BATCHES_AHEAD if self._workers else None,
                collate_fn=return_unchanged,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=ignore_stop_signals,
            )
        )
        try:
            for batch in batches:
                if isinstance(batch, ShardError):
                    errors.append(batch)
                    break
                yield batch.to(self.device)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as err:
            if isinstance(err, RuntimeError) and not is_worker_error(err):
                raise
            message = str(err).partition("\n")[0]  # the other types: a batch was being received from a worker
            errors.append(ShardError(f"a decoding process died ({message})"))
        finally:
            del batches
        for error in errors:
            raise error


def is_worker_error(err: RuntimeError) -> bool:
    """Whether torch reports that a DataLoader worker died, as it can do at any line of the main process."""
    return "DataLoader worker" in str(err)


def return_unchanged(item: Any) -> Any:
    """A ``collate_fn``; torch's own would make tensors of all arrays."""
    return item


def ignore_stop_signals(_worker: int) -> None:
    """A ``worker_init_fn``: a signal that stops a run stops the training loop, which ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
