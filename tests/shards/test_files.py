"""Only regular files are opened, and none outside a folder that came from someone else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shards.files import is_inside, name_errors, open_file, read_file
from tests.alterations import replace_file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is a pipe"), ("socket", "is a socket"), ("folder", "is a folder"), ("gone", "No such file"),
        ("device", "is a device"), ("dangling link", "No such file"), ("link to itself", "symbolic links"),
    ],
)  # fmt: skip
def test_what_is_no_regular_file_is_refused_at_once(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    assert read_file(path, 5) == b"bytes"
    replace_file(path, kind, tmp_path / "outside")
    with pytest.raises(OSError, match=message):
        open_file(path)


def test_a_pipe_that_replaces_a_file_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    open_handle = os.open

    def open_replaced(name: Path, flags: int) -> int:
        assert flags & os.O_NONBLOCK, "else it waits for a writer"
        replace_file(path, "pipe", tmp_path / "outside")
        return open_handle(name, flags)

    monkeypatch.setattr(os, "open", open_replaced)
    with pytest.raises(OSError, match="is a pipe"):
        open_file(path)


def test_a_link_is_followed_as_long_as_it_stays_in_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"outside")
    (folder / "inside").write_bytes(b"inside")
    (folder / "a").symlink_to("inside")
    (folder / "b").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    assert read_file(folder / "a", 10, inside=folder) == b"inside"
    assert read_file(folder / "b", 10) == b"outside"
    for path in (folder / "b", folder / "up" / "outside", folder / ".." / "outside"):
        with pytest.raises(OSError, match="leads out of its folder"):
            read_file(path, 10, inside=folder)
    assert not is_inside(Path("a\0b"), folder)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="holds 1099511627776 bytes"):
        read_file(path, 100)


def test_an_error_of_an_open_file_names_the_file(tmp_path: Path) -> None:
    """Only the system call that opens a file is told its name."""
    with pytest.raises(OSError, match="Bad file descriptor") as caught, name_errors(tmp_path):
        os.read(-1, 1)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, os.fspath(tmp_path))
    with pytest.raises(FileNotFoundError) as caught, name_errors(tmp_path):
        (tmp_path / "gone").stat()
    assert caught.value.filename == os.fspath(tmp_path / "gone")
    with pytest.raises(TimeoutError, match="of ours"), name_errors(tmp_path):
        raise TimeoutError("of ours")
