"""An epoch from a real S3 server through what networks do: whole and right, or one line that says why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from shards import remote
from shards.cache import LocalShards, open_shard_store
from shards.frames import BatchIndex, FrameSource, RawBatch
from shards.reader import open_dataset
from shards.resident import build_clip_table
from shards.schema import ShardError
from shards.storage import open_storage
from shards.streaming import Cached, Decoder, Windowed
from tests import datasets, faults, s3
from tests.faults import Fault
from tests.shards.test_streaming import CPU, N_MELS, NETWORK_INPUT, SIZE, same

N_CLIPS, T = 12, 5
BATCH = 4
HELD = ("cached", "windowed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in six shards."""
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            f"s1_clip{i:02d}",
            rng.integers(0, 256, (T, SIZE, SIZE, 3), dtype=np.uint8),
            box=(1, 3, 6, 8),
            mels=rng.uniform(-79, 0, (2 * T, N_MELS)).astype(np.float32),
        )
        for i in range(N_CLIPS)
    ]
    return datasets.write(tmp_path_factory.mktemp("shards") / "shards", clips, per_shard=2)


@pytest.fixture(scope="module")
def bucket(folder: Path, s3_server: s3.Server) -> str:
    name = s3_server.bucket()
    for path in folder.iterdir():
        s3_server.client().upload_file(str(path), name, f"grid/{path.name}")
    return name


@pytest.fixture
def proxy(s3_server: s3.Server, silence: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.Proxy]:
    with faults.between(s3_server.endpoint) as between:
        for name, value in s3_server.environment(between.endpoint).items():
            monkeypatch.setenv(name, value)
        yield between


def batches(data: FrameSource, start: int, stop: int) -> Iterator[BatchIndex]:
    for k in range(start, stop, BATCH):
        positions = np.arange(k, min(k + BATCH, stop))
        target = data.order(positions, seed=3)
        first = data.clips.starts[data.clips.clip_of(target)]
        yield BatchIndex(positions, target, np.maximum(target - 1, first), first, (2, 2))


def read(hold: str, address: str, cache: Path, start: int = 0, stop: int = N_CLIPS * T) -> list[RawBatch]:
    """Positions of the order, by two processes, through a cache that holds two windows of shards."""
    dataset = open_dataset(open_storage(address))
    room = sum(entry.bytes for entry in dataset.shards.values())
    with open_shard_store(dataset, cache, room * 2 // 3 if hold == "windowed" else room) as shelf:
        decoder = Decoder(dataset, build_clip_table(dataset, dataset.clips), shelf, NETWORK_INPUT)
        if hold == "windowed":
            data: Cached = Windowed(decoder, CPU, 2, shelf=shelf, window=2)
        else:
            shelf.hold(dataset.shards.values())
            data = Cached(decoder, CPU, 2)
        return list(data.ahead(batches(data, start, stop), seed=3))


def all_faults(shards: Sequence[str]) -> list[Fault]:
    """Each for some requests, of the first shards that are asked for.

    No shard comes altered twice: that would be named, and rightly.
    """
    return [
        Fault("busy", times=2),
        Fault("cut", of=".tar", at=5000, times=3),
        Fault("stall", of=".tar", at=3000, times=1),
        Fault("busy", of=".tar", times=2),
        Fault("short", of=shards[0], at=2000, times=1),
        Fault("flip", of=shards[1], at=6000, times=1),
    ]


@pytest.mark.parametrize("hold", HELD)
def test_an_epoch_through_all_faults_at_once_and_resumed_is_the_one_from_disk(
    hold: str, folder: Path, bucket: str, proxy: faults.Proxy, tmp_path: Path
) -> None:
    opened = open_dataset(folder)
    here = Cached(
        Decoder(opened, build_clip_table(opened, opened.clips), LocalShards(folder), NETWORK_INPUT), CPU, 0
    )
    proxy.faults = all_faults(list(opened.shards))
    half = N_CLIPS * T // 2
    parts = [
        read(hold, f"s3://{bucket}/grid", tmp_path / "cache", *part) for part in ((0, half), (half, 2 * half))
    ]
    seen = [batch for part in parts for batch in part]
    frames = np.concatenate([batch.wanted.target for batch in seen])
    assert np.array_equal(np.sort(frames), np.arange(N_CLIPS * T)), "each once"
    assert all(same(batch, here.seen(batch.wanted)) for batch in seen)
    assert not any(fault.times for fault in proxy.faults), "all of them happened"


@pytest.mark.parametrize("hold", HELD)
def test_a_fault_that_stays_is_named_after_the_deadline(
    hold: str, bucket: str, proxy: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DEADLINE_SECONDS", 3.0)
    name = next(key for key in open_dataset(open_storage(f"s3://{bucket}/grid")).shards)
    proxy.faults = [Fault("cut", of=name, at=1000, times=10_000)]
    with pytest.raises(ShardError, match=f"s3://{bucket}/grid/{name}") as caught:
        read(hold, f"s3://{bucket}/grid", tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_an_object_that_was_replaced_is_named_and_one_shard_is_brought_once(
    folder: Path, s3_server: s3.Server, proxy: faults.Proxy, tmp_path: Path
) -> None:
    name = s3_server.bucket()
    for path in folder.iterdir():
        s3_server.client().upload_file(str(path), name, path.name)
    address = f"s3://{name}"
    assert len(read("cached", address, tmp_path / "cache")) == N_CLIPS * T // BATCH
    read("cached", address, tmp_path / "cache")
    shards = list(open_dataset(folder).shards)
    assert [proxy.count("GET", shard) for shard in shards] == [1] * len(shards)
    other = (folder / shards[1]).read_bytes()
    s3_server.client().put_object(Bucket=name, Key=shards[0], Body=other)
    with pytest.raises(ShardError, match=shards[0]):
        read("cached", address, tmp_path / "other")
