"""Open files of this machine that a stranger may have made: regular ones only, with a bound on their size.

A pipe, a socket or a device would block for ever or never end, and a link in a folder from elsewhere can name
any file of this machine.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# O_NONBLOCK: opening a pipe that replaced a file since it was looked at must not block.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_file(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading.

    ``inside`` is a folder from someone else: a link that leads out of it is not followed. Raises OSError,
    whose ``strerror`` says what the path is instead.
    """
    if inside is not None and not is_inside(path, inside):
        raise OSError(errno.EPERM, "leads out of its folder by a link; copy the file there", os.fspath(path))
    try:
        _check_mode(path.stat().st_mode, path)
        handle = os.open(path, FLAGS)
    except ValueError as err:  # a NUL in the name
        raise OSError(errno.EINVAL, str(err), repr(path)) from err
    try:
        _check_mode(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_file(path: Path, max_bytes: int, *, inside: Path | None = None) -> bytes:
    """The bytes of a regular file. Raises OSError, also when there are more than ``max_bytes``."""
    with name_errors(path), open_file(path, inside=inside) as file:
        return file.read(_check_size(file, path, max_bytes))  # not more: Python takes memory for all that


def map_file(path: Path, max_bytes: int, *, inside: Path | None = None) -> bytes | mmap.mmap:
    """As ``read_file``, without a copy in memory: for a large file that nobody changes in place."""
    with name_errors(path), open_file(path, inside=inside) as file:
        size = _check_size(file, path, max_bytes)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


@contextlib.contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Give ``path`` as its name to an OSError that has none, as that of a lock or of reading an open file."""
    try:
        yield
    except OSError as err:
        if err.errno is None or err.filename is not None:
            raise
        raise OSError(err.errno, os.strerror(err.errno), os.fspath(path)) from err


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, with all links followed, is below a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a ring of links; a NUL
        return False


def is_regular_file(path: Path, *, inside: Path | None = None) -> bool:
    """Whether ``open_file`` would open the path, as far as its kind and its place decide."""
    return path.is_file() and (inside is None or is_inside(path, inside))


def _check_size(file: BinaryIO, path: Path, max_bytes: int) -> int:
    """The size of a file. Raises OSError when it is more than ``max_bytes``."""
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"holds {size} bytes, expected at most {max_bytes}", os.fspath(path))
    return size


def _check_mode(mode: int, path: Path) -> None:
    """Raise OSError unless a mode is that of a regular file."""
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise OSError(errno.EINVAL, f"is {kind}, not a regular file", os.fspath(path))
