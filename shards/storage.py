"""Files in a folder, a bucket or at a web address, read and written through one interface, ``Storage``."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shards.atomic import WriteError, write_atomically
from shards.checksum import file_sha256
from shards.files import is_regular_file, open_file, read_file
from shards.schema import ShardError

MAX_FILE_BYTES = 2**30  # of what is read into memory: a manifest, an index or a ledger
TRIES = 2  # altered bytes are read once more before an error is raised


class MissingFileError(ShardError):
    """The storage can be read, and has no file of this name."""


class ChangedFileError(ShardError):
    """A file has other contents than expected."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as the storage lists it."""

    name: str  # path below the storage, with forward slashes
    bytes: int
    version: str  # changes when the contents do


class Storage(Protocol):
    """Files by name, with forward slashes for folders.

    Methods raise ShardError with a one-line message, do not block for ever, and never return a part of a file
    as the whole. A storage can be pickled, shared by threads, and used after a fork.
    """

    address: str  # for messages: shows no password

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None if there is no file of this name."""

    def has_file(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file has this size and, where the storage knows it without reading, this sha256."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``, all of them."""

    def read_all(self, name: str, *, sha256: str | None = None) -> bytes:
        """A file that fits in memory. Altered bytes are read once more, then raise ChangedFileError."""

    def download(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Copy a file to ``path``, which appears complete and checked. Altered bytes are read once more."""

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        """Write a file. It appears complete, and replaces the file that had its name."""

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

    def walk(self) -> Iterator[FileInfo]:
        """All files of the storage and of its folders."""


def open_storage(address: str | Path | Storage) -> Storage:
    """The storage at a folder, ``s3://bucket/prefix`` or ``https://...``. Sends no request yet."""
    if isinstance(address, Path):
        return LocalStorage(address)
    if not isinstance(address, str):
        return address
    if not is_remote(address):
        return LocalStorage(Path(address))
    from shards.remote import RemoteStorage  # imports this module

    scheme = address.partition("://")[0].lower()
    if scheme == "s3":
        from shards.s3 import S3Transport  # needs boto3

        return RemoteStorage(S3Transport(address))
    if scheme in ("http", "https"):
        from shards.http import HttpTransport  # loads requests

        return RemoteStorage(HttpTransport(address))
    raise ShardError(f"{strip_address(address)}: cannot be read; known are folders, s3:// and https://")


def is_remote(address: str) -> bool:
    """Whether this is the address of a bucket or server rather than a folder."""
    return "://" in address


def strip_address(address: str) -> str:
    """An address for messages and files, without user name, password and query, which may be a signature.

    A folder's path stays what it is.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    if scheme.lower() != "s3":  # whose names may hold these letters
        rest = rest.partition("#")[0].partition("?")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = os.fspath(path)

    def size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if is_regular_file(path, inside=self.path) else None

    def has_file(self, name: str, size: int, sha256: str) -> bool:
        return self.size(name) == size

    def read(self, name: str, start: int, stop: int) -> bytes:
        try:
            with open_file(self.path / name, inside=self.path) as file:
                n_bytes = os.fstat(file.fileno()).st_size  # before memory is taken for the range
                data = b""
                if stop <= n_bytes:
                    file.seek(start)
                    data = file.read(stop - start)
        except OSError as err:
            raise self._make_error(name, err) from err
        if len(data) != stop - start:
            raise ShardError(f"{self.path / name}: ends at byte {n_bytes}, expected {stop} or more")
        return data

    def read_all(self, name: str, *, sha256: str | None = None) -> bytes:
        try:
            data = read_file(self.path / name, MAX_FILE_BYTES, inside=self.path)
        except OSError as err:
            raise self._make_error(name, err) from err
        if sha256 is not None:
            check_file(f"{self.path / name}", len(data), hashlib.sha256(data).hexdigest(), None, sha256)
        return data

    def download(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        try:
            with write_atomically(path) as partial:
                with open_file(self.path / name, inside=self.path) as file, partial.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
                check_file(f"{self.path / name}", partial.stat().st_size, file_sha256(partial), size, sha256)
        except WriteError:
            raise
        except OSError as err:
            raise self._make_error(name, err) from err

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        LocalStorage(path.parent).download(path.name, self.path / name, sha256=sha256)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def walk(self) -> Iterator[FileInfo]:
        # skips what is deleted meanwhile; rglob raises
        for path in sorted(Path(folder, name) for folder, _, names in os.walk(self.path) for name in names):
            if not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = path.stat()
                name = path.relative_to(self.path).as_posix()
                yield FileInfo(name, status.st_size, str(status.st_mtime_ns))

    def _make_error(self, name: str, err: OSError) -> ShardError:
        kind = MissingFileError if isinstance(err, FileNotFoundError) else ShardError
        return kind(f"{self.path / name}: cannot be read ({err.strerror})")


def check_file(
    path: str, n_bytes: int, sha256: str, expected_bytes: int | None, expected_sha256: str | None
) -> None:
    """Raise ChangedFileError when a file has not the expected size or sha256; None allows any."""
    is_wrong_size = expected_bytes is not None and n_bytes != expected_bytes
    if is_wrong_size or (expected_sha256 is not None and sha256 != expected_sha256):
        size = n_bytes if expected_bytes is None else expected_bytes
        hash_text = "any" if expected_sha256 is None else expected_sha256[:12]
        raise ChangedFileError(
            f"{path}: {n_bytes} bytes with sha256 {sha256[:12]}, expected {size} with {hash_text}"
        )
