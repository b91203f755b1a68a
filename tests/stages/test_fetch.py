"""Downloads against a real server on loopback that may cut, lie or be down."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages import fetch, weights
from stages.fetch import CREMA_D, RemoteFile, Source
from stages.weights import Weights
from stages.work import StageError

DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()


class Unreliable(BaseHTTPRequestHandler):
    """Serves DATA; the path says what goes wrong."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "busy-once" in self.path and self.asked.count(self.path) == 1:
            self.send_error(503)
            return
        if "absent" in self.path:
            self.send_error(404)
            return
        body = b"<html>not what you think</html>" if "lies" in self.path else DATA
        body = DATA + b"more" if "long" in self.path else body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "cut" in self.path else body)

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


@pytest.fixture
def server() -> Iterator[str]:
    Unreliable.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Unreliable) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


def source(base_url: str, *paths: str) -> Source:
    return Source(base_url, tuple(RemoteFile(path, len(DATA), SHA256) for path in paths))


def test_files_come_whole_and_are_kept_the_second_time(server: str, tmp_path: Path) -> None:
    two = source(server, "a/one.flv", "a/busy-once.flv")
    assert [file.status for file in fetch.fetch(two, tmp_path, "*")] == ["fetched", "fetched"]
    assert (tmp_path / "a" / "one.flv").read_bytes() == DATA
    asked = len(Unreliable.asked)
    assert [file.status for file in fetch.fetch(two, tmp_path, "*")] == ["there", "there"]
    assert len(Unreliable.asked) == asked


@pytest.mark.parametrize("fault", ["lies", "long", "cut", "absent"])
def test_a_wrong_answer_leaves_no_file_and_is_named(fault: str, server: str, tmp_path: Path) -> None:
    (told,) = fetch.fetch(source(server, f"{fault}.flv"), tmp_path, "*")
    assert told.status == "missing"
    assert fault in told.told
    assert list(tmp_path.rglob("*.*")) == []


def test_no_server_is_told_once(tmp_path: Path) -> None:
    found = list(fetch.fetch(source("http://127.0.0.1:9/", "a.flv", "b.flv"), tmp_path, "*"))
    assert [file.status for file in found] == ["missing", "missing"]
    assert "cannot be reached" in found[0].told


def test_a_file_of_other_contents_is_not_overwritten(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.flv").write_bytes(b"mine")
    with pytest.raises(StageError, match="other contents"):
        list(fetch.fetch(source(server, "a.flv"), tmp_path, "*"))
    assert (tmp_path / "a.flv").read_bytes() == b"mine"


def test_only_what_fits_the_pattern_comes(server: str, tmp_path: Path) -> None:
    found = list(fetch.fetch(source(server, "a.flv", "b.flv"), tmp_path, "b*"))
    assert [file.path for file in found] == ["b.flv"]
    with pytest.raises(StageError, match="fits none of the 6 files"):
        list(fetch.fetch(CREMA_D, tmp_path, "1099*"))


def test_the_real_clips_have_the_hashes_that_fetch_expects(crema_d: Path) -> None:
    assert {file.status for file in fetch.fetch(CREMA_D, crema_d, "*")} == {"there"}


@pytest.fixture
def model(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("A_MODEL", raising=False)
    return Weights("a.task", SHA256, server + "a.task", "A_MODEL", "--a-model")


def test_a_model_is_downloaded_once_and_kept(model: Weights) -> None:
    first = weights.find(model)
    assert first.read_bytes() == DATA
    assert weights.find(model) == first
    assert Unreliable.asked == ["/a.task"]


def test_a_damaged_model_in_the_cache_is_fetched_again(model: Weights) -> None:
    weights.find(model).write_bytes(b"damaged")
    assert weights.find(model).read_bytes() == DATA


def test_the_option_comes_before_the_environment_and_both_are_checked(
    model: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.task", tmp_path / "bad.task"
    good.write_bytes(DATA)
    bad.write_bytes(b"another model")
    monkeypatch.setenv("A_MODEL", str(bad))
    assert weights.find(model, str(good)) == good
    with pytest.raises(StageError, match=r"A_MODEL: .*bad.task has sha256"):
        weights.find(model)
    with pytest.raises(StageError, match="--a-model names nowhere, which is no file"):
        weights.find(model, "nowhere")
    assert Unreliable.asked == [], "what was named is taken or refused, never replaced"


def test_a_model_that_cannot_be_had_says_how_to_bring_it(model: Weights) -> None:
    from dataclasses import replace

    away = replace(model, url="http://127.0.0.1:9/a.task")
    with pytest.raises(StageError, match=r"a\.task is not on this machine") as caught:
        weights.find(away)
    assert SHA256 in str(caught.value)
    assert "--a-model or A_MODEL" in str(caught.value)
