"""An epoch read from a real S3 server despite network faults: right, or an error of one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from shards.streaming import Cached, Decoder
from shards.windowed import Windowed
from shards.writer import PackedClip
from tests import datasets, faults, s3
from tests.faults import Fault
from tests.shards.test_streaming import CPU, N_MELS, NETWORK_INPUT, SIZE, SPEECH_SIZE, same

N_CLIPS, T = 12, 5
BATCH = 4
MODES = ("cached", "windowed")


def make_clip(key: str, seed: int) -> PackedClip:
    return datasets.make_noise_clip(key, T, SIZE, N_MELS, seed=seed, speech_size=SPEECH_SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in six shards."""
    clips = [make_clip(f"s1_clip{i:02d}", i) for i in range(N_CLIPS)]
    return datasets.write(tmp_path_factory.mktemp("shards") / "shards", clips, per_shard=2)


@pytest.fixture(scope="module")
def bucket(folder: Path, s3_server: s3.Server) -> str:
    name = s3_server.create_bucket()
    for path in folder.iterdir():
        s3_server.client().upload_file(str(path), name, f"grid/{path.name}")
    return name


@pytest.fixture
def proxy(s3_server: s3.Server, silence: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.Proxy]:
    with faults.start_proxy(s3_server.endpoint) as running:
        for name, value in s3_server.environment(running.endpoint).items():
            monkeypatch.setenv(name, value)
        yield running


def batches(data: FrameSource, start: int, stop: int) -> Iterator[BatchIndex]:
    for k in range(start, stop, BATCH):
        positions = np.arange(k, min(k + BATCH, stop))
        target = data.epoch_order(positions, seed=3)
        first = data.clips.starts[data.clips.find_clips(target)]
        yield BatchIndex(positions, target, np.maximum(target - 1, first), first, (2, 2), first, (5, 3))


def read(hold: str, address: str, cache: Path, start: int = 0, stop: int = N_CLIPS * T) -> list[RawBatch]:
    """Batches of an epoch, by two processes, through a cache with room for two windows of shards."""
    dataset = open_dataset(open_storage(address))
    room = sum(entry.bytes for entry in dataset.shards.values())
    with open_shard_store(dataset, cache, room * 2 // 3 if hold == "windowed" else room) as store:
        decoder = Decoder(dataset, build_clip_table(dataset, dataset.clips), store, NETWORK_INPUT)
        if hold == "windowed":
            data: Cached = Windowed(decoder, CPU, 2, store=store, window=2)
        else:
            store.hold(dataset.shards.values())
            data = Cached(decoder, CPU, 2)
        return list(data.prefetch(batches(data, start, stop), seed=3))


def all_faults(shards: Sequence[str]) -> list[Fault]:
    """Every fault for some requests. No shard is altered twice: that is an error."""
    return [
        Fault("busy", times=2),
        Fault("cut", path=".tar", at=5000, times=3),
        Fault("stall", path=".tar", at=3000, times=1),
        Fault("busy", path=".tar", times=2),
        Fault("short", path=shards[0], at=2000, times=1),
        Fault("flip", path=shards[1], at=6000, times=1),
    ]


@pytest.mark.parametrize("hold", MODES)
def test_an_epoch_with_all_faults_at_once_and_resumed_equals_the_one_from_disk(
    hold: str, folder: Path, bucket: str, proxy: faults.Proxy, tmp_path: Path
) -> None:
    dataset = open_dataset(folder)
    here = Cached(
        Decoder(dataset, build_clip_table(dataset, dataset.clips), LocalShards(folder), NETWORK_INPUT), CPU, 0
    )
    proxy.faults = all_faults(list(dataset.shards))
    half = N_CLIPS * T // 2
    parts = [
        read(hold, f"s3://{bucket}/grid", tmp_path / "cache", *part) for part in ((0, half), (half, 2 * half))
    ]
    results = [batch for part in parts for batch in part]
    frames = np.concatenate([batch.indices.target for batch in results])
    assert np.array_equal(np.sort(frames), np.arange(N_CLIPS * T)), "each once"
    assert all(same(batch, here.read_batch(batch.indices)) for batch in results)
    assert not any(fault.times for fault in proxy.faults), "all of them happened"


@pytest.mark.parametrize("hold", MODES)
def test_a_permanent_fault_is_reported_after_the_deadline(
    hold: str, bucket: str, proxy: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, deadline_seconds=3.0))
    name = next(key for key in open_dataset(open_storage(f"s3://{bucket}/grid")).shards)
    proxy.faults = [Fault("cut", path=name, at=1000, times=10_000)]
    with pytest.raises(ShardError, match=f"s3://{bucket}/grid/{name}") as caught:
        read(hold, f"s3://{bucket}/grid", tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_replaced_object_is_reported_and_each_shard_is_downloaded_once(
    folder: Path, s3_server: s3.Server, proxy: faults.Proxy, tmp_path: Path
) -> None:
    name = s3_server.create_bucket()
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
