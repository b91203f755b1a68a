"""One process at a time writes in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from shards.atomic import remove_partials
from stages.engine.outcome import StageError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, *others: Path, busy: str) -> Iterator[None]:
    """Keep other processes out of a folder, and clear away what a killed one left half written.

    The folder is made if need be; what is half written in ``others`` goes too. A killed process's lock goes
    with it. Raises StageError, which says ``busy``, when another is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout as err:
        raise StageError(busy) from err
    try:
        for place in {folder, *others}:
            remove_partials(place)
        yield
    finally:
        lock.release()
