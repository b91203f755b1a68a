"""Measures CPU seconds and memory of a command and its child processes, for other benchmarks."""

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
# Part of the command line -> kind of process.
KINDS = {"stages.engine.sandbox": "sandbox", "spawn_main": "worker"}


@dataclass
class Usage:
    """Resources that a command used, including every process that it started."""

    summary: dict[str, Any]  # output of its --json
    cpu_seconds: float
    wall_seconds: float
    memory_mb: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # kind -> (wall s, RSS)
    cpu_by_kind: dict[str, float] = field(default_factory=dict)  # sampled, so slightly less than the total
    totals: list[Total] = field(default_factory=list)

    def format_peaks(self) -> str:
        return ", ".join(
            f"{kind} {max(size for _, size in series):.0f} MB" for kind, series in self.memory_mb.items()
        )


@dataclass(frozen=True, slots=True)
class Total:
    """All processes of a command at one moment."""

    wall_seconds: float  # since the command started
    memory_mb: float  # RSS, summed: pages that processes share count several times
    cpu_seconds: float  # since the command started, with processes that have ended


def run_pipeline(*args: str, one_core: bool = False) -> Usage:
    """Run ``pipeline`` with ``--json``. With ``one_core``, this process samples from the other cores."""
    # Orphans are re-parented to this process, so that their CPU time is counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    command = [sys.executable, "-m", "pipeline.main", *args, "--json"]
    pin = pin_to_one_core if one_core else None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=pin)
    memory: dict[str, list[tuple[float, float]]] = {}
    cpu_by_process: dict[tuple[str, int], float] = {}
    totals: list[Total] = []
    threading.Thread(
        target=_sample_processes, args=(process.pid, start, memory, cpu_by_process, totals), daemon=True
    ).start()
    output, _ = process.communicate()
    wall = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"pipeline {' '.join(args)} failed: {output.decode()}")
    for orphan in psutil.Process().children():
        if orphan.status() == psutil.STATUS_ZOMBIE or "stages.engine.sandbox" in " ".join(orphan.cmdline()):
            os.waitpid(orphan.pid, 0)  # it exits when it notices that its worker is gone
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    by_kind: dict[str, float] = {}
    for (kind, _), seconds in cpu_by_process.items():
        by_kind[kind] = by_kind.get(kind, 0.0) + seconds
    return Usage(json.loads(output), cpu, wall, memory, by_kind, totals)


def _sample_processes(
    pid: int,
    start: float,
    memory: dict[str, list[tuple[float, float]]],
    cpu_by_process: dict[tuple[str, int], float],
    totals: list[Total],
) -> None:
    """Sample the RSS of the largest process per kind and the CPU time of each, until the command ends."""
    root = psutil.Process(pid)
    while True:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        largest: dict[str, float] = {}
        total = 0.0
        for process in processes:
            try:
                line = " ".join(process.cmdline())
                if not line:
                    continue  # it is ending, and no longer says which it was
                size = process.memory_info().rss / 2**20
                times = process.cpu_times()
            except psutil.Error:
                continue
            kind = next((kind for word, kind in KINDS.items() if word in line), "command")
            cpu_by_process[kind, process.pid] = times.user + times.system
            largest[kind] = max(largest.get(kind, 0.0), size)
            total += size
        for kind, size in largest.items():
            memory.setdefault(kind, []).append((time.monotonic() - start, size))
        totals.append(Total(time.monotonic() - start, total, sum(cpu_by_process.values())))
        time.sleep(SAMPLE_SECONDS)


def pin_to_one_core() -> None:
    """Pin this process and its children to the last core, where the operating system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def list_videos(raw: Path, n_clips: int) -> list[Path]:
    """The first videos in a folder and its subfolders, by path."""
    suffixes = (".mpg", ".flv", ".mp4", ".mkv")
    return [path for path in sorted(raw.rglob("*")) if path.suffix in suffixes][:n_clips]
