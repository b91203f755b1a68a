"""A wait for another process, which is told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_lock(lock: FileLock, message: str, *, silent_seconds: float = 0) -> Iterator[None]:
    """Lock a file; log ``message`` if another process has it for longer than ``silent_seconds``."""
    try:
        lock.acquire(timeout=silent_seconds)
    except Timeout:
        log.warning(message)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
