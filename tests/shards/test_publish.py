"""A dataset that lies elsewhere is brought here once, whole and checked; or one line says why not."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.cache import open_shard_store
from shards.publish import download_dataset, locate_dataset
from shards.reader import open_dataset, read_clip
from shards.schema import ShardError
from shards.storage import open_storage
from shards.verify import verify
from tests import datasets


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, notes what was sent whole, and damages what it is told to."""

    sent: list[str]
    cut: dict[str, int]  # name -> how many times to send half of it

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
        """Whoever asked is gone: it waited for too long on a crowded machine, and will ask again."""


@contextmanager
def served(folder: Path, cut: dict[str, int] | None = None) -> Iterator[tuple[str, list[str]]]:
    """The folder's address on loopback, and what is sent from there."""
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


def shard_of(dataset: Path) -> Path:
    return next(dataset.glob("*.tar"))


def test_a_folder_is_itself(dataset: Path) -> None:
    assert download_dataset(str(dataset)) == dataset


def test_a_dataset_is_brought_once_and_reads_as_the_original(dataset: Path, tmp_path: Path) -> None:
    with served(dataset) as (address, sent):
        folder = download_dataset(address, tmp_path / "cache")
        assert download_dataset(address, tmp_path / "cache") == folder
    assert sent.count("dataset.json") == 2
    assert sent.count(shard_of(dataset).name) == 1, "the second time only the manifest is looked at"
    there, here = open_dataset(dataset), open_dataset(folder)
    assert list(here.clips) == list(there.clips)
    for clip_id in there.clips:
        assert np.array_equal(read_clip(here, clip_id).frames, read_clip(there, clip_id).frames)


@pytest.mark.parametrize("first", ["cached", "at hand"])
def test_a_shard_that_was_brought_in_one_way_has_no_second_copy_for_another(
    first: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = shard_of(dataset).name

    def cached(address: str) -> Path:
        opened = open_dataset(locate_dataset(address))
        with open_shard_store(opened, None, 10**9) as shelf:
            shelf.hold(opened.shards.values())
            return shelf.path(opened.shards[name])

    with served(dataset) as (address, sent):
        before = cached(address) if first == "cached" else download_dataset(address) / name
        after = download_dataset(address) / name if first == "cached" else cached(address)
    assert before.samefile(after) and after.read_bytes() == shard_of(dataset).read_bytes()
    assert sent.count(name) == 1


def test_a_cached_shard_that_was_altered_is_brought_anew(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = shard_of(dataset).name
    with served(dataset) as (address, _):
        opened = open_dataset(locate_dataset(address))
        with open_shard_store(opened, None, 10**9) as shelf:
            shelf.hold(opened.shards.values())
            shelf.path(opened.shards[name]).write_bytes(b"altered")
        assert (download_dataset(address) / name).read_bytes() == shard_of(dataset).read_bytes()


def test_a_rebuilt_dataset_does_not_touch_the_copy_that_is_being_read(dataset: Path, tmp_path: Path) -> None:
    with served(dataset) as (address, _):
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


def test_a_shard_that_comes_cut_is_fetched_once_more(dataset: Path, tmp_path: Path) -> None:
    name = shard_of(dataset).name
    cuts = {name: 1}
    with served(dataset, cuts) as (address, sent):
        folder = download_dataset(address, tmp_path / "cache")
    assert (cuts[name], sent.count(name)) == (0, 1)
    assert (folder / name).read_bytes() == shard_of(dataset).read_bytes()


def test_a_shard_that_stays_cut_is_named_and_leaves_no_dataset(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.remote.DEADLINE_SECONDS", 0.5)
    name = shard_of(dataset).name
    with (
        served(dataset, {name: 99}) as (address, _),
        pytest.raises(ShardError, match=f"{address}/{name}: given up"),
    ):
        download_dataset(address, tmp_path / "cache")
    left = {path.suffix for path in (tmp_path / "cache").rglob("*.*")}
    assert not left & {".tar", ".json", ".partial"}


def test_an_altered_shard_is_named(dataset: Path, tmp_path: Path) -> None:
    shard = shard_of(dataset)
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with (
        served(dataset) as (address, sent),
        pytest.raises(
            ShardError, match=f"{shard.name}: {len(data)} bytes with sha256 .*, expected {len(data)}"
        ),
    ):
        download_dataset(address, tmp_path / "cache")
    assert sent.count(shard.name) == 2
    shard.write_bytes(data + b"more")
    with served(dataset) as (address, _), pytest.raises(ShardError, match=f"bytes, expected {len(data)}"):
        download_dataset(address, tmp_path / "cache")


def test_what_is_no_dataset_is_one_line(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with served(empty) as (address, _), pytest.raises(ShardError, match=r"no dataset\.json here"):
        download_dataset(address, tmp_path / "cache")
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(manifest | {"digest": "0"}))
    with served(dataset) as (address, _), pytest.raises(ShardError, match="digest '0', its shards make"):
        download_dataset(address, tmp_path / "cache")
    with pytest.raises(ShardError, match="nosuch://x: cannot be read"):
        download_dataset("nosuch://x", tmp_path / "cache")
    monkeypatch.setattr("shards.remote.DEADLINE_SECONDS", 0.5)
    with pytest.raises(ShardError, match=r"given up after .* refused"):
        download_dataset(address, tmp_path / "cache")  # nobody is there any more


def test_a_clip_is_read_from_a_server_that_knows_no_ranges(dataset: Path) -> None:
    with served(dataset) as (address, _):
        opened = open_dataset(open_storage(address))
        for clip_id in opened.clips:
            there, here = read_clip(opened, clip_id), read_clip(open_dataset(dataset), clip_id)
            assert np.array_equal(there.frames, here.frames)
        assert list(verify(open_storage(address), full=True)) == []


def test_a_password_in_an_address_is_sent_and_not_shown(dataset: Path) -> None:
    with served(dataset) as (address, _):
        place = open_storage(address.replace("http://", "http://me:hidden@") + "?sig=hidden")
        assert place.size("dataset.json") == (dataset / "dataset.json").stat().st_size
        assert place.size("none") is None
        for act in (lambda: place.read("none", 0, 1), lambda: place.list_names(), lambda: place.delete("x")):
            with pytest.raises(ShardError, match=address) as caught:
                act()
            assert "hidden" not in str(caught.value)
            assert "hidden" not in repr(caught.value.__cause__)
