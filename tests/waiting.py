"""Waiting in tests for what happens in other processes and threads, on machines that are busy with others."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

# So long that only a hang reaches it: beside other work, starting Python can take ten times as long.
GUARD_SECONDS = 300.0


def wait_until(is_true: Callable[[], object]) -> bool:
    """Wait for a condition; whether it became true."""
    deadline = time.monotonic() + GUARD_SECONDS
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.02)
    return bool(is_true())


def is_gone(pid: int) -> bool:
    """Whether a process has ended. Nobody may have asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
