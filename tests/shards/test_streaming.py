"""Batches decoded on demand equal those in memory, however many processes decode; damage is named."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from shards.cache import LocalShards, ShardCache
from shards.codec import Codec
from shards.frames import BatchIndex, FrameSource, NetworkInput, RawBatch
from shards.index import ShardEntry
from shards.reader import open_dataset
from shards.resident import Resident, build_clip_table
from shards.schema import ShardError
from shards.streaming import Cached, Decoder
from shards.windowed import Windowed
from tests import datasets

SIZE, N_MELS, SPEECH_SIZE = 16, 4, 3
NETWORK_INPUT = NetworkInput(SIZE, N_MELS, -80.0, top=2, speech_size=SPEECH_SIZE)
CPU = torch.device("cpu")
LENGTHS = {"s1_b": 5, "s1_a": 3, "s2_c": 1, "s2_a": 7}


def dataset(folder: Path, codec: Codec = "raw", *, per_shard: int = 0) -> Path:
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            key,
            rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
            box=(1, 3, 6, 8),
            mels=rng.uniform(-79, 0, (2 * length, N_MELS)).astype(np.float32),
            speech=rng.normal(0, 3, (2 * length, SPEECH_SIZE)).astype(np.float16),
            codec=codec,
        )
        for key, length in LENGTHS.items()
    ]
    return datasets.write(folder, clips, per_shard=per_shard)


def resident(folder: Path) -> Resident:
    return datasets.load(folder, NETWORK_INPUT, pad=9)


def cached(folder: Path, workers: int = 0, network_input: NetworkInput = NETWORK_INPUT) -> Cached:
    reader = open_dataset(folder)
    return Cached(
        Decoder(reader, build_clip_table(reader, reader.clips), LocalShards(folder), network_input),
        CPU,
        workers,
    )


def batches(data: FrameSource, n: int = 6, size: int = 5) -> Iterator[BatchIndex]:
    """Batches of frames in the order of ``data``; identity frames are the last of each clip."""
    for k in range(0, n * size, size):
        positions = np.arange(k, k + size)
        target = data.epoch_order(positions, seed=3)
        clip = data.clips.find_clips(target)
        first, last = data.clips.starts[clip], data.clips.starts[clip + 1] - 1
        yield BatchIndex(positions, target, np.maximum(target - 1, first), last, (6, 5), first, (4, 9))


def list_tensors(batch: RawBatch) -> list[Tensor]:
    assert batch.speech is not None
    return [batch.pixels, batch.boxes, batch.mels, batch.speech]


def same(one: RawBatch, other: RawBatch) -> bool:
    return all(
        np.array_equal(a, b)  # type: ignore[arg-type]
        for a, b in zip(one.indices, other.indices, strict=True)
    ) and all(map(torch.equal, list_tensors(one), list_tensors(other)))


@pytest.mark.parametrize("codec", ["webp", "jpeg", "png", "raw"])
def test_a_batch_decoded_from_disk_is_the_one_from_memory(codec: Codec, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards", codec)
    memory, disk = resident(folder), cached(folder)
    for indices in batches(memory):
        batch = disk.read_batch(indices)
        assert same(batch, memory.read_batch(indices))
        assert len(batch.pixels) == 4, "target, previous, identity and context"


def test_batches_are_in_order_from_any_start_however_many_processes_decode(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    memory = resident(folder)
    plain = list(memory.prefetch(batches(memory), seed=3))
    for workers in (0, 1, 2):
        ahead = list(cached(folder, workers).prefetch(batches(memory), seed=3))
        assert len(ahead) == len(plain) and all(map(same, ahead, plain))
    resumed = list(cached(folder, 2).prefetch(islice(batches(memory), 4, None), seed=3))
    assert all(map(same, resumed, plain[4:]))


def test_a_process_with_opencv_threads_can_start_decoding_processes(tmp_path: Path) -> None:
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2048, 2048, 3), np.uint8), (31, 31), 0)  # large enough to start them
    data = cached(dataset(tmp_path), workers=2)

    def raise_timeout(*_: object) -> None:
        raise TimeoutError("no batch came")

    old_handler = signal.signal(signal.SIGALRM, raise_timeout)
    signal.alarm(60)
    try:
        assert len(list(data.prefetch(batches(data), seed=0))) == 6
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old_handler)


def test_only_a_few_batches_of_an_endless_stream_are_decoded_ahead(tmp_path: Path) -> None:
    data, n_requested, others = cached(dataset(tmp_path / "shards"), 1), 0, set(psutil.Process().children())

    def repeat_batches() -> Iterator[BatchIndex]:
        nonlocal n_requested
        while True:
            for indices in batches(data):
                n_requested += 1
                yield indices

    stream = data.prefetch(repeat_batches(), seed=3)
    for _ in range(20):
        next(stream)
    assert n_requested <= 24
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert set(psutil.Process().children()) == others, "no process remains"


class CountedDecoder(Decoder):
    """Remembers the frames that it decoded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.frames: list[int] = []

    def read_clip(self, clip: int, frames: Sequence[int], *args: Any, **options: Any) -> None:
        self.frames += [int(self.clips.starts[clip]) + k for k in frames]
        super().read_clip(clip, frames, *args, **options)


def windowed(folder: Path, workers: int = 1, **limits: int) -> tuple[Windowed, CountedDecoder]:
    reader, store = open_dataset(folder), LocalShards(folder)
    decoder = CountedDecoder(reader, build_clip_table(reader, reader.clips), store, NETWORK_INPUT)
    return Windowed(decoder, CPU, workers, store=store, window=2, **limits), decoder


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_decoded_once_and_their_batches_are_those_from_memory(
    workers: int, tmp_path: Path
) -> None:
    """16 frames in two windows, in batches that extend over two windows, or over three."""
    folder = dataset(tmp_path / "shards", "webp", per_shard=1)
    memory = resident(folder)
    for size in (1, 5, 14):
        data, decoder = windowed(folder, workers)
        raw_batches = data.prefetch(batches(data, n=-(-32 // size), size=size), seed=3)
        results = [raw for raw, _ in zip(raw_batches, range(32 // size), strict=False)]
        assert len(results) == 32 // size
        assert all(same(batch, memory.read_batch(batch.indices)) for batch in results)
        assert Counter(decoder.frames[:16]) == Counter(range(16)), "once an epoch"


def test_ranks_decode_only_what_their_own_samples_take(tmp_path: Path) -> None:
    data, decoder = windowed(dataset(tmp_path / "shards", per_shard=1))
    half = list(islice(batches(data, n=16, size=1), 0, None, 2))
    assert len(list(data.prefetch(iter(half), seed=3))) == 8
    assert set(decoder.frames) == {int(frame[0]) for batch in half for frame in batch.images}


def test_less_memory_than_two_windows_means_more_decoding_and_the_same_batches(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    memory = resident(folder)
    data, decoder = windowed(folder, memory_bytes=2 * 9 * SIZE**2 * 3)
    assert data.memory_bytes == 2 * 9 * SIZE**2 * 3 < 2 * data.window_bytes
    for batch in data.prefetch(batches(data, n=16, size=1), seed=3):
        assert same(batch, memory.read_batch(batch.indices))
    assert 16 < len(decoder.frames) < 16 * 4


def test_windows_that_do_not_fit_into_memory_are_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset(tmp_path / "shards")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_000))
    with pytest.raises(ShardError, match=r"may take 0.0 GB, of 0.0 GB free memory 80% .* --memory-gb"):
        windowed(folder, memory_bytes=10**9)
    windowed(folder, memory_bytes=16_000)
    assert windowed(folder)[0].memory_bytes == 16_000, "by default what is free"


def test_a_window_that_is_left_or_damaged_ends_its_threads_and_names_the_clip(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards", per_shard=1)
    n_threads = threading.active_count()
    data, _ = windowed(folder)
    stream = data.prefetch(batches(data), seed=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    row = open_dataset(folder).clips["s2_a"]
    path = folder / row["shard"]
    content = bytearray(path.read_bytes())
    content[row["frames_offset"]] ^= 1
    path.write_bytes(content)
    message = f"{path}: s2_a's frames are not the bytes that the index names"
    assert message in prefetch_error(windowed(folder)[0])
    assert threading.active_count() == n_threads


def test_a_single_batch_downloads_the_shards_it_needs(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards", per_shard=1)
    reader, memory = open_dataset(folder), resident(folder)

    def copy_shard(entry: ShardEntry, path: Path) -> None:
        shutil.copyfile(folder / entry.name, path)

    two = 2 * max(entry.bytes for entry in reader.shards.values())
    with contextlib.closing(ShardCache(tmp_path / "cache", two, copy_shard)) as store:
        decoder = Decoder(reader, build_clip_table(reader, reader.clips), store, NETWORK_INPUT)
        data = Windowed(decoder, CPU, 0, store=store, window=1)
        for indices in batches(data, n=16, size=1):
            assert same(data.read_batch(indices), memory.read_batch(indices))


# --- errors --------------------------------------------------------------------------------


def prefetch_error(data: Cached) -> str:
    with pytest.raises(ShardError) as caught:
        list(data.prefetch(batches(data), seed=3))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("member", ["frames", "boxes", "mels", "affine", "json"])
def test_a_flipped_bit_is_named_by_shard_clip_and_member(member: str, workers: int, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    row = open_dataset(folder).clips["s2_a"]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row[f"{member}_offset"] + row[f"{member}_size"] // 2] ^= 1
    path.write_bytes(data)
    assert f"{path}: s2_a's {member} are not the bytes that the index names" in prefetch_error(
        cached(folder, workers)
    )


def test_a_shard_that_ends_early_or_is_gone_is_named(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    path = next(folder.glob("*.tar"))
    path.write_bytes(path.read_bytes()[:9000])
    assert f"{path}: ends before byte" in prefetch_error(cached(folder, 1))
    path.unlink()
    assert f"{path}: cannot be read (No such file" in prefetch_error(cached(folder, 1))


def test_clips_that_do_not_fit_the_network_are_named(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    assert "mask box that begins at row 3, the network looks at rows from 4 on" in prefetch_error(
        cached(folder, network_input=NetworkInput(SIZE, N_MELS, -80.0, top=4))
    )
    message = prefetch_error(cached(folder, network_input=NetworkInput(32, N_MELS, -80.0)))
    assert "16, 16, 3) and 4 mel bins, expected" in message
    assert "4 mel bins, expected" in prefetch_error(
        cached(folder, network_input=NetworkInput(SIZE, 5, -80.0))
    )


class Killed(Decoder):
    """Its process is killed in the middle of the work, as when memory runs out."""

    def read_batch(self, indices: BatchIndex) -> RawBatch:
        if get_worker_info() is not None and indices.positions[0] >= 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_batch(indices)


# torch raises from a signal handler, at any line; in a finaliser nothing can catch that
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_process_ends_the_epoch_with_an_error_at_once(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "shards")
    reader = open_dataset(folder)
    data = Cached(
        Killed(reader, build_clip_table(reader, reader.clips), LocalShards(folder), NETWORK_INPUT), CPU, 1
    )
    assert "a decoding process died" in prefetch_error(data)
