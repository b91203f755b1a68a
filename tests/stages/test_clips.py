from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import pytest

from pipeline import build
from pipeline import params as pipeline_params
from shards.ledger import DROPPED, OK, build_ledger, read_ledger
from shards.reader import open_dataset
from shards.table import Row
from stages import clips, corpora, synth
from stages.clips import ClipsParams
from stages.corpora import crema_d as crema_d_corpus
from stages.corpora import grid as grid_corpus
from stages.corpora.corpus import Identity
from stages.engine import sandbox
from stages.engine.outcome import StageError
from stages.engine.sandbox import LimitParams
from stages.engine.stage import Context, Report, Work
from stages.synth import ClipSpec
from tests.waiting import GUARD_SECONDS

CONTEXT = Context(limits=LimitParams(deadline_seconds=20.0))
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 123456\n"
)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three whole clips to spoil: a.mp4, b.flv, c.mpg."""
    folder = tmp_path_factory.mktemp("good")
    small = {"seconds": 1.0, "size": (240, 192)}
    synth.make_clip(folder / "a.mp4", ClipSpec(speaker=1, **small))
    synth.make_clip(folder / "b.flv", ClipSpec(speaker=2, fps="29.97", **small))
    synth.make_clip(folder / "c.mpg", ClipSpec(speaker=3, **small))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _no_child_is_left() -> Iterator[None]:
    """The sandbox keeps a warm child for the next clip; here there is none."""
    yield
    while not sandbox._idle.empty():
        sandbox._idle.get_nowait().kill()


@pytest.fixture(autouse=True)
def _raw_is_never_written_to(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does with its raw folder happens before the stage runs; the stage changes nothing."""
    yield
    before = tmp_path / "before.json"
    if before.exists():
        assert json.loads(before.read_text()) == listing(tmp_path / "raw")


def listing(raw: Path) -> list[Any]:
    """Names, modes, times, link targets and contents of all that lies in a folder."""
    found: list[Any] = []
    for path in sorted([raw, *raw.rglob("*")], key=os.fsencode):
        status = path.lstat()
        told: str | None = None
        if stat.S_ISLNK(status.st_mode):
            told = os.fspath(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            told = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append([os.fsencode(path).hex(), status.st_mode, status.st_mtime_ns, status.st_size, told])
    return found


def run_on(tmp_path: Path, corpus: str = "folder", raw: Path | None = None, **params: Any) -> Report:
    """The stage on tmp_path/raw."""
    if raw is None:
        (tmp_path / "before.json").write_text(json.dumps(listing(tmp_path / "raw")))
    return clips.run(work_in(tmp_path, corpus, raw), (), ClipsParams(**params), CONTEXT)


def work_in(tmp_path: Path, corpus: str = "folder", raw: Path | None = None) -> Work:
    root = tmp_path / "work"
    return Work(corpus, raw or tmp_path / "raw", root, root / "shards", root / ".cache")


def rows_in(tmp_path: Path) -> dict[str, Row]:
    rows = read_ledger(work_in(tmp_path).ledger)
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "a file has one row"
    return by_path


def one_row(tmp_path: Path, **params: Any) -> Row:
    run_on(tmp_path, **params)
    [row] = rows_in(tmp_path).values()
    return row


def put(source: Path, target: Path, share: float = 1.0) -> Path:
    """Copy a file, or the first part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def mux_sound(out: av.container.OutputContainer, audio: av.AudioStream, sound: np.ndarray) -> None:
    """Encode mono sound at 44.1 kHz to the end of its track."""
    for at in range(0, len(sound), 1024):
        part = np.ascontiguousarray(sound[None, at : at + 1024], dtype=np.float32)
        heard = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        heard.sample_rate, heard.pts, heard.time_base = 44_100, at, Fraction(1, 44_100)
        out.mux(audio.encode(heard))
    out.mux(audio.encode(None))


def write_media(path: Path, *, picture: bool = True, sound: np.ndarray | None = None) -> Path:
    """A second of grey noise, with or without picture, and a sound (n,) at 44.1 kHz or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25) if picture else None
        audio = out.add_stream("aac", rate=44_100, layout="mono") if sound is not None else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 160, 128, "yuv420p"
            for k in range(25):
                pixels = rng.integers(90, 130, (128, 160, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        if audio is not None and sound is not None:
            mux_sound(out, audio, sound)
    return path


TONE = 0.3 * np.sin(2 * np.pi * 220 * np.arange(44_100) / 44_100)


def spoiled_corpus(raw: Path, good: Path, outside: Path) -> dict[str, str]:
    """Fill ``raw`` with two good clips and one of every kind of trouble: path -> code ("ok" for good)."""
    codes = {}

    def add(name: str, code: str) -> Path:
        codes[name] = code
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    put(good / "a.mp4", add("one/good.mp4", "ok"))
    put(good / "b.flv", add("two/good.flv", "ok"))
    add("one/empty.mp4", "empty").write_bytes(b"")
    add("one/pointer.flv", "lfs_pointer").write_bytes(LFS_POINTER)
    put(good / "b.flv", add("cut/60.flv", "truncated"), 0.60)
    put(good / "b.flv", add("cut/95.flv", "truncated"), 0.90)
    put(good / "a.mp4", add("cut/no-index.mp4", "not_media"), 0.60)  # its index stands at its end
    add("one/words.mp4", "not_media").write_text("This is a film about nothing.\n" * 200)
    add("one/zeros.mp4", "not_media").write_bytes(bytes(10_000))
    add("lists/concat.mp4", "not_media").write_text(f"ffconcat version 1.0\nfile '{raw}/one/good.mp4'\n")
    add("lists/hls.mp4", "not_media").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{raw}/one/good.mp4\n#EXT-X-ENDLIST\n"
    )
    write_media(add("streams/mute.mp4", "no_audio"), sound=None)
    write_media(add("streams/blind.mp4", "no_video"), picture=False, sound=TONE)
    add("links/broken.mp4", "link").symlink_to("nowhere.mp4")
    add("links/inside.mp4", "link").symlink_to("../one/good.mp4")
    add("links/outside.mp4", "link").symlink_to(outside)
    add("links/folder.mp4", "link").symlink_to("../one", target_is_directory=True)
    os.mkfifo(add("one/pipe.mp4", "not_regular"))
    put(good / "b.flv", add("two/good.mkv", "duplicate"))  # two_good is taken by two/good.flv
    return codes


SIDE_CARS = (
    "one/good.align", "labels.csv", "README", "notes.txt", "one/good.truth.json", ".DS_Store",
    ".gitattributes", "sub/.gitignore", ".git/HEAD", ".git/lfs/objects/aa/film.mp4", "._good.mp4",
    "Thumbs.db",
)  # fmt: skip


def add_side_cars(raw: Path) -> None:
    for name in SIDE_CARS:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"not a clip")


def test_every_file_found_has_one_row_with_its_code_and_a_reason(tmp_path: Path, good: Path) -> None:
    outside = put(good / "c.mpg", tmp_path / "elsewhere" / "c.mpg")
    codes = spoiled_corpus(tmp_path / "raw", good, outside)
    add_side_cars(tmp_path / "raw")
    report = run_on(tmp_path)
    rows = rows_in(tmp_path)
    assert {path: row["code"] or row["status"] for path, row in rows.items()} == codes
    for path, row in rows.items():
        if codes[path] == "ok":
            assert row["reason"] == "" and row["frames"] in (25, 26) and len(row["sha256"]) == 64
        else:
            assert row["status"] == DROPPED and len(row["reason"]) > 10, path
    assert report.clips == len(codes) and report.n_usable == 2 and report.frames == 51
    assert report.counts == {"ok": 2, **{c: n for c, n in Counter(codes.values()).items() if c != "ok"}}


def test_reasons_name_what_was_found(tmp_path: Path, good: Path) -> None:
    outside = put(good / "c.mpg", tmp_path / "elsewhere" / "c.mpg")
    spoiled_corpus(tmp_path / "raw", good, outside)
    run_on(tmp_path)
    reasons = {path: row["reason"] for path, row in rows_in(tmp_path).items()}
    assert "0 bytes" in reasons["one/empty.mp4"]
    assert "git lfs pull" in reasons["one/pointer.flv"]
    assert "lacks 0.4" in reasons["cut/60.flv"] and "its header declares" in reasons["cut/60.flv"]
    assert "'nowhere.mp4'" in reasons["links/broken.mp4"]
    assert "'../one/good.mp4'" in reasons["links/inside.mp4"]
    assert str(outside) in reasons["links/outside.mp4"] and "follow_links" in reasons["links/outside.mp4"]
    assert "folder" in reasons["links/folder.mp4"]
    assert "'two_good'" in reasons["two/good.mkv"] and "'two/good.flv'" in reasons["two/good.mkv"]


def test_links_out_of_the_raw_folder_are_clips_where_that_is_asked_for(tmp_path: Path, good: Path) -> None:
    outside = put(good / "c.mpg", tmp_path / "elsewhere" / "c.mpg")
    codes = spoiled_corpus(tmp_path / "raw", good, outside)
    run_on(tmp_path, follow_links=True)
    found = {path: row["code"] or row["status"] for path, row in rows_in(tmp_path).items()}
    assert found == codes | {"links/outside.mp4": "ok"}


def test_a_link_into_a_folder_that_is_skipped_has_no_other_row(tmp_path: Path, good: Path) -> None:
    """As git-annex and DVC keep files: the clip is a link to `.git/annex/objects/...`."""
    raw = tmp_path / "raw"
    put(good / "a.mp4", raw / ".git" / "annex" / "objects" / "a.mp4")
    (raw / "a.mp4").symlink_to(".git/annex/objects/a.mp4")
    row = one_row(tmp_path)
    assert row["code"] == "link" and "own row" not in row["reason"] and "follow_links" in row["reason"]
    assert one_row(tmp_path, follow_links=True)["status"] == OK


def test_a_playlist_does_not_make_us_call_anybody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/film.mp4"
        raw = tmp_path / "raw"
        raw.mkdir()
        (raw / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{address}\n")
        (raw / "b.mp4").write_text(f"ffconcat version 1.0\nfile '{address}'\n")
        run_on(tmp_path)
        assert {row["code"] for row in rows_in(tmp_path).values()} == {"not_media"}
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name",
    [
        "with some spaces.mp4", "it's \"quoted\".mp4", "schön-日本-🎬.mp4", "-rf.mp4", "x" * 200 + ".mp4",
        "100%d.mp4", "http:clip.mp4", "new\nline.mp4", "a.b.c.mp4", "no suffix", "ÜPPER.MP4",
        "$(echo no).mp4",
    ],
)  # fmt: skip
def test_odd_names_are_clips_with_a_safe_id(tmp_path: Path, good: Path, name: str) -> None:
    put(good / "a.mp4", tmp_path / "raw" / name)
    row = one_row(tmp_path)
    assert (row["path"], row["status"], row["reason"]) == (name, OK, "")
    assert 0 < len(row["clip_id"]) <= 140
    assert not set(row["clip_id"]) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.parametrize("corpus", ["folder", "grid", "crema-d"])
def test_a_name_that_is_not_utf_8_costs_its_own_file(tmp_path: Path, good: Path, corpus: str) -> None:
    raw = tmp_path / "raw"
    put(good / "a.mp4", raw / "ok.mp4")
    shutil.copy(good / "a.mp4", os.fsencode(raw) + b"/\xff\xfe.mp4")
    run_on(tmp_path, corpus)
    rows = rows_in(tmp_path)
    assert rows["\\udcff\\udcfe.mp4"]["code"] == "bad_name"
    assert rows["\\udcff\\udcfe.mp4"]["reason"] == "its name is not UTF-8"
    assert len(rows) == 2


# --- a raw folder as computers leave it ---------------------------------------------------------------


def test_what_computers_leave_behind_has_rows_and_is_no_clip(tmp_path: Path, good: Path) -> None:
    raw = tmp_path / "raw"
    put(good / "a.mp4", raw / "one" / "a.mp4")
    for name in (".Trash-1000/files/a.mp4", ".Trash-1000/info/a", "one/$RECYCLE.BIN/S-1-5/$R1.mp4",
                 "lost+found/#12/x.mp4", "x.mp4.download/x.mp4", "one/.a.mp4.Xy12Zq", "one/b.mp4.part",
                 "one/c.mp4.crdownload", "one/a.mp4~", "one/a.jpg.tmp", "takes/d.mp4",
                 "e-raw.mp4"):  # fmt: skip
        put(good / "a.mp4", raw / name)
    (raw / "@eaDir").mkdir()
    put(good / "a.mp4", raw / ".git" / "a.mp4")
    put(good / "a.mp4", raw / ".DS_Store")
    report = run_on(tmp_path, exclude=["takes", "*-raw.mp4"])
    rows = rows_in(tmp_path)
    assert {path: row["code"] for path, row in rows.items()} == {
        "one/a.mp4": "", ".Trash-1000/": "trash", "one/$RECYCLE.BIN/": "trash", "lost+found/": "trash",
        "@eaDir/": "trash", "x.mp4.download/": "partial", "one/.a.mp4.Xy12Zq": "partial",
        "one/b.mp4.part": "partial", "one/c.mp4.crdownload": "partial", "one/a.mp4~": "partial",
        "one/a.jpg.tmp": "partial", "takes/": "excluded", "e-raw.mp4": "excluded",
    }  # fmt: skip
    assert "clips.exclude 'takes'" in rows["takes/"]["reason"]
    assert all(len(row["reason"]) > 10 for row in rows.values() if row["code"])
    assert report.n_usable == 1 and report.clips_computed == 1, "the others are not even opened"
    assert rows["one/a.mp4"]["notes"] == []


def test_what_is_left_out_is_no_lost_clip(tmp_path: Path, good: Path) -> None:
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4")
    for k in range(9):
        put(good / "a.mp4", tmp_path / "raw" / f"{k}.mp4.part")
    settings = pipeline_params.Params(limits=LimitParams(max_drop_fraction=0.0))
    assert build._check_drops(run_on(tmp_path), settings) == ""
    (tmp_path / "raw" / "b.mp4").touch()
    problem = build._check_drops(run_on(tmp_path), settings)
    assert problem.startswith("clips: 1 of 2 clips are lost (50%)")


def test_a_link_to_what_is_left_out_says_so(tmp_path: Path, good: Path) -> None:
    put(good / "a.mp4", tmp_path / "raw" / ".Trash-0" / "files" / "a.mp4")
    (tmp_path / "raw" / "a.mp4").symlink_to(".Trash-0/files/a.mp4")
    run_on(tmp_path, follow_links=True)
    rows = rows_in(tmp_path)
    assert rows["a.mp4"]["reason"] == "is a symbolic link to '.Trash-0/files/a.mp4', which is left out"


def test_a_folder_that_cannot_be_listed_is_a_row_and_no_stop(tmp_path: Path, good: Path) -> None:
    """A path longer than the system takes stops even root."""
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4")
    handle = os.open(tmp_path / "raw", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=handle)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    clips.run(work_in(tmp_path), (), ClipsParams(), CONTEXT)
    rows = rows_in(tmp_path)
    assert rows.pop("a.mp4")["status"] == OK
    [(path, row)] = rows.items()
    assert path.endswith("d/") and row["code"] == "unreadable" and row["clip_id"] == path
    assert row["reason"] == "is a folder that cannot be listed (File name too long)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_a_row_and_no_stop(tmp_path: Path, good: Path) -> None:
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4")
    for name, mode in (("closed", 0), ("listable", 0o444)):
        put(good / "a.mp4", tmp_path / "raw" / name / "b.mp4")
        (tmp_path / "raw" / name / "deep").mkdir()
        (tmp_path / "raw" / name).chmod(mode)
    try:
        clips.run(work_in(tmp_path), (), ClipsParams(), CONTEXT)
    finally:
        for name in ("closed", "listable"):
            (tmp_path / "raw" / name).chmod(0o755)
    codes = {path: row["code"] for path, row in rows_in(tmp_path).items()}
    assert codes == {"a.mp4": "", "closed/": "unreadable", "listable/b.mp4": "unreadable",
                     "listable/deep/": "unreadable"}  # fmt: skip


# --- files with the same bytes ------------------------------------------------------------------------


def test_copies_of_a_file_are_noted_or_dropped(tmp_path: Path, good: Path) -> None:
    for name in ("a/x.mp4", "a b/x.mp4", "c.mp4", "broken/1.mp4", "broken/2.mp4"):
        put(good / "a.mp4", tmp_path / "raw" / name, 0.5 if "broken" in name else 1)
    put(good / "b.flv", tmp_path / "raw" / "b.flv")
    run_on(tmp_path)
    rows = rows_in(tmp_path)
    assert {path: row["notes"] for path, row in rows.items() if row["status"] == OK} == {
        "a/x.mp4": [], "b.flv": [],
        "a b/x.mp4": ["same bytes as a/x.mp4"], "c.mp4": ["same bytes as a/x.mp4"],
    }  # fmt: skip
    assert all(row["notes"] == [] for path, row in rows.items() if "broken" in path), "no clips anyway"
    report = run_on(tmp_path, duplicates="drop")
    rows = rows_in(tmp_path)
    assert {path for path, row in rows.items() if row["status"] == OK} == {"a/x.mp4", "b.flv"}
    assert rows["c.mp4"]["code"] == "duplicate"
    assert rows["c.mp4"]["reason"] == "has the same bytes as 'a/x.mp4'"
    assert report.clips_computed == 0, "the new parameters change no probe"


def test_a_copy_whose_first_has_another_s_id_is_compared_with_the_one_that_is_used(
    tmp_path: Path, good: Path
) -> None:
    for name in ("a/s1/bbaf2n.mpg", "b/s1/bbaf2n.mpg", "c/s1/lbax4n.mpg"):
        put(good / "c.mpg", tmp_path / "raw" / name)
    run_on(tmp_path, "grid")
    rows = rows_in(tmp_path)
    assert rows["b/s1/bbaf2n.mpg"]["reason"].startswith("would be clip")
    assert rows["c/s1/lbax4n.mpg"]["notes"][-1] == "same bytes as a/s1/bbaf2n.mpg"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path, good: Path) -> None:
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4").chmod(0)
    work = work_in(tmp_path)
    clips.run(work, (), ClipsParams(), CONTEXT)
    [row] = read_ledger(work.ledger)
    assert (row["code"], row["reason"]) == ("unreadable", "cannot be read (Permission denied)")


@pytest.mark.parametrize(
    ("corpus", "name", "words"),
    [
        ("grid", "s1/notasentence.mpg", "GRID sentence like 'bbaf2n'"),
        ("grid", "s1/bbaw2n.mpg", "GRID sentence"),  # there is no letter w
        ("crema-d", "VideoFlash/1001_DFA_ANG.flv", "'1001_DFA_ANG_XX'"),
        ("crema-d", "VideoFlash/1001_DFA_ANG_XX copy.flv", "'1001_DFA_ANG_XX copy.flv'"),
    ],
)
def test_a_name_that_is_not_the_corpus_s_is_dropped_by_name(
    tmp_path: Path, good: Path, corpus: str, name: str, words: str
) -> None:
    put(good / "a.mp4", tmp_path / "raw" / name)
    run_on(tmp_path, corpus)
    [row] = rows_in(tmp_path).values()
    assert row["code"] == "bad_name" and words in row["reason"]
    assert row["clip_id"] == name and row["frames"] == 25


@pytest.mark.parametrize(
    ("places", "raw_name"),
    [(("s1/bbaf2n.mpg", "s2/lbax4n.mpg"), "raw"), (("deep/er/s1/bbaf2n.mpg", "s2/video/lbax4n.mpg"), "raw")],
)
def test_grid_clips_are_known_at_any_depth(
    tmp_path: Path, good: Path, places: Sequence[str], raw_name: str
) -> None:
    for place in places:
        put(good / "c.mpg", tmp_path / "raw" / place)
    run_on(tmp_path, "grid")
    rows = rows_in(tmp_path).values()
    assert {row["clip_id"] for row in rows if row["status"] == OK} == {"s1_bbaf2n", "s2_lbax4n"}
    assert {row["speaker"] for row in rows} == {"s1", "s2"}
    assert all(row["notes"][0] == "25 frames, grid clips have 75" for row in rows)


def test_a_speaker_s_folder_may_be_the_raw_folder_itself(tmp_path: Path, good: Path) -> None:
    nested, flat = tmp_path / "raw", tmp_path / "raw" / "s1"
    put(good / "c.mpg", flat / "bbaf2n.mpg")
    run_on(tmp_path, "grid", raw=flat)
    [row] = rows_in(tmp_path).values()
    run_on(tmp_path, "grid", raw=nested)
    [same] = rows_in(tmp_path).values()
    assert (row["clip_id"], row["speaker"], row["split"]) == (same["clip_id"], same["speaker"], same["split"])
    assert row["clip_id"] == "s1_bbaf2n"
    assert grid_corpus.identify(PurePosixPath("bbaf2n.mpg"), "videos").speaker == "s0"


def test_of_two_files_that_give_one_id_the_first_usable_one_is_kept(tmp_path: Path, good: Path) -> None:
    raw = tmp_path / "raw"
    put(good / "c.mpg", raw / "a" / "s1" / "bbaf2n.mpg", 0.001)
    put(good / "c.mpg", raw / "b" / "s1" / "bbaf2n.mpg")
    put(good / "c.mpg", raw / "c" / "s1" / "BBAF2N.MPG")
    run_on(tmp_path, "grid")
    codes = [row["code"] for row in rows_in(tmp_path).values()]
    assert codes[0] not in ("", "duplicate") and codes[1:] == ["", "duplicate"]


def test_files_that_give_one_id_are_told_apart_in_the_order_of_their_paths() -> None:
    paths = ["a b/x", "a/x", "a!/x", "a/x y", "a/x/z", "b", "é/x"]  # as text "a b/x" is before "a/x"
    rows = build_ledger({"path": path, "clip_id": "same", "status": OK, "notes": []} for path in paths)
    marked = list(clips.mark_duplicates(rows, ClipsParams()))
    assert [row["path"] for row in marked] == [str(path) for path in sorted(map(PurePosixPath, paths))]
    assert [row["code"] for row in marked] == [None] + ["duplicate"] * 6


def test_the_ten_test_actors_of_crema_d_are_the_test_split() -> None:
    split = {}
    for actor in range(1001, 1092):
        identity = crema_d_corpus.identify(PurePosixPath(f"{actor}_DFA_ANG_XX.flv"), "raw")
        split[actor] = crema_d_corpus.choose_split(identity, PurePosixPath("any"), 0.05)
    test = [actor for actor, name in split.items() if name == "test"]
    assert test == [1015, 1020, 1021, 1030, 1033, 1052, 1062, 1081, 1082, 1089]
    assert set(split.values()) == {"train", "test"}


def test_grid_s_test_share_is_a_twentieth_and_a_clip_s_split_is_its_own() -> None:
    sentences = [
        f"{a}{b}{c}{d}{e}{f}"
        for a in "blps" for b in "bgrw" for c in "abiw"
        for d in "abcdefghij" for e in "z123456789" for f in "anps"
    ]  # fmt: skip
    path = PurePosixPath("s1/any.mpg")
    identities = [grid_corpus.identify(path.with_stem(name), "raw") for name in sentences[:20_000]]
    splits = [grid_corpus.choose_split(identity, path, 0.05) for identity in identities]
    share = splits.count("test") / len(splits)
    assert share == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / len(splits)))
    assert [grid_corpus.choose_split(identity, path, 0.05) for identity in identities[::-1]] == splits[::-1]
    more = [grid_corpus.choose_split(identity, path, 0.1) for identity in identities]
    assert all(after == "test" for before, after in zip(splits, more, strict=True) if before == "test")


def test_the_corpora_s_own_list_of_bad_clips_is_told_and_decides_nothing(tmp_path: Path, good: Path) -> None:
    put(good / "b.flv", tmp_path / "raw" / "1076_MTI_NEU_XX.flv")
    run_on(tmp_path, "crema-d")
    [row] = rows_in(tmp_path).values()
    assert (row["expected"], row["status"]) == ("very short, no audio", OK)


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"min_seconds": 1.5}, "too_short", "lasts 1.00 s, expected 1.5 to"),
        ({"max_seconds": {"folder": 0.5}}, "too_long", "lasts 1.00 s, expected 0.4 to 0.5 s"),
        ({"max_pixels": 1000}, "too_large", "240x192"),
    ],
)
def test_a_clip_beyond_its_bounds_is_dropped_with_both_numbers(
    tmp_path: Path, good: Path, params: dict[str, Any], code: str, words: str
) -> None:
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4")
    row = one_row(tmp_path, **params)
    assert row["code"] == code and words in row["reason"]


def test_sound_that_ends_long_before_the_picture_is_a_mismatch(tmp_path: Path) -> None:
    write_media(tmp_path / "raw" / "a.mp4", sound=TONE[:8192])
    row = one_row(tmp_path)
    assert row["code"] == "av_mismatch" and "ends at 1.00 s" in row["reason"]
    assert row["audio_seconds"] < 0.25  # what was measured is in the ledger


def test_a_second_run_opens_nothing_and_writes_the_same_bytes(tmp_path: Path, good: Path) -> None:
    spoiled_corpus(tmp_path / "raw", good, good / "c.mpg")
    first = run_on(tmp_path)
    ledger = work_in(tmp_path).ledger.read_bytes()
    second = run_on(tmp_path)
    assert first.clips_computed == 12 and second.clips_computed == 0
    assert work_in(tmp_path).ledger.read_bytes() == ledger
    put(good / "c.mpg", tmp_path / "raw" / "new.mpg")
    assert run_on(tmp_path).clips_computed == 1


def test_a_folder_without_clips_or_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no such folder"):
        run_on(tmp_path, raw=tmp_path / "nowhere")
    (tmp_path / "raw").mkdir()
    add_side_cars(tmp_path / "raw")
    with pytest.raises(StageError, match="holds no file that could be a clip"):
        run_on(tmp_path)
    with pytest.raises(StageError, match="known are grid, crema-d, lrs2, lrs3, voxceleb2, hdtf, "):
        corpora.get_corpus("lrs9")


def test_real_clips_are_usable_and_cut_ones_are_not(tmp_path: Path, crema_d: Path) -> None:
    sources = sorted((crema_d / "VideoFlash").glob("*.flv"))
    raw = tmp_path / "raw"
    put(sources[0], raw / sources[0].name)
    put(sources[1], raw / sources[1].name, 0.60)
    put(sources[2], raw / sources[2].name, 0.95)
    clips.run(work_in(tmp_path, "crema-d"), (), ClipsParams().relax(), CONTEXT)
    rows = list(rows_in(tmp_path).values())
    assert [row["code"] for row in rows] == ["", "", ""], "a film is cut as far as it goes"
    assert ["it is cut short" in " ".join(row["notes"]) for row in rows] == [False, True, True]
    run_on(tmp_path, "crema-d")
    rows = list(rows_in(tmp_path).values())
    assert [row["code"] for row in rows] == ["", "truncated", "truncated"]
    assert (rows[0]["video_codec"], rows[0]["audio_codec"]) == ("vp6f", "mp3float")
    assert rows[0]["fps"] == pytest.approx(29.97, abs=0.1)
    assert (rows[0]["speaker"], rows[0]["sentence"], rows[0]["emotion"], rows[0]["split"]) == (
        "1001", "DFA", "ANG", "train",
    )  # fmt: skip


def pipeline_shard(tmp_path: Path, **params: Any) -> subprocess.CompletedProcess[str]:
    """The whole road as a user starts it, on tmp_path/raw with one worker."""
    raw = tmp_path / "raw"
    (tmp_path / "before.json").write_text(json.dumps(listing(raw)))
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    command = [
        sys.executable, "-m", "pipeline.main", "shard", "--dataset", "folder", "--raw", os.fspath(raw),
        "--work", os.fspath(tmp_path / "work"), "--params", os.fspath(tmp_path / "params.yaml"),
        "--workers", "1", "--json",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def talking_and_spoiled(tmp_path: Path, good: Path) -> dict[str, str]:
    """The spoiled corpus, and clips that end in later stages."""
    raw = tmp_path / "raw"
    codes = spoiled_corpus(raw, good, good / "c.mpg")
    write_media(raw / "late/no-face.mp4", sound=TONE)
    codes["late/no-face.mp4"] = "no_face"
    with av.open(os.fspath(good / "a.mp4")) as source:  # the good clip's picture with silent sound
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
    write_talking(raw / "late/silent.mp4", frames, np.zeros(44_100))
    codes["late/silent.mp4"] = "silent"
    return codes


def write_talking(path: Path, frames: Sequence[np.ndarray], sound: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "14", "preset": "veryfast"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=44_100, layout="mono")
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        mux_sound(out, audio, sound)


def test_the_whole_road_keeps_the_good_clips_and_accounts_for_the_others(
    tmp_path: Path, talking_and_spoiled: dict[str, str]
) -> None:
    done = pipeline_shard(tmp_path, limits={"max_drop_fraction": 0.95})
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = rows_in(tmp_path)
    assert {path: row["code"] or row["status"] for path, row in rows.items()} == talking_and_spoiled
    kept = {row["clip_id"] for row in rows.values() if row["status"] == OK}
    assert set(open_dataset(tmp_path / "work" / "shards").clips) == kept == {"one_good", "two_good"}
    assert sum(split["clips"] for split in summary["splits"].values()) == 2
    [last] = [report for report in summary["stages"] if report["stage"] == "shard"]
    assert sum(last["counts"].values()) == len(talking_and_spoiled)
    silent = rows["late/silent.mp4"]
    assert silent["stage"] == "mels" and "peak" in silent["reason"]
    assert rows["late/no-face.mp4"]["stage"] == "landmarks"
    assert "25 frames" in rows["late/no-face.mp4"]["reason"]


def test_losing_more_than_is_allowed_ends_with_1_and_says_how_many(tmp_path: Path, good: Path) -> None:
    put(good / "a.mp4", tmp_path / "raw" / "a.mp4")
    for name in ("b.mp4", "c.mp4"):
        (tmp_path / "raw" / name).write_bytes(b"")
    done = pipeline_shard(tmp_path)
    assert done.returncode == 1
    assert "clips: 2 of 3 clips are lost (67%), more than limits.max_drop_fraction 0.5" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert json.loads(done.stdout)["stages"][0]["counts"] == {"ok": 1, "empty": 2}


def test_a_run_in_which_everything_fails_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"")
    (tmp_path / "raw" / "b.mp4").write_bytes(LFS_POINTER)
    done = pipeline_shard(tmp_path, limits={"max_drop_fraction": 1.0})
    assert done.returncode == 1
    assert "no clip of 2 is usable" in done.stderr
    assert json.loads(done.stdout)["stages"][0]["counts"] == {"ok": 0, "empty": 1, "lfs_pointer": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_files_are_hashed_at_once_than_there_are_workers(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, running, most = threading.Lock(), 0, 0
    all_at_work = threading.Barrier(workers, timeout=GUARD_SECONDS)

    def hash_slowly(path: Path) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        all_at_work.wait()
        time.sleep(0.02)  # in which one too many would begin
        with lock:
            running -= 1
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(clips, "file_sha256", hash_slowly)
    for k in range(8):
        put(Path(__file__), tmp_path / "raw" / f"{k}.mp4")
    clips.run(work_in(tmp_path), (), ClipsParams(), replace(CONTEXT, workers=workers))
    assert most == workers


class SplitByFolder:
    """A corpus whose folders are its splits, which it names itself."""

    NOMINAL_FRAMES = None
    LICENCE = ""
    CITATION = ""
    KNOWN_FAULTS: Mapping[str, str] = {}

    def identify(self, path: PurePosixPath, raw_name: str) -> Identity:
        return Identity("_".join(path.with_suffix("").parts), path.parent.name)

    def choose_split(self, identity: Identity, path: PurePosixPath, test_share: float) -> str:
        return path.parts[0]


def test_a_corpus_may_choose_the_split_by_the_folder(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "CORPORA", {**corpora.CORPORA, "by-folder": SplitByFolder()})
    for folder in ("pretrain", "test"):
        put(good / "a.mp4", tmp_path / "raw" / folder / "ann" / "a.mp4")
    run_on(tmp_path, "by-folder")
    splits = {path: row["split"] for path, row in rows_in(tmp_path).items()}
    assert splits == {"pretrain/ann/a.mp4": "pretrain", "test/ann/a.mp4": "test"}
