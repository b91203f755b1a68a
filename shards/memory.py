"""How much memory is free: of the machine, and of the control group of this process.

A container, a pod or a batch job has a limit of its own, which the machine's figures do not show. Who takes
more is killed by the kernel without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

PROCESS_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")


class GroupFiles(NamedTuple):
    """The names that one version of cgroups gives to its files, and to pages of files in its statistics."""

    limit: str
    usage: str
    file_pages: tuple[str, str]


VERSION_1 = GroupFiles(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
)
VERSION_2 = GroupFiles("memory.max", "memory.current", ("active_file", "inactive_file"))


def find_free_memory() -> int:
    """Bytes that this process can still take.

    What a group uses to cache files counts as free, as in the machine's figure: the kernel gives it back.
    Where there are no groups, or their files cannot be read, it is the machine's figure alone.
    """
    rooms = (_find_room(folder, files) for folder, files in _list_groups())
    return min([psutil.virtual_memory().available, *(room for room in rooms if room is not None)])


def _list_groups() -> Iterator[tuple[Path, GroupFiles]]:
    """Folders of the groups that this process is in, the innermost first: each one's limit holds for it."""
    try:
        lines = PROCESS_GROUPS.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, membership = line.partition(":")
        controllers, colon, name = membership.partition(":")
        if not controllers and colon:
            files, mounts = VERSION_2, (GROUPS, GROUPS / "unified")
        elif "memory" in controllers.split(","):
            files, mounts = VERSION_1, (GROUPS / "memory", GROUPS / controllers)
        else:
            continue
        path = PurePosixPath(name.lstrip("/"))
        if ".." in path.parts:  # a group outside those that this container sees
            path = PurePosixPath()
        # In a container the path may be the host's, and only the mount itself is there: its own group.
        for folder in mounts:
            yield from ((folder / group, files) for group in dict.fromkeys((path, *path.parents)))


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
