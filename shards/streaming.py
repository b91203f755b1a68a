"""FrameSource decoded when they are asked for, from shards on this machine's disk, by processes that work ahead.

The batches to come are dealt out in order and come back in order, whoever decoded them: how many processes
there are changes nothing but the speed. They read files and decode; what has to be brought from elsewhere is
brought by the process that trains.
"""

from __future__ import annotations

import math
import os
import signal
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from shards.cache import ShardStore
from shards.codec import Codec, check_offsets, decode_frame
from shards.frames import BatchIndex, ClipTable, NetworkInput, Numbers, RawBatch
from shards.index import MEMBERS, ShardEntry
from shards.reader import Dataset, altered, read_frame_layout
from shards.rng import epoch_order
from shards.schema import MELS_PER_FRAME, ShardError, check_arrays, json_to_info, npy_to_array
from shards.windows import Window, Windows

OPEN_CLIPS = 2**14  # whose tables a process remembers
BATCHES_AHEAD = 2  # of each process


@dataclass(frozen=True, slots=True)
class _Clip:
    """Where the parts of a clip lie in a file."""

    path: Path
    codec: Codec
    cuts: Sequence[int]  # (T + 1,): frame k is the bytes from cuts[k] to cuts[k + 1]
    boxes: NDArray[np.int16]  # (T, 4)
    mels_at: int


class Decoder:
    """Makes batches from files. Processes may have copies of it."""

    def __init__(self, dataset: Dataset, clips: ClipTable, shelf: ShardStore, fit: NetworkInput) -> None:
        self.clips = clips
        self.fit = fit
        self._dataset = dataset
        self._paths = {name: shelf.path(entry) for name, entry in dataset.shards.items()}
        self._open: OrderedDict[int, _Clip] = OrderedDict()
        # By clip, whether a process has held its bytes against their CRC: one of them does it for all.
        self._checked = torch.zeros(len(clips.ids), dtype=torch.bool)
        self._checked.share_memory_()  # type: ignore[no-untyped-call]

    def shards(self) -> tuple[list[ShardEntry], NDArray[np.int64]]:
        """The shards that its clips lie in, by name, and which of them each clip lies in."""
        names, shard_of = self._dataset.clips.locate_shards(self.clips.ids)
        return [self._dataset.shards[name] for name in names], shard_of

    def __getitem__(self, wanted: BatchIndex) -> RawBatch | ShardError:
        """A batch, or why there is none: errors that cross processes lose their type."""
        try:
            return self.seen(wanted)
        except ShardError as err:
            return err

    def seen(self, wanted: BatchIndex) -> RawBatch:
        """A batch in the host's memory. Raises ShardError for a clip that is damaged or does not fit."""
        size, n = self.fit.size, len(wanted.target)
        before, after = wanted.mel_rows
        pixels = _shared((3, n, size, size, 3))
        boxes = torch.empty(2, n, 4, dtype=torch.int16)
        mels = torch.full((n, before + 1 + after, self.fit.n_mels), self.fit.silence_db)
        pixels_out, boxes_out, mels_out = pixels.numpy(), boxes.numpy(), mels.numpy()
        places = self.clips.clip_of(wanted.target)
        frames = np.stack([wanted.target, wanted.before, wanted.identity]) - self.clips.starts[places]
        for row, (place, of_clip) in enumerate(zip(places.tolist(), frames.T.tolist(), strict=True)):
            clip = self._clip(place)
            with _Bytes(clip.path) as file:
                for image, frame in zip(pixels_out[:, row], of_clip, strict=True):
                    data = file.read(clip.cuts[frame], clip.cuts[frame + 1])
                    image[...] = decode_frame(data, clip.codec, (size, size))
                boxes_out[:, row] = clip.boxes[of_clip[:2]]
                self._hear(file, clip, MELS_PER_FRAME * of_clip[0] - before, mels_out[row])
        return RawBatch(wanted, pixels, boxes, mels)

    def _hear(self, file: _Bytes, clip: _Clip, first: int, out: NDArray[np.float32]) -> None:
        """Mel rows from ``first`` on, as many as there is room for; none beyond the clip's ends."""
        row_bytes = out[0].nbytes
        low, high = max(0, first), min(MELS_PER_FRAME * len(clip.boxes), first + len(out))
        data = file.read(clip.mels_at + low * row_bytes, clip.mels_at + high * row_bytes)
        out[low - first : high - first] = np.frombuffer(data, np.float32).reshape(high - low, -1)

    def _clip(self, place: int) -> _Clip:
        clip = self._open.get(place)
        if clip is None:
            clip = self._open[place] = self._opened(place)
            if len(self._open) > OPEN_CLIPS:
                self._open.popitem(last=False)
        return clip

    def _opened(self, place: int) -> _Clip:
        """A clip's tables; the first time that any process opens it, all of it is checked."""
        clip_id, known = self.clips.ids[place], bool(self._checked[place])
        row = self._dataset.clips[clip_id]
        path = self._paths[row["shard"]]
        with _Bytes(path) as file:
            members = {
                name: file.read(row[f"{name}_offset"], row[f"{name}_offset"] + row[f"{name}_size"])
                for name in (("boxes", "json") if known else MEMBERS)
            }
        name = f"{path}: {clip_id}"
        if (wrong := altered(row, members)) is not None:
            raise ShardError(f"{name}'s {wrong} are not the bytes that the index names")
        info = json_to_info(members["json"], f"{name}.json")
        boxes = npy_to_array(members["boxes"], f"{name}.boxes")
        codec, offsets = read_frame_layout(name, info)
        check_offsets(offsets, row["frames"], row["frames_size"], name)
        if not known:
            mels, affine = (npy_to_array(members[part], f"{name}.{part}") for part in ("mels", "affine"))
            side = info["size"]
            check_arrays(name, row["frames"], (side, side), boxes, mels, affine)
            self.fit.check_clip(name, row["frames"], (len(offsets) - 1, side, side, 3), boxes, mels)
            self._checked[place] = True
        mels_bytes = row["frames"] * MELS_PER_FRAME * self.fit.n_mels * np.dtype(np.float32).itemsize
        return _Clip(
            path,
            codec,
            [row["frames_offset"] + offset for offset in offsets],
            boxes,
            row["mels_offset"] + row["mels_size"] - mels_bytes,  # a .npy file ends with its rows
        )


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Room for bytes; in a process that works for another, where both see it: that saves a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class _Bytes:
    """A file that is read at places."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Bytes:
        try:
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as err:
            raise ShardError(f"{self.path}: cannot be read ({err.strerror})") from err
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, start: int, end: int) -> bytes:
        try:
            data = os.pread(self._file, end - start, start)
        except OSError as err:
            raise ShardError(f"{self.path}: cannot be read ({err.strerror})") from err
        if len(data) != end - start:
            raise ShardError(f"{self.path}: ends before byte {end}")
        return data


class Cached:
    """FrameSource of shards that this machine's disk holds, all of them for as long as this lives."""

    def __init__(self, decoder: Decoder, device: torch.device, workers: int) -> None:
        self.device = device
        self.clips = decoder.clips
        self._decoder = decoder
        self._workers = workers

    def __len__(self) -> int:
        return len(self.clips)

    def order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return epoch_order(positions, len(self), seed=seed)

    def seen(self, wanted: BatchIndex) -> RawBatch:
        return self._decoder.seen(wanted).to(self.device)

    def ahead(self, wanted: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        # No error may pass through the loader: it would be kept with the error, and end its processes when
        # nobody expects it. So each is held back until the loader is gone.
        errors: list[ShardError] = []

        def asked() -> Iterator[BatchIndex]:
            try:
                yield from wanted
            except ShardError as err:
                errors.append(err)

        # Here and not in the new processes: one that inherits OpenCV's threads, none of which came along,
        # waits for them for ever as soon as it asks for fewer.
        cv2.setNumThreads(1)
        batches = iter(
            DataLoader(
                cast(Any, self._decoder),  # has no length, and needs none: the sampler says what to get
                batch_size=None,
                sampler=cast(Any, asked()),
                num_workers=self._workers,
                prefetch_factor=BATCHES_AHEAD if self._workers else None,
                collate_fn=_as_it_is,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_begin,
            )
        )
        try:
            for seen in batches:
                if isinstance(seen, ShardError):
                    errors.append(seen)
                    break
                yield seen.to(self.device)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as err:
            if isinstance(err, RuntimeError) and not is_of_worker(err):
                raise
            told = str(err).partition("\n")[0]  # not of a worker: of a batch that was on its way from one
            errors.append(ShardError(f"a process that decodes is gone ({told})"))
        finally:
            del batches
        for error in errors:
            raise error


def is_of_worker(err: RuntimeError) -> bool:
    """Whether torch tells of a process that died; it may do so in the middle of anything."""
    return "DataLoader worker" in str(err)


def _as_it_is(seen: Any) -> Any:
    """Instead of torch's own, which makes tensors of all arrays."""
    return seen


def _begin(_number: int) -> None:
    """In a new process: who stops a run stops the loop, which stops these."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Windowed(Cached):
    """FrameSource of shards that lie elsewhere, of which this machine's disk holds a window or two at a time."""

    def __init__(
        self, decoder: Decoder, device: torch.device, workers: int, *, shelf: ShardStore, window: int
    ) -> None:
        super().__init__(decoder, device, workers)
        self._shelf = shelf
        self._shards, self._shard_of = decoder.shards()
        self._windows = Windows(decoder.clips, self._shard_of, window)

    def order(self, positions: ArrayLike, *, seed: int) -> Numbers:
        return self._windows.drawn(positions, seed=seed)

    def seen(self, wanted: BatchIndex) -> RawBatch:
        """A batch by itself: its shards are brought for it alone."""
        shards = np.unique(self._shard_of[self.clips.clip_of(wanted.target)])
        entries = [self._shards[shard] for shard in shards]
        self._shelf.hold(entries)
        try:
            return super().seen(wanted)
        finally:
            self._shelf.release(entries)

    def ahead(self, wanted: Iterator[BatchIndex], *, seed: int) -> Iterator[RawBatch]:
        """The shards of a window are brought while the one before is read, and let go when it has been."""
        held: deque[tuple[Window, Future[None]]] = deque()

        def entries(window: Window) -> list[ShardEntry]:
            return [self._shards[shard] for shard in self._windows.locate_shards(window, seed=seed)]

        def hold(window: Window) -> None:
            if all(window != other for other, _ in held):
                held.append((window, pool.submit(self._shelf.hold, entries(window))))

        def brought() -> Iterator[BatchIndex]:
            for batch in wanted:
                windows = self._windows.windows_at(batch.positions, seed=seed)
                for window in windows:
                    hold(window)
                for window, coming in held:
                    if window in windows:
                        coming.result()
                hold(self._windows.after(windows[-1], seed=seed))
                yield batch

        with ThreadPoolExecutor(1) as pool:
            try:
                for seen in super().ahead(brought(), seed=seed):
                    first = self._windows.windows_at(seen.wanted.positions, seed=seed)[0]
                    while held[0][0] < first:
                        self._shelf.release(entries(held.popleft()[0]))
                    yield seen
            finally:
                for window, coming in held:
                    if not coming.cancel() and coming.exception() is None:
                        self._shelf.release(entries(window))
