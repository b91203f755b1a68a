"""Runs every command on a machine that refuses something: `python -m tests.refusing --world DIR ...`.

Each run is a child of this process, which has imported what the commands need. ``main`` prints a JSON list:
of each command and each refusal the exit code and what the command printed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.killing import JOBS, start

CLONE_NEWNS = 0x20000  # of Linux: unshare the list of mounts
DEADLINE_SECONDS = 300
LOG_LETTERS = 3000


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the machine refuses: a limit of the process, or a file system for the output."""

    name: str
    limit: Callable[[], object] = lambda: None
    mount: str = ""  # options of the tmpfs; "" for a folder of the disk


@dataclass(frozen=True, slots=True)
class Row:
    """The end of one command."""

    command: str
    refusal: str
    code: int
    output: str  # its last letters
    left: tuple[str, ...]  # partial files that it left behind


def limit_handles(n_handles: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_handles, n_handles))


def limit_memory(spare_mb: int) -> None:
    """Allow so much memory more than the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


REFUSALS = (
    Refusal("disk of 16 KB", mount="size=16k"),
    Refusal("disk of 400 KB", mount="size=400k"),
    Refusal("read-only folder", mount="ro"),
    Refusal("20 file handles", lambda: limit_handles(20)),
    Refusal("20 MB of memory", lambda: limit_memory(20)),
    Refusal("150 MB of memory", lambda: limit_memory(150)),
)
READERS: dict[str, Callable[[Path, Path], Sequence[str | Path]]] = {
    "preview": lambda world, out: ["preview", world / "work" / "shards", "-o", out / "sheet.png"],
    "preview video": lambda world, out: [
        "preview", world / "work" / "shards", "-o", out / "clip.mp4", "--video", "any",
    ],
    "synth": lambda world, out: ["synth", "--to", out / "made", "--clips", "1", "--seconds", "0.8"],
    "verify": lambda world, out: ["verify", world / "work" / "shards", "--full"],
    "explain": lambda world, out: ["explain", world / "work" / "shards", "bbaf5a.mpg"],
    "export": lambda world, out: ["export", "--run", world / "run", "-o", out / "x.safetensors"],
    "diff": lambda world, out: ["diff", world / "work" / "shards", world / "work" / "shards"],
}  # fmt: skip
COMMANDS = {name: job.words for name, job in JOBS.items()} | READERS
MODULES = ("pipeline.commands.preview", "stages.preview", "stages.synth", "shards.verify", "shards.diff")


@contextlib.contextmanager
def make_folder(parent: Path, mount: str) -> Iterator[Path]:
    """An empty folder for the output, on a file system of its own if ``mount`` says which."""
    out = parent / "out"
    out.mkdir()
    if mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", mount, "tmpfs", str(out)], check=True)
    try:
        yield out
    finally:
        if mount:
            subprocess.run(["umount", "--lazy", str(out)], check=True)
        shutil.rmtree(out)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount. What it mounts is seen by it and its children, and ends with them.

    A mount of the whole machine would outlive a test that is killed, in a folder that nobody can remove then.
    """
    if not hasattr(ctypes.CDLL(None), "unshare") or ctypes.CDLL(None).unshare(CLONE_NEWNS):
        return False
    try:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        with make_folder(folder, "size=16k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def run_refused(command: str, refusal: Refusal, world: Path, folder: Path) -> Row:
    log = folder / "log.txt"
    with make_folder(folder, refusal.mount) as out:
        pid = start(COMMANDS[command](world, out), log, refusal.limit)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (result := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return Row(command, refusal.name, -1, "still at work", ())
            time.sleep(0.05)
        left = tuple(str(path.relative_to(out)) for path in out.rglob("*.partial"))
    code = os.waitstatus_to_exitcode(result[1])
    return Row(command, refusal.name, code, log.read_text(errors="replace")[-LOG_LETTERS:], left)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--world", type=Path, required=True, help="made by tests.test_kills.make_world")
    options.add_argument("--folder", type=Path, required=True, help="an empty folder")
    options.add_argument("--command", action="append", help="may be repeated  [default: all]")
    options.add_argument("--refusal", action="append", help="may be repeated  [default: all]")
    args = options.parse_args()
    for module in (*MODULES, *(module for job in JOBS.values() for module in job.modules)):
        importlib.import_module(module)
    is_mounting = can_mount(args.folder)
    rows = [
        run_refused(command, refusal, args.world, args.folder)
        for refusal in REFUSALS
        if refusal.name in (args.refusal or [refusal.name]) and (is_mounting or not refusal.mount)
        for command in args.command or COMMANDS
    ]
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
