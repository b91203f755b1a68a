"""A remote dataset is downloaded once, complete and checked, or an error of one line says why not."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import remote
from shards.atomic import WriteError
from shards.cache import open_shard_store
from shards.publish import download_dataset, locate_dataset
from shards.reader import open_dataset, read_clip
from shards.remote import RemoteStorage
from shards.schema import ShardError
from shards.storage import LocalStorage, open_storage, strip_address
from shards.verify import verify
from tests import datasets
from tests.changing import change_folders
from tests.locking import lock_until_told
from tests.model import worlds
from tests.waiting import GUARD_SECONDS


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, lists the files sent complete, and cuts some of them."""

    sent: list[str]
    cut: dict[str, int]  # name -> how many times to send only half of it

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if self.cut.get(name, 0):
            self.cut[name] -= 1
            data = Path(self.directory, name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        super().do_GET()
        self.sent.append(name)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # closing waits for what is being sent

    def handle_error(self, *_: Any) -> None:
        """The client has disconnected: on a slow machine it timed out, and will send the request again."""


@contextmanager
def serve(folder: Path, cut: dict[str, int] | None = None) -> Iterator[tuple[str, list[str]]]:
    """The folder's address on loopback, and the files sent from there."""
    kind = type("Handler", (Handler,), {"sent": [], "cut": cut or {}})
    server = Server(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", kind.sent  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            f"s1_clip{n}",
            rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8),
            box=(4, 8, 12, 15),
            mels=np.zeros((6, 8), np.float32),
        )
        for n in range(2)
    ]
    return datasets.write(tmp_path / "there", clips)


def find_shard(dataset: Path) -> Path:
    return next(dataset.glob("*.tar"))


def test_shards_are_downloaded_several_at_a_time_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = worlds.make_dataset(tmp_path / "shards", per_shard=1)
    total = sum(path.stat().st_size for path in source.glob("*.tar"))
    together = threading.Barrier(4, timeout=GUARD_SECONDS)  # breaks unless four are downloaded at once
    download, counts = RemoteStorage.download, []

    def download_together(self: RemoteStorage, name: str, path: Path, **checks: Any) -> None:
        together.wait()
        download(self, name, path, **checks)

    monkeypatch.setattr(RemoteStorage, "download", download_together)
    with serve(source) as (address, _):
        with pytest.raises(ShardError, match=r"a copy of it takes .* GB, the limit is 1e-09 GB; allow more"):
            download_dataset(address, tmp_path / "cache", limit_bytes=1)
        progress = lambda *numbers: counts.append(numbers)  # noqa: E731
        folder = download_dataset(address, tmp_path / "cache", limit_bytes=total, progress=progress)
    assert list(verify(open_storage(folder), full=False)) == []
    assert len(counts) == 4 and counts[-1] == ("downloading", total, total)


def test_a_process_says_that_another_one_downloads_what_it_waits_for(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(dataset) as (address, _):
        folder = download_dataset(address, tmp_path / "cache")
        lock_until_told(folder / ".lock", monkeypatch)
        assert download_dataset(address, tmp_path / "cache") == folder
    assert caplog.messages == [f"{address}: waiting for another process that downloads it to {folder}"]


def test_a_folder_needs_no_copy(dataset: Path) -> None:
    assert download_dataset(str(dataset)) == dataset


def test_a_dataset_is_downloaded_once_and_reads_as_the_original(dataset: Path, tmp_path: Path) -> None:
    with serve(dataset) as (address, sent):
        folder = download_dataset(address, tmp_path / "cache")
        assert download_dataset(address, tmp_path / "cache") == folder
    assert sent.count("dataset.json") == 2
    assert sent.count(find_shard(dataset).name) == 1, "the second time only the manifest is read"
    there, here = open_dataset(dataset), open_dataset(folder)
    assert list(here.clips) == list(there.clips)
    for clip_id in there.clips:
        assert np.array_equal(read_clip(here, clip_id).frames, read_clip(there, clip_id).frames)


@pytest.mark.parametrize("first", ["cached", "copied"])
def test_a_shard_in_the_cache_and_in_a_copy_of_the_dataset_is_one_file(
    first: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = find_shard(dataset).name

    def cache_shard(address: str) -> Path:
        remote_dataset = open_dataset(locate_dataset(address))
        with open_shard_store(remote_dataset, None, 10**9) as store:
            store.hold(remote_dataset.shards.values())
            return store.path(remote_dataset.shards[name])

    with serve(dataset) as (address, sent):
        before = cache_shard(address) if first == "cached" else download_dataset(address) / name
        after = download_dataset(address) / name if first == "cached" else cache_shard(address)
    assert before.samefile(after) and after.read_bytes() == find_shard(dataset).read_bytes()
    assert sent.count(name) == 1


def test_an_altered_cached_shard_is_downloaded_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = find_shard(dataset).name
    with serve(dataset) as (address, _):
        remote_dataset = open_dataset(locate_dataset(address))
        with open_shard_store(remote_dataset, None, 10**9) as store:
            store.hold(remote_dataset.shards.values())
            store.path(remote_dataset.shards[name]).write_bytes(b"altered")
        assert (download_dataset(address) / name).read_bytes() == find_shard(dataset).read_bytes()


def test_a_rebuilt_dataset_does_not_change_the_copy_that_is_being_read(dataset: Path, tmp_path: Path) -> None:
    with serve(dataset) as (address, _):
        old = download_dataset(address, tmp_path / "cache")
        before = {path.name: path.read_bytes() for path in old.iterdir()}
        shutil.rmtree(dataset)
        frames = np.ones((2, 16, 16, 3), np.uint8)
        mels = np.zeros((4, 8), np.float32)
        datasets.write(dataset, [datasets.pack("s1_new", frames, box=(4, 8, 12, 15), mels=mels)])
        new = download_dataset(address, tmp_path / "cache")
    assert new != old
    assert list(open_dataset(new).clips) == ["s1_new"]
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_a_shard_whose_transfer_breaks_off_is_requested_again(dataset: Path, tmp_path: Path) -> None:
    name = find_shard(dataset).name
    cuts = {name: 1}
    with serve(dataset, cuts) as (address, sent):
        folder = download_dataset(address, tmp_path / "cache")
    assert (cuts[name], sent.count(name)) == (0, 1)
    assert (folder / name).read_bytes() == find_shard(dataset).read_bytes()


def test_a_shard_that_always_breaks_off_is_reported_and_leaves_no_dataset(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, deadline_seconds=0.5))
    name = find_shard(dataset).name
    with (
        serve(dataset, {name: 99}) as (address, _),
        pytest.raises(ShardError, match=f"{address}/{name}: given up"),
    ):
        download_dataset(address, tmp_path / "cache")
    suffixes = {path.suffix for path in (tmp_path / "cache").rglob("*.*")}
    assert not suffixes & {".tar", ".json", ".partial"}


def test_an_altered_shard_is_reported(dataset: Path, tmp_path: Path) -> None:
    shard = find_shard(dataset)
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with (
        serve(dataset) as (address, sent),
        pytest.raises(
            ShardError, match=f"{shard.name}: {len(data)} bytes with sha256 .*, expected {len(data)}"
        ),
    ):
        download_dataset(address, tmp_path / "cache")
    assert sent.count(shard.name) == 2
    shard.write_bytes(data + b"more")
    with serve(dataset) as (address, _), pytest.raises(ShardError, match=f"bytes, expected {len(data)}"):
        download_dataset(address, tmp_path / "cache")


def test_an_address_without_a_dataset_is_an_error_of_one_line(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with serve(empty) as (address, _), pytest.raises(ShardError, match=r"no dataset\.json here"):
        download_dataset(address, tmp_path / "cache")
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    with serve(dataset) as (address, _), pytest.raises(ShardError, match=r"digest .0{64}., its shards make"):
        download_dataset(address, tmp_path / "cache")
    with pytest.raises(ShardError, match="nosuch://x: cannot be read"):
        download_dataset("nosuch://x", tmp_path / "cache")
    monkeypatch.setattr(remote, "RETRY_POLICY", replace(remote.RETRY_POLICY, deadline_seconds=0.5))
    with pytest.raises(ShardError, match=r"given up after .* refused"):
        download_dataset(address, tmp_path / "cache")  # the server is gone


def test_a_clip_is_read_from_a_server_without_ranges(dataset: Path) -> None:
    with serve(dataset) as (address, _):
        remote_dataset = open_dataset(open_storage(address))
        for clip_id in remote_dataset.clips:
            there, here = read_clip(remote_dataset, clip_id), read_clip(open_dataset(dataset), clip_id)
            assert np.array_equal(there.frames, here.frames)
        assert list(verify(open_storage(address), full=True)) == []


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("https://me:hidden@host:8/a/b?sig=hidden#hidden", "https://host:8/a/b"),
        ("HTTPS://host?sig=hidden@hidden/", "https://host"),
        ("ftp://me:hidden@host/a", "ftp://host/a"),
        ("http://[x:hidden@host/a", "http://host/a"),
        ("s3://bucket/a?b#c@d", "s3://bucket/a?b#c@d"),
        ("data/a@b?c", "data/a@b?c"),
    ],
)
def test_an_address_is_written_without_what_opens_it(address: str, text: str) -> None:
    assert strip_address(address) == text


@pytest.mark.parametrize(
    "address", ["ftp://me:hidden@host/a", "http://me:hidden@[x/", "nosuch://x?sig=hidden"]
)
def test_an_address_that_cannot_be_read_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ShardError, match=r"address|cannot be read") as caught:
        open_storage(address)
    assert "hidden" not in str(caught.value)


def test_a_password_in_an_address_is_sent_and_not_printed(dataset: Path) -> None:
    with serve(dataset) as (address, _):
        storage = open_storage(address.replace("http://", "http://me:hidden@") + "?sig=hidden")
        assert storage.size("dataset.json") == (dataset / "dataset.json").stat().st_size
        assert storage.size("none") is None
        for act in (
            lambda: storage.read("none", 0, 1),
            lambda: list(storage.walk()),
            lambda: storage.delete("x"),
        ):
            with pytest.raises(ShardError, match=address) as caught:
                act()
            assert "hidden" not in str(caught.value)
            assert "hidden" not in repr(caught.value.__cause__)


def test_a_copy_that_cannot_be_written_does_not_blame_the_file_that_is_read(tmp_path: Path) -> None:
    source, target = LocalStorage(tmp_path), tmp_path / "file" / "copy"
    for name in ("a", "file"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(WriteError) as caught:
        source.download("a", target)
    assert caught.value.filename == str(target.parent)
    with pytest.raises(ShardError, match="/b: cannot be read"):
        source.download("b", tmp_path / "copy")


def test_a_folder_is_listed_while_other_processes_change_it(tmp_path: Path) -> None:
    (tmp_path / "stays").write_bytes(b"12")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with change_folders(tmp_path / "others"):
        for _ in range(200):
            files = {file.name: file.bytes for file in LocalStorage(tmp_path).walk()}
            assert files.pop("stays") == 2 and set(files.values()) <= {0}
