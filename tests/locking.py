"""A lock that another process seems to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from shards import locks


def lock_until_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock a file, and release it as soon as a wait for it is logged."""
    lock, warning = FileLock(path, thread_local=False), locks.log.warning

    def warn(*message: object) -> None:
        warning(*message)
        lock.release()

    monkeypatch.setattr(locks.log, "warning", warn)
    lock.acquire()
