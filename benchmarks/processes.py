"""Watching a command and all that it starts: CPU seconds and memory, orphans too."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.5
# What a process is, by a word of its command line.
KINDS = {"stages.engine.sandbox": "sandbox", "spawn_main": "worker"}


@dataclass
class Usage:
    """What a command took, with every process that it started."""

    answer: dict[str, Any]  # its --json
    cpu_seconds: float
    wall_seconds: float
    memory_mb: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # kind -> (wall s, RSS)
    cpu_by_kind: dict[str, float] = field(default_factory=dict)  # sampled, so a little less than all

    def peaks(self) -> str:
        return ", ".join(
            f"{kind} {max(size for _, size in series):.0f} MB" for kind, series in self.memory_mb.items()
        )


def pipeline(*words: str, one_core: bool = False) -> Usage:
    """Run ``pipeline`` with ``--json`` to its end. The watching is done on the other cores."""
    # Orphans come to this process, so their CPU time is counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline.main", *words, "--json"]
    pin = pin_to_one_core if one_core else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=pin)
    memory: dict[str, list[tuple[float, float]]] = {}
    cpu_of: dict[tuple[str, int], float] = {}
    threading.Thread(target=_watch, args=(process.pid, started, memory, cpu_of), daemon=True).start()
    answer, _ = process.communicate()
    wall = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"pipeline {' '.join(words)} failed: {answer.decode()}")
    for orphan in psutil.Process().children():
        if orphan.status() == psutil.STATUS_ZOMBIE or "stages.engine.sandbox" in " ".join(orphan.cmdline()):
            os.waitpid(orphan.pid, 0)  # it ends when it notices that its worker is gone
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    by_kind: dict[str, float] = {}
    for (kind, _), seconds in cpu_of.items():
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    return Usage(json.loads(answer), cpu, wall, memory, by_kind)


def _watch(
    pid: int,
    started: float,
    memory: dict[str, list[tuple[float, float]]],
    cpu_of: dict[tuple[str, int], float],
) -> None:
    """Sample the largest process of each kind, and the CPU time of every one, until the command ends."""
    root = psutil.Process(pid)
    while True:
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        largest: dict[str, float] = {}
        for process in family:
            try:
                line = " ".join(process.cmdline())
                size = process.memory_info().rss / 2**20
                times = process.cpu_times()
            except psutil.Error:
                continue
            kind = next((kind for word, kind in KINDS.items() if word in line), "command")
            cpu_of[kind, process.pid] = times.user + times.system
            largest[kind] = max(largest.get(kind, 0.0), size)
        for kind, size in largest.items():
            memory.setdefault(kind, []).append((time.monotonic() - started, size))
        time.sleep(SAMPLE_SECONDS)


def pin_to_one_core() -> None:
    """This process and its children run on the last core from now on, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def video_files(raw: Path, n_clips: int) -> list[Path]:
    """The first clips below a folder, by name."""
    suffixes = (".mpg", ".flv", ".mp4", ".mkv")
    return [path for path in sorted(raw.rglob("*")) if path.suffix in suffixes][:n_clips]
