"""How many cores this process may use: of the machine, and by the limits of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

from shards.cgroups import Version, list_groups
from shards.torchrun import read_place


def count_cores() -> int:
    """Cores that this process may use, 1 or more.

    Where a batch job or a pod has its own, ``os.cpu_count`` counts the machine's. A part of a core counts as
    one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = (_read_limit(folder, version) for folder, version in list_groups("cpu"))
    return min([cores, *(max(1, math.ceil(limit)) for limit in limits if limit is not None)])


def count_cores_per_rank() -> int:
    """Cores for each of the ranks of this machine, 1 or more."""
    return max(1, count_cores() // read_place().local_world)


def _read_limit(folder: Path, version: Version) -> float | None:
    """Processor seconds per second that a group may take; None where it has no limit, or no such file."""
    try:
        if version == 2:
            quota, period = map(int, (folder / "cpu.max").read_text().split())  # "max" is no number
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
