"""A stream of clips gives batches whose pixels are the dataset's, each sample from one clip."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from shards.clip_stream import BUFFER_BYTES, ClipStream
from shards.frames import BatchIndex, FrameSource, RawBatch
from shards.reader import open_dataset
from shards.schema import ShardError
from shards.writer import PackedClip
from tests import datasets
from tests.shards.test_streaming import CPU, N_MELS, NETWORK_INPUT, SIZE, SPEECH_SIZE, same

N_CLIPS, T = 12, 5
N_FRAMES = N_CLIPS * T
CLIP_BYTES = T * (SIZE**2 * 3 + 4 * 2 + 2 * N_MELS * 4 + 2 * SPEECH_SIZE * 2)


def make_clip(key: str, seed: int) -> PackedClip:
    return datasets.make_noise_clip(key, T, SIZE, N_MELS, seed=seed, speech_size=SPEECH_SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in six shards."""
    clips = [make_clip(f"s1_clip{i:02d}", i) for i in range(N_CLIPS)]
    return datasets.write(tmp_path_factory.mktemp("shards") / "shards", clips, per_shard=2)


def open_stream(folder: Path, *, workers: int = 0, **options: Any) -> ClipStream:
    dataset = open_dataset(folder)
    options = {"seed": 0, "start_step": 0, "buffer_clips": 4} | options
    clip_ids = options.pop("clip_ids", list(dataset.clips))
    return ClipStream(dataset, clip_ids, NETWORK_INPUT, CPU, workers=workers, **options)


def draw_batches(data: FrameSource, n: int, size: int = 4) -> Iterator[BatchIndex]:
    """As training does: the source chooses the targets, other frames of the same clips go with them."""
    for k in range(0, n * size, size):
        positions = np.arange(k, k + size)
        target = data.epoch_order(positions, seed=3)
        first = data.clips.starts[data.clips.find_clips(target)]
        previous, identity = np.maximum(target - 1, first), first + T - 1
        yield BatchIndex(positions, target, previous, identity, (3, 2), first + 1, (4, 9))


def read(folder: Path, n: int = N_FRAMES // 4, **options: Any) -> list[RawBatch]:
    with closing(open_stream(folder, **options)) as stream:
        return list(islice(stream.prefetch(draw_batches(stream, n), seed=3), n))


def targets(batches: list[RawBatch]) -> list[int]:
    return np.concatenate([batch.indices.target for batch in batches]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_resident_dataset(folder: Path, workers: int) -> None:
    memory = datasets.load(folder, NETWORK_INPUT, pad=9)
    for batch in read(folder, workers=workers):
        assert same(batch, memory.read_batch(batch.indices))
        clips = [memory.clips.find_clips(frames) for frames in batch.indices[1:4]]
        assert np.array_equal(clips[0], clips[1]) and np.array_equal(clips[0], clips[2])


def test_a_pass_uses_each_frame_about_once_in_a_mixed_order(folder: Path) -> None:
    """The buffer holds four clips, so what is left of a pass and what is drawn early are at most theirs."""
    counts = Counter(targets(read(folder)))
    assert set(counts.values()) <= {1, 2} and len(counts) >= N_FRAMES - 4 * T
    counts = Counter(targets(read(folder, n=10 * N_FRAMES // 4)))
    assert len(counts) == N_FRAMES and min(counts.values()) >= 9 and max(counts.values()) <= 11
    clips_per_batch = [len(set(batch.indices.target // T)) for batch in read(folder, n=50)]
    assert np.mean(clips_per_batch) > 2.4, "of 4 frames out of 4 clips, by chance 2.7"


def test_the_order_depends_on_seed_and_step(folder: Path) -> None:
    orders = [targets(read(folder, seed=seed, start_step=step)) for seed, step in ((0, 0), (1, 0), (0, 9))]
    assert targets(read(folder)) == orders[0]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize(
    ("n_bytes", "n_clips"),
    [(0, 4), (5 * CLIP_BYTES, 5), (5 * CLIP_BYTES + 1, 6), (12 * CLIP_BYTES, 12), (BUFFER_BYTES, 12)],
)
def test_a_buffer_full_of_bytes_takes_no_further_clips_but_has_at_least_four(
    folder: Path, n_bytes: int, n_clips: int
) -> None:
    """The same order as of a buffer for so many clips."""
    assert targets(read(folder, buffer_bytes=n_bytes, buffer_clips=100)) == targets(
        read(folder, buffer_clips=n_clips)
    )


def test_only_the_training_clips_are_drawn(folder: Path) -> None:
    clip_ids = [f"s1_clip{number:02d}" for number in (3, 4, 8)]
    with closing(open_stream(folder, clip_ids=clip_ids, buffer_clips=100)) as stream:
        assert stream.clips.ids == clip_ids and len(stream) == 3 * T
        frames = targets(list(stream.prefetch(draw_batches(stream, 20), seed=0)))
    assert set(frames) == set(range(3 * T))


def test_ranks_read_different_shards(folder: Path) -> None:
    """In the same pass: eight frames need no more than the six clips of a rank."""
    clips = [
        {frame // T for frame in targets(read(folder, n=2, rank=rank, world=2, buffer_clips=5))}
        for rank in range(2)
    ]
    assert not clips[0] & clips[1]
    with pytest.raises(ShardError, match="6 shards cannot be divided among 7 ranks"):
        open_stream(folder, world=7)


def test_there_are_no_more_processes_than_shards_and_none_after_closing(folder: Path) -> None:
    before = set(psutil.Process().children())
    with closing(open_stream(folder, workers=9, rank=1, world=3)) as stream:
        next(stream.prefetch(draw_batches(stream, 1), seed=0))
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_ends_the_stream_with_an_error_that_names_it(
    folder: Path, workers: int, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = sorted(copy.glob("*.tar"))[2]
    shard.write_bytes(shard.read_bytes()[:4000])
    importlib.import_module("distributed.core")  # from then on pickle follows the causes of errors
    with pytest.raises(ShardError) as caught:
        read(copy, workers=workers)
    assert str(caught.value).startswith(f"{shard}: ") and "\n" not in str(caught.value)


def test_clips_that_do_not_fit_the_network_are_named(folder: Path) -> None:
    dataset = open_dataset(folder)
    stream = ClipStream(
        dataset,
        list(dataset.clips),
        type(NETWORK_INPUT)(2 * SIZE, N_MELS, -80.0),
        torch.device("cpu"),
        workers=0,
        seed=0,
        start_step=0,
    )
    with closing(stream), pytest.raises(ShardError, match=r"s1_clip\d\d holds frames"):
        stream.epoch_order(np.arange(4), seed=0)
