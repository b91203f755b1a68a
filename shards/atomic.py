"""Write files that appear under their names complete or not at all, even after a power failure."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to. It becomes ``path`` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
    try:
        yield partial
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def move_into_place(partial: Path, path: Path) -> None:
    """Flush ``partial`` to the disk and rename it to ``path``, which it replaces."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partials(folder: Path) -> None:
    """Remove partial files that killed processes left below ``folder``. No process may be writing there."""
    for path in folder.rglob(f"*{PARTIAL_SUFFIX}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
