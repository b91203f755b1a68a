"""A lock on a folder: one process at a time writes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from shards.atomic import remove_partials
from shards.files import name_errors
from stages.engine.outcome import StageError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, *others: Path, busy: str) -> Iterator[None]:
    """Lock a folder for this process, and remove partial files that killed processes left there.

    The folder is created if it does not exist; partial files in ``others`` are removed too. They are removed
    again at the end: a killed command's workers may outlive it for seconds, and a child that hangs is killed
    while it writes. The lock of a killed process is released by the system. Raises StageError(``busy``) when
    another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        with name_errors(folder / LOCK_NAME):
            lock.acquire(blocking=False)
    except Timeout as err:
        raise StageError(busy) from err
    try:
        for each in {folder, *others}:
            remove_partials(each)
        try:
            yield
        finally:
            for each in {folder, *others}:
                remove_partials(each)
    finally:
        lock.release()
