"""How much memory is free: of the machine, and of the control group of this process.

A container, a pod or a batch job has a limit of its own, which the machine's figures do not show. Who takes
more is killed by the kernel without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil

from shards.cgroups import list_groups


class GroupFiles(NamedTuple):
    """The names that one version of cgroups gives to its files, and to pages of files in its statistics."""

    limit: str
    usage: str
    file_pages: tuple[str, str]


FILES = {
    1: GroupFiles(
        "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
    ),
    2: GroupFiles("memory.max", "memory.current", ("active_file", "inactive_file")),
}


def find_free_memory() -> int:
    """Bytes that this process can still take.

    What a group uses to cache files counts as free, as in the machine's figure: the kernel gives it back.
    Where there are no groups, or their files cannot be read, it is the machine's figure alone.
    """
    rooms = (_find_room(folder, FILES[version]) for folder, version in list_groups("memory"))
    return min([psutil.virtual_memory().available, *(room for room in rooms if room is not None)])


def _find_room(folder: Path, files: GroupFiles) -> int | None:
    """Bytes below the limit of a group; None where it has none, or its files are not there."""
    try:
        limit = int((folder / files.limit).read_text())  # "max" is no number
        usage = int((folder / files.usage).read_text())
    except (OSError, ValueError):
        return None
    return max(0, limit - max(0, usage - _count_file_pages(folder, files)))


def _count_file_pages(folder: Path, files: GroupFiles) -> int:
    """Bytes of files that a group caches; 0 where its statistics do not say."""
    try:
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(statistics[name]) for name in files.file_pages)
    except (OSError, ValueError, KeyError):
        return 0
