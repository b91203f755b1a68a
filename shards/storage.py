"""Where files lie: a folder, a bucket or a web address, read and written by the same few calls."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.schema import ShardError

TRIES = 2  # what comes altered is read once more, and then named


class MissingFileError(ShardError):
    """The place answers, and has no such file."""


class ChangedFileError(ShardError):
    """A file is not the one that was expected."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a place, as a list of it tells."""

    name: str  # with the folders below the place, by forward slashes
    bytes: int
    version: str  # another one when the contents are


class Storage(Protocol):
    """Files beside each other. Calls raise ShardError in one line, never wait for ever, and never take a
    part of a file for the whole. A place may be pickled, shared by threads, and used after a fork.
    """

    address: str  # for messages: shows no password

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none of that name."""

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether it has a file of this size and, as far as it knows without reading it, these contents."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``, all of them."""

    def whole(self, name: str, *, sha256: str | None = None) -> bytes:
        """A file that fits the memory. An altered one is read once more, then named."""

    def bring(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Copy a file to this machine; it appears when it is whole and right. Read twice at most."""

    def put(self, path: Path, name: str, *, sha256: str) -> None:
        """Write a file; it appears when it is whole, and replaces the one that had its name."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""

    def names(self) -> Iterator[str]:
        """Names of all files that lie in the place itself, not deeper."""

    def tree(self) -> Iterator[FileInfo]:
        """All files of the place and of the folders in it."""


class LocalStorage:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = os.fspath(path)

    def size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def holds(self, name: str, size: int, sha256: str) -> bool:
        return self.size(name) == size

    def read(self, name: str, start: int, stop: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as err:
            raise self._error(name, err) from err
        if len(data) != stop - start:
            end = self.size(name)
            raise ShardError(f"{self.path / name}: ends at byte {end}, expected {stop} or more")
        return data

    def whole(self, name: str, *, sha256: str | None = None) -> bytes:
        try:
            data = (self.path / name).read_bytes()
        except OSError as err:
            raise self._error(name, err) from err
        if sha256 is not None:
            check(f"{self.path / name}", len(data), hashlib.sha256(data).hexdigest(), None, sha256)
        return data

    def bring(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        try:
            with write_atomically(path) as partial:
                shutil.copyfile(self.path / name, partial)
                check(f"{self.path / name}", partial.stat().st_size, file_sha256(partial), size, sha256)
        except OSError as err:
            raise self._error(name, err) from err

    def put(self, path: Path, name: str, *, sha256: str) -> None:
        LocalStorage(path.parent).bring(path.name, self.path / name, sha256=sha256)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        return (path.name for path in sorted(self.path.iterdir()) if path.is_file())

    def tree(self) -> Iterator[FileInfo]:
        for path in sorted(self.path.rglob("*")):
            if path.is_file():
                told = path.stat()
                yield FileInfo(path.relative_to(self.path).as_posix(), told.st_size, str(told.st_mtime_ns))

    def _error(self, name: str, err: OSError) -> ShardError:
        kind = MissingFileError if isinstance(err, FileNotFoundError) else ShardError
        return kind(f"{self.path / name}: cannot be read ({err.strerror})")


def check(what: str, found_bytes: int, found_sha256: str, size: int | None, sha256: str | None) -> None:
    """Raise ChangedFileError when a file's size or sha256 is another than the one told."""
    wrong_size = size is not None and found_bytes != size
    if wrong_size or (sha256 is not None and found_sha256 != sha256):
        told = f"{found_bytes if size is None else size} with {'any' if sha256 is None else sha256[:12]}"
        raise ChangedFileError(
            f"{what}: {found_bytes} bytes with sha256 {found_sha256[:12]}, expected {told}"
        )
