"""A folder in which folders come and go, as those of a run that is training or of a page's visitors."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def change_folders(root: Path) -> Iterator[None]:
    """Make and remove folders with files below ``root``, as fast as can be, until the end of the block."""
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            for number in range(8):
                folder = root / f"{number}" / "inner"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "file").touch()
            for number in range(8):
                shutil.rmtree(root / f"{number}")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        shutil.rmtree(root, ignore_errors=True)
