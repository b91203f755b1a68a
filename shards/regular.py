"""Read files that may come from anyone: only regular files, of a bounded size, that lie in their folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


class UnsuitableFile(Exception):
    """A file that is not read. The message is the reason in one line, without the path."""


def open_regular_file(path: Path, *, max_bytes: int, folder: Path | None = None) -> BinaryIO:
    """Open a file for reading. A link may lead to it, but not out of ``folder`` if that is not None.

    Raises FileNotFoundError if there is none, and UnsuitableFile for a pipe, a folder, a device, a file of
    more than ``max_bytes`` and one that cannot be opened.
    """
    try:
        if folder is not None and not path.resolve().is_relative_to(folder.resolve()):
            raise UnsuitableFile("is a link to a file outside its folder, which is not followed")
        # a pipe would wait for a writer without O_NONBLOCK
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: a loop of links; ValueError: a NUL
        raise UnsuitableFile(f"cannot be read ({getattr(err, 'strerror', None) or err})") from err
    status = os.fstat(handle)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif status.st_size > max_bytes:
        problem = f"has {status.st_size:,} bytes, expected at most {max_bytes:,}"
    if problem:
        os.close(handle)
        raise UnsuitableFile(problem)
    return os.fdopen(handle, "rb")


def read_regular_file(path: Path, *, max_bytes: int, folder: Path | None = None) -> bytes:
    """The content of a file; as ``open_regular_file``."""
    with open_regular_file(path, max_bytes=max_bytes, folder=folder) as file:
        try:
            return file.read(max_bytes)
        except OSError as err:
            raise UnsuitableFile(f"cannot be read ({err.strerror})") from err
