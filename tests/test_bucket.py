"""A dataset in a bucket of a real S3 server: published complete, read despite faults, safe from rebuilds."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.main import cli
from shards import remote
from shards import s3 as bucket
from shards.diff import diff
from shards.index import DATASET_NAME
from shards.publish import download_dataset, publish
from shards.reader import open_dataset, read_clip, read_members
from shards.schema import ShardError
from shards.storage import Storage, open_storage
from shards.verify import verify
from stages.synth import ClipSpec, make_clip
from tests import datasets, faults, s3
from tests.build import build, hash_files
from tests.waiting import GUARD_SECONDS

BIG_BYTES = 3_000_000


@pytest.fixture
def proxy(s3_server: s3.Server) -> Iterator[faults.Proxy]:
    with faults.start_proxy(s3_server.endpoint) as running:
        yield running


@pytest.fixture
def address(s3_server: s3.Server, proxy: faults.Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix in a bucket, behind the proxy."""
    for name, value in s3_server.environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, first_pause_seconds=0.02))
    return f"s3://{s3_server.create_bucket()}/a/prefix"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, deadline_seconds=0.5))


def make(folder: Path, *names: str, shade: int = 7) -> Path:
    """A finished dataset of clips of one shade."""
    frames = np.full((3, 16, 16, 3), shade, np.uint8)
    mels = np.zeros((6, 8), np.float32)
    packed = [datasets.pack(name, frames, box=(4, 8, 12, 15), mels=mels, codec="webp") for name in names]
    return datasets.write(folder, packed, params={"mels": {"n_fft": 1024, "n_mels": 8}})


def make_key(address: str, name: str) -> dict[str, str]:
    """boto3's arguments for an object."""
    bucket_name, prefix = address.removeprefix("s3://").split("/", 1)
    return {"Bucket": bucket_name, "Key": f"{prefix}/{name}"}


def list_names(address: str) -> set[str]:
    """Names of the files in a bucket."""
    return {file.name for file in open_storage(address).walk()}


def list_uploads(proxy: faults.Proxy) -> list[str]:
    """Names of the files that were uploaded, in order."""
    return [request.path.rpartition("/")[2] for request in proxy.requests if request.method == "PUT"]


def make_big_file(folder: Path) -> tuple[Path, str]:
    """A file of random bytes, and its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "big"
    path.write_bytes(np.random.default_rng(0).bytes(BIG_BYTES))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_published_dataset_is_the_local_one(s3_server: s3.Server, address: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "here", "s1_a", "s1_b")
    publish(folder, open_storage(address))
    there, here = open_dataset(open_storage(address)), open_dataset(folder)
    assert list(there.clips) == list(here.clips)
    assert list(there.ledger()) == list(here.ledger())
    for clip_id in here.clips:
        assert np.array_equal(read_clip(there, clip_id).frames, read_clip(here, clip_id).frames)
    assert not diff(folder, open_storage(address))
    assert [list(verify(open_storage(address), full=full)) for full in (False, True)] == [[], []]
    client = s3_server.client()
    hashes_in_bucket = {
        hashlib.sha256(client.get_object(**make_key(address, name))["Body"].read()).hexdigest()
        for name in list_names(address)
    }
    assert hashes_in_bucket == set(hash_files(folder).values()), "the same bytes, by another client"


def test_the_manifest_is_uploaded_last_and_no_file_twice(
    proxy: faults.Proxy, address: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "here", "s1_a")
    assert publish(folder, open_storage(address)) > 0
    assert len(set(list_uploads(proxy))) == 4
    assert list_uploads(proxy)[-1] == DATASET_NAME
    proxy.requests.clear()
    assert publish(folder, open_storage(address)) == 0
    assert set(list_uploads(proxy)) == {DATASET_NAME}


def test_a_killed_upload_leaves_no_dataset_and_can_be_resumed(
    proxy: faults.Proxy, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "here", "s1_a")
    fault = faults.Fault("cut", ".tar", at=1000, times=99, method="PUT")
    proxy.faults.append(fault)
    with monkeypatch.context() as patch:
        patch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, deadline_seconds=0.5))
        with pytest.raises(ShardError, match=r"\.tar: given up"):
            publish(folder, open_storage(address))
    with pytest.raises(ShardError, match="so this is not a complete dataset"):
        open_dataset(open_storage(address))
    proxy.faults.remove(fault)
    before = list_names(address)
    proxy.requests.clear()
    publish(folder, open_storage(address))
    assert not before.intersection(list_uploads(proxy))
    assert list(verify(open_storage(address), full=True)) == []


def test_a_rebuilt_dataset_does_not_change_the_one_that_is_being_read(address: str, tmp_path: Path) -> None:
    publish(make(tmp_path / "one", "s1_a", shade=1), open_storage(address))
    old = open_dataset(open_storage(address))
    publish(make(tmp_path / "two", "s1_a", "s1_b", shade=2), open_storage(address))
    assert read_clip(old, "s1_a").frames.max() == 1
    assert [row["clip_id"] for row in old.ledger()] == ["s1_a"]
    assert list(open_dataset(open_storage(address)).clips) == ["s1_a", "s1_b"]


def test_prune_removes_what_the_dataset_does_not_name_and_nothing_else(
    address: str, s3_server: s3.Server, tmp_path: Path
) -> None:
    publish(make(tmp_path / "one", "s1_a", shade=1), open_storage(address))
    old = list_names(address)
    publish(make(tmp_path / "two", "s1_a", "s1_b", shade=2), open_storage(address))
    below = f"copies/{next(name for name in old if name.endswith('.tar'))}"
    for mine in ("notes.tar", below):
        s3_server.client().put_object(**make_key(address, mine), Body=b"mine")
    result = CliRunner().invoke(cli, ["prune", address])
    assert set(result.output.splitlines()[:-1]) == old - {DATASET_NAME}
    assert "3 files that no dataset names" in result.output
    assert "3 files removed" in CliRunner().invoke(cli, ["prune", address, "--delete"]).output
    assert len(list_names(address)) == 6
    assert list(verify(open_storage(address), full=True)) == []


def test_a_damaged_local_shard_is_not_uploaded(address: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "here", "s1_a")
    (shard,) = folder.glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ShardError, match="its manifest says"):
        publish(folder, open_storage(address))


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("kind", ["cut", "stall", "busy", "short", "flip"])
def test_a_file_is_downloaded_despite_a_fault(
    kind: str, proxy: faults.Proxy, address: str, tmp_path: Path
) -> None:
    path, sha256 = make_big_file(tmp_path)
    storage = open_storage(address)
    storage.upload(path, "big", sha256=sha256)
    proxy.faults.append(faults.Fault(kind, "big", at=BIG_BYTES // 2))  # type: ignore[arg-type]
    storage.download("big", tmp_path / "copy", size=BIG_BYTES, sha256=sha256)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    ranges = [request.bytes_range for request in proxy.requests if request.method == "GET"]
    resumed = f"bytes={BIG_BYTES // 2}-"
    assert len(ranges) > 1
    assert ranges[1].startswith(resumed) == (kind in ("cut", "stall")), "resumed at the last byte"


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("kind", ["cut", "stall", "short", "flip"])
def test_a_clip_is_read_despite_a_fault(kind: str, proxy: faults.Proxy, address: str, tmp_path: Path) -> None:
    publish(make(tmp_path / "here", "s1_a", "s1_b"), open_storage(address))
    dataset = open_dataset(open_storage(address))
    proxy.faults.append(faults.Fault(kind, ".tar", at=5))  # type: ignore[arg-type]
    proxy.requests.clear()
    assert read_clip(dataset, "s1_b").frames.max() == 7
    assert proxy.count("GET", ".tar") > 1
    assert all(request.bytes_range for request in proxy.requests), "never the whole shard for one clip"


def test_a_file_is_uploaded_despite_faults(proxy: faults.Proxy, address: str, tmp_path: Path) -> None:
    path, sha256 = make_big_file(tmp_path)
    for kind in ("cut", "busy"):
        proxy.faults.append(faults.Fault(kind, "big", at=BIG_BYTES // 2, method="PUT"))  # type: ignore[arg-type]
    open_storage(address).upload(path, "big", sha256=sha256)
    assert proxy.count("PUT") == 3
    assert open_storage(address).has_file("big", BIG_BYTES, sha256)
    with pytest.raises(ShardError, match="other bytes than were sent"):
        open_storage(address).upload(path, "big", sha256="00" * 32)
    assert open_storage(address).has_file("big", BIG_BYTES, sha256), "a refused upload replaces nothing"


def test_an_object_that_is_altered_twice_is_reported(
    proxy: faults.Proxy, address: str, s3_server: s3.Server, tmp_path: Path
) -> None:
    folder = make(tmp_path / "here", "s1_a")
    publish(folder, open_storage(address))
    folder_copy = download_dataset(address, tmp_path / "first")
    assert list(verify(folder_copy, full=True)) == []
    (shard,) = folder.glob("*.tar")
    client = s3_server.client()
    whole = shard.read_bytes()
    for body, message in (
        (whole[:-1], f"{len(whole) - 1} bytes, expected {len(whole)}"),
        (whole[:-1] + b"x", f"{len(whole)} bytes with sha256 .*, expected {len(whole)} with"),
    ):
        client.put_object(**make_key(address, shard.name), Body=body)
        proxy.requests.clear()
        with pytest.raises(ShardError, match=f"{address}/{shard.name}: {message}"):
            download_dataset(address, tmp_path / "cache")
        assert proxy.count("GET", shard.name) == 2, "read once more, then an error"
        assert shard.name in next(verify(open_storage(address), full=True))
    client.delete_object(**make_key(address, shard.name))
    assert list(verify(open_storage(address), full=False)) == [f"{address}/{shard.name}: not there"]


@pytest.mark.usefixtures("impatient")
def test_an_unreachable_bucket_is_one_line_without_the_secret(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "here", "s1_a")
    for change, message in (
        ({"AWS_SECRET_ACCESS_KEY": s3.SECRET[:-1]}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "AccessDenied.*no credentials were found"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "given up after"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({"AWS_ENDPOINT_URL_S3": "no address"}, "no address"),
    ):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            with pytest.raises(ShardError, match=message) as caught:
                open_dataset(open_storage(address))
            assert "\n" not in str(caught.value)
            assert s3.SECRET[:-1] not in str(caught.value)
    with pytest.raises(ShardError, match="NoSuchBucket"):
        open_dataset(open_storage("s3://no-such-bucket-here/x"))
    with pytest.raises(ShardError, match="names no bucket"):
        open_storage("s3://")
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    bucket._make_client.cache_clear()
    with pytest.raises(ShardError, match=r"install redub\[s3\]"):
        open_storage(address)


def test_credentials_can_come_from_a_profile(
    address: str, s3_server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_server.environment():
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3.KEY}\naws_secret_access_key = {s3.SECRET}\n"
    )
    (tmp_path / "config").write_text(f"[profile lab]\nregion = x\nendpoint_url = {s3_server.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert list_names(address) == set()


def test_a_public_bucket_is_read_without_credentials(
    address: str, s3_server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.client().create_bucket(Bucket=s3.PUBLIC)
    open_address = f"s3://{s3.PUBLIC}/x"
    publish(make(tmp_path / "here", "s1_a"), open_storage(open_address))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert read_shade(open_storage(open_address)) == 7
    with pytest.raises(ShardError, match=r"AccessDenied.*no credentials were found"):
        publish(make(tmp_path / "more", "s1_b"), open_storage(open_address))


def read_shade(storage: Storage) -> int:
    return int(read_clip(open_dataset(storage), "s1_a").frames.max())


def test_a_storage_can_be_forked_pickled_and_shared(address: str, tmp_path: Path) -> None:
    storage = open_storage(address)
    publish(make(tmp_path / "here", "s1_a"), storage)
    assert read_shade(storage) == 7  # its connections are open, and children must not use them
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        future = pool.map_async(read_shade, [storage] * 4)  # pickled
        assert read_shade(storage) == 7
        assert future.get(timeout=GUARD_SECONDS) == [7] * 4
    inherited = context.Process(target=lambda: os._exit(read_shade(storage)))
    inherited.start()
    inherited.join(timeout=GUARD_SECONDS)
    assert inherited.exitcode == 7
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read_shade, [storage] * 8)) == {7}
    assert b"secret" not in pickle.dumps(storage)


def make_shard_urls(address: str, folder: Path, s3_server: s3.Server) -> list[str]:
    """Addresses of a dataset's shards for other tools: local files, and signed URLs."""
    shards = sorted(folder.glob("*.tar"))
    client = s3_server.client()
    signed = [
        client.generate_presigned_url("get_object", Params=make_key(address, shard.name)) for shard in shards
    ]
    return [*map(str, shards), *signed]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_stock_webdataset_reads_what_was_published(
    address: str, s3_server: s3.Server, tmp_path: Path
) -> None:
    import webdataset as wds

    folder = make(tmp_path / "here", "s1_a", "s1_b")
    publish(folder, open_storage(address))
    for url in make_shard_urls(address, folder, s3_server):
        samples = list(wds.WebDataset([url], shardshuffle=False))
        assert [sample["__key__"] for sample in samples] == ["s1_a", "s1_b"]
        assert all(json.loads(sample["json"])["frames"] == 3 for sample in samples)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_hugging_face_datasets_reads_what_was_published(
    address: str, s3_server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets as hf

    folder = make(tmp_path / "here", "s1_a", "s1_b")
    publish(folder, open_storage(address))
    dataset = open_dataset(folder)
    for url in make_shard_urls(address, folder, s3_server):
        rows = hf.load_dataset("webdataset", data_files=[url], split="train", streaming=True)
        # Its decoder would read only the first frame of a blob.
        samples = list(rows.cast_column("frames.webp", hf.Image(decode=False)))
        assert [sample["__key__"] for sample in samples] == list(dataset.clips)
        for sample in samples:
            members = read_members(dataset, sample["__key__"])
            assert sample["frames.webp"]["bytes"] == members["frames"]
            assert sample["json"]["frames"] == 3


def test_a_command_ends_quietly(
    address: str, proxy: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make(tmp_path / "here", "s1_a"), open_storage(address))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-m", "pipeline.main", "explain", address, "s1_a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 frames in train-00000-" in done.stdout


def test_a_build_can_end_in_a_bucket_and_the_commands_read_it_there(
    address: str, proxy: faults.Proxy, s3_server: s3.Server, tmp_path: Path
) -> None:
    make_clip(tmp_path / "raw" / "one.mp4", ClipSpec(seconds=0.6))
    summary = build(tmp_path / "raw", tmp_path / "w", "--out", address, "--endpoint-url", proxy.endpoint)
    assert summary["out"] == address
    dataset = open_dataset(open_storage(address))
    assert summary["digest"] == dataset.manifest["digest"]
    (clip_id,) = dataset.clips
    sheet = tmp_path / "sheet.png"
    proxy.requests.clear()
    for arguments, message in (
        (["verify", address], "no problems (tables"),
        (["explain", address, "one.mp4"], "kept"),
        (["diff", address, str(tmp_path / "w" / "shards")], ""),
        (["preview", address, "-o", str(sheet), "--clip", clip_id], "1 of 1 clips"),
    ):
        result = CliRunner().invoke(cli, [*arguments, "--endpoint-url", proxy.endpoint])
        assert result.exit_code == 0, result.output
        assert message in result.output
    shard_reads = [
        request.bytes_range
        for request in proxy.requests
        if request.method == "GET" and ".tar" in request.path
    ]
    assert len(shard_reads) == 1, "one range for the one clip of the sheet"
    assert shard_reads[0]
