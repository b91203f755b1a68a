"""Networks of an evaluation: found on this machine, or downloaded from a real server on loopback."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.engine.outcome import StageError
from stages.media import weights
from stages.media.packages import PackagedFiles
from stages.media.weights import NETWORKS, Weights, WeightsNotFound
from tests.locking import lock_until_told

DATA = bytes(range(256)) * 300
SHA256 = hashlib.sha256(DATA).hexdigest()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tests are silent."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address of its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REDUB_WEIGHTS", raising=False)
    return tmp_path / "cache" / "redub"


@pytest.fixture
def model(server: tuple[Path, str], cache: Path) -> Weights:
    folder, address = server
    (folder / "eye.pth").write_bytes(DATA)
    return Weights("eye.pth", SHA256, address + "eye.pth", title="Eye weights")


def test_a_network_is_found_after_it_was_fetched_and_not_before(model: Weights, cache: Path) -> None:
    with pytest.raises(WeightsNotFound):
        weights.find_local(model)
    assert not cache.exists(), "find_local downloads nothing"
    assert weights.fetch(model) == weights.find_local(model) == cache / "eye.pth"
    assert (cache / "eye.pth").read_bytes() == DATA


def test_a_missing_network_is_reported_with_the_paths_and_its_address(
    model: Weights, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDUB_WEIGHTS", "mine")
    with pytest.raises(WeightsNotFound) as caught:
        weights.find_local(model, tmp_path)
    assert str(caught.value) == (
        f"Eye weights not found at {tmp_path}/eye.pth, mine/eye.pth, {cache}/eye.pth; "
        f"get them from {model.url} (sha256 {SHA256})"
    )


def test_the_named_folder_precedes_the_environments_which_precedes_the_cache(
    model: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [weights.fetch(model)]
    for name in ("environment", "option"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eye.pth").write_bytes(DATA)
    monkeypatch.setenv("REDUB_WEIGHTS", str(tmp_path / "environment"))
    paths += [weights.find_local(model), weights.find_local(model, tmp_path / "option")]
    assert [path.parent.name for path in paths] == ["redub", "environment", "option"]


def test_other_contents_are_an_error_of_one_line(model: Weights, tmp_path: Path) -> None:
    for content in (b"", DATA[:-1], b"<html>404</html>"):
        (tmp_path / "eye.pth").write_bytes(content)
        with pytest.raises(
            StageError, match=r"^Eye weights: .*eye\.pth has sha256 [0-9a-f]{64}, .*$"
        ) as caught:
            weights.find_local(model, tmp_path)
        assert not isinstance(caught.value, WeightsNotFound), "a wrong file is not a missing one"


def test_a_wrong_file_of_the_server_is_not_kept(
    model: Weights, server: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server[0] / "eye.pth").write_bytes(DATA[:1000])
    with pytest.raises(StageError, match=r"download: .* has sha256"):
        weights.fetch(model)
    monkeypatch.setattr(weights, "MAX_BYTES", 1000)
    (server[0] / "eye.pth").write_bytes(DATA)
    with pytest.raises(StageError, match="sends more than 1000 bytes"):
        weights.fetch(model)
    with pytest.raises(StageError, match=f"{SHA256}\\) and say where by --weights or REDUB_WEIGHTS"):
        weights.fetch(replace(model, url="http://127.0.0.1:9/eye.pth"))
    assert list(cache.iterdir()) == []


def test_a_process_says_that_another_one_downloads_the_file_it_waits_for(
    model: Weights, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache.with_name("redub-locks") / "eye.pth.lock"
    path.parent.mkdir(parents=True)
    lock_until_told(path, monkeypatch)
    assert weights.fetch(model) == cache / "eye.pth"
    assert caplog.messages[0] == (
        f"eye.pth: waiting for another process that downloads it; it has locked {path}"
    )


def test_every_network_of_an_evaluation_has_a_hash_and_an_address() -> None:
    assert list(NETWORKS) == ["syncnet", "inception", "alexnet", "lpips"]
    for network in NETWORKS.values():
        assert network.url.startswith("https://") and network.url.endswith(network.name)
        assert len(network.sha256) == 64 and network.title.endswith(" weights")
        # torchvision and pytorch-fid put the first letters of the digest into the name.
        assert network.name[-12:-4] == network.sha256[:8] or network.name in ("syncnet_v2.model", "alex.pth")


def reverse(published: Path, path: Path) -> None:
    """Another form of a file."""
    path.write_bytes(published.read_bytes()[::-1])


@pytest.fixture
def converted(model: Weights) -> Weights:
    """A file that is made of a published one, which is served or in a package."""
    sha256 = hashlib.sha256(DATA[::-1]).hexdigest()
    package = PackagedFiles("redub-made-package==1.0", SHA256, "made_package/{name}")
    return replace(
        model, name="eye.mirror", sha256=sha256, convert=reverse, published_sha256=SHA256, package=package
    )


def test_a_published_file_is_downloaded_and_what_is_made_of_it_is_kept(
    converted: Weights, cache: Path, tmp_path: Path
) -> None:
    assert weights.find(converted) == cache / "eye.mirror"
    assert [path.name for path in cache.iterdir()] == ["eye.mirror"], "and nothing else"
    assert (cache / "eye.mirror").read_bytes() == DATA[::-1]
    away = replace(converted, url="http://127.0.0.1:9/eye.pth")
    assert weights.find(away) == cache / "eye.mirror", "found there by the next run"
    for content in (DATA, DATA[::-1]):  # a path may name either
        (tmp_path / "mine").write_bytes(content)
        assert weights.find(away, str(tmp_path / "mine")).read_bytes() == DATA[::-1]
    (tmp_path / "mine").write_bytes(b"another")
    with pytest.raises(StageError, match=r"holds other values than those of eye.mirror"):
        weights.find(away, str(tmp_path / "mine"))


def test_an_installed_package_is_read_and_not_imported(
    converted: Weights, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(converted, url="http://127.0.0.1:9/eye.pth")
    site = tmp_path / "site"
    info = site / "redub_made_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: redub-made-package\nVersion: 1.0\n")
    (site / "made_package").mkdir()
    (site / "made_package" / "__init__.py").write_text("raise SystemExit('imported')")
    (site / "made_package" / "eye.mirror").write_bytes(DATA)
    monkeypatch.syspath_prepend(site)
    assert weights.find(away).read_bytes() == DATA[::-1]
    (cache / "eye.mirror").unlink()
    (site / "made_package" / "eye.mirror").write_bytes(b"another version")
    with pytest.raises(StageError, match=r"package: redub-made-package==1.0: .* holds other values"):
        weights.find(away)
    assert list(cache.iterdir()) == []
