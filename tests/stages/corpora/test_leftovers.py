"""What is left out of a raw folder by its name, and what is not."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from pydantic import ValidationError

from stages.clips import ClipsParams
from stages.corpora.leftovers import check_pattern, judge_file, judge_folder, match_pattern

TRASH = [
    ".Trash-1000", ".Trash", ".Trashes", "$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER",
    "home/.local/share/Trash", "lost+found", "System Volume Information", "s1/@eaDir", "#recycle", "@Recycle",
    "__MACOSX", ".Spotlight-V100", ".snapshots", ".zfs", ".stversions",
]  # fmt: skip
PARTIAL = [
    ".x.mp4.Xy12Zq", "x.mp4.part", "x.mp4.PART", "x.mkv.crdownload", "x.mp4.partial", "x.tmp", "x.mp4~",
    "x.mp4.!qB", "x.mp4.aria2", "x.mp4.filepart", "x.f137.mp4.part-Frag12", "x.mp4.part-Frag12.part",
    "x.mp4.ytdl", "~$x.mp4", ".~lock.x.mp4#", ".nfs000000000ab12", ".fuse_hidden0000a1b2",
    ".syncthing.x.mp4.tmp", "x.mp4.6eF2a1B3", ".goutputstream-AB12CD", "x.mp4.opdownload",
    ".s1_bbaf2n.mpg.a1b2c3",
]  # fmt: skip
CLIPS = [
    "x.mp4", ".hidden.mp4", ".x.mpeg", "partial.mp4", "my.part.mp4", "tmp.mov", "x.mp4.20240131", "x",
    "trash.mp4", "x.abc123", "~x.mp4", "film.download.mp4", "s1/bbaf2n.mpg", "1001_DFA_ANG_XX.flv", "temp",
    ".x.webm",
]  # fmt: skip
FOLDERS = [
    "trash", "Trash", "partial", "backup.partial", "x.part", "tmp", ".hidden", "share", "lost", "eaDir",
    "recycle", "snapshots", ".Trash-x",
]  # fmt: skip


@pytest.mark.parametrize("path", TRASH)
def test_folders_of_trash_and_of_the_system_are_left_out(path: str) -> None:
    drop = judge_folder(PurePosixPath(path), [])
    assert drop is not None and drop.code == "trash"


@pytest.mark.parametrize("path", PARTIAL)
def test_files_that_are_not_complete_are_left_out(path: str) -> None:
    drop = judge_file(PurePosixPath(path), [])
    assert drop is not None and drop.code == "partial"


def test_a_browser_s_bundle_of_a_download_is_left_out() -> None:
    drop = judge_folder(PurePosixPath("x.mp4.download"), [])
    assert drop is not None and drop.code == "partial"


@pytest.mark.parametrize("path", CLIPS)
def test_clips_are_not_left_out(path: str) -> None:
    assert judge_file(PurePosixPath(path), []) is None


@pytest.mark.parametrize("path", FOLDERS)
def test_a_user_s_folders_are_not_left_out(path: str) -> None:
    assert judge_folder(PurePosixPath(path), []) is None


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("outtakes", "outtakes", True),
        ("outtakes", "a/b/outtakes", True),
        ("outtakes/", "a/outtakes", True),
        ("outtakes", "outtakes-2", False),
        ("*-raw.mov", "a/x-raw.mov", True),
        ("*-raw.mov", "a/x.mov", False),
        ("a/*.mp4", "a/x.mp4", True),
        ("a/*.mp4", "a/b/x.mp4", False),
        ("a/*.mp4", "b/a/x.mp4", False),
        ("a/**/x.mp4", "a/x.mp4", True),
        ("a/**/x.mp4", "a/b/c/x.mp4", True),
        ("**/c/x.mp4", "a/b/c/x.mp4", True),
        ("**/x.mp4", "x.mp4", True),
        ("a/**", "a/b/c", True),
        ("a/**", "b/a", False),
        ("a/[bc]?/x", "a/b1/x", True),
        ("a/[bc]?/x", "a/d1/x", False),
        ("A", "a", False),
        ("/".join(["**"] * 200 + ["z"]), "/".join("abcdefghij" * 20), False),
        ("/".join(["**", "a"] * 100), "/".join(["a"] * 500 + ["b"]), False),
    ],
)
def test_a_pattern_matches_a_name_or_a_whole_path(pattern: str, path: str, matches: bool) -> None:
    assert match_pattern(PurePosixPath(path), check_pattern(pattern)) == matches


@pytest.mark.parametrize("pattern", ["", "/", "/etc", "../x", "a/../b", "./a", "a//b", "a\0b", "//"])
def test_a_pattern_that_could_match_nothing_is_refused_and_named(pattern: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ClipsParams(exclude=["fine", pattern])
    assert repr(pattern) in str(caught.value)
