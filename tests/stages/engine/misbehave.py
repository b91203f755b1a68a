"""Jobs for the sandbox that do what strangers' files make libraries do. Run only in its child."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from shards.atomic import write_atomically
from stages.engine.outcome import Drop, Outcome

LONG_SECONDS = 600
MEGABYTE = 2**20


def double(number: int) -> Outcome:
    """The one that behaves."""
    return Outcome(facts={"doubled": 2 * number, "pid": os.getpid()})


def note_pid(path: str, pid: int | None = None) -> None:
    with Path(path).open("a") as file:
        file.write(f"{pid or os.getpid()}\n")


def read_limits() -> Outcome:
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_CORE", "RLIMIT_FSIZE")}
    return Outcome(facts=limits)


def write(path: Path) -> Outcome:
    with write_atomically(path) as partial:
        partial.write_bytes(bytes(MEGABYTE))
    return Outcome()


def raise_os_error(number: int) -> Outcome:
    raise OSError(number, os.strerror(number), "/a/file")


def hang(pids: str) -> Outcome:
    note_pid(pids)
    time.sleep(LONG_SECONDS)
    return Outcome()


def hang_in_c(pids: str) -> Outcome:
    """Sleeps without letting the interpreter go, as a decoder caught in a loop does."""
    note_pid(pids)
    ctypes.PyDLL(None).sleep(LONG_SECONDS)
    return Outcome()


def hang_with_a_child(pids: str) -> Outcome:
    note_pid(pids)
    note_pid(pids, subprocess.Popen(["sleep", str(LONG_SECONDS)]).pid)
    time.sleep(LONG_SECONDS)
    return Outcome()


def segfault() -> Outcome:
    ctypes.string_at(0)
    return Outcome()


def abort() -> Outcome:
    print("free(): invalid pointer", file=sys.stderr, flush=True)
    os.abort()


def leave(code: int) -> Outcome:
    sys.exit(code)


def leave_at_once(code: int) -> Outcome:
    os._exit(code)


def eat(step_mb: int) -> Outcome:
    """Takes and touches memory, step by step."""
    held = []
    while True:
        held.append(b"x" * (step_mb * MEGABYTE))
        time.sleep(0.02)


def fail(number: int) -> Outcome:
    raise ValueError(f"number is {number}, expected 8")


def drop(calls: str) -> Outcome:
    note_pid(calls)
    raise Drop("too_dull", "its plot has 0 twists, expected 1 or more")


def chatter(megabytes: int) -> Outcome:
    """Prints on every way out that a library knows, also what looks like an answer."""
    line = b'{"status": "failed", "warm": true}\n' + b"x" * 1000 + b"\n"
    for _ in range(megabytes * 1000):
        os.write(1, line)
        os.write(2, line)
    print("done", flush=True)
    print("done", file=sys.stderr, flush=True)
    return Outcome(facts={"said": megabytes})


def warn(words: str, n: int) -> Outcome:
    """Warns as a module of ours does, and as a library of somebody else."""
    for _ in range(n):
        logging.getLogger("stages.anything").warning("%s", words)
        logging.getLogger("library").warning("noise")
        time.sleep(0.01)
    return Outcome()


def fail_at_first(state: str) -> Outcome:
    """Dies when called for the first time ever."""
    if not Path(state).exists():
        note_pid(state)
        os._exit(9)
    note_pid(state)
    return Outcome(facts={"pids": Path(state).read_text().split()})


def not_json() -> Outcome:
    return Outcome(facts={"bytes": b"raw"})
