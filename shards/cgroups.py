"""The control groups that this process is in: those of a container, a pod or a batch job have limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

PROCESS_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")

Version = Literal[1, 2]


def list_groups(controller: Literal["cpu", "memory"]) -> Iterator[tuple[Path, Version]]:
    """Folders of the groups with a controller, the innermost first: each one's limit holds for this process.

    The version of cgroups says which files are there. Nothing where there are no groups; a folder may not
    exist.
    """
    try:
        lines = PROCESS_GROUPS.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, membership = line.partition(":")
        controllers, colon, name = membership.partition(":")
        version: Version
        if not controllers and colon:
            version, mounts = 2, (GROUPS, GROUPS / "unified")
        elif controller in controllers.split(","):
            version, mounts = 1, (GROUPS / controller, GROUPS / controllers)
        else:
            continue
        path = PurePosixPath(name.lstrip("/"))
        if ".." in path.parts:  # a group outside those that this container sees
            path = PurePosixPath()
        # In a container the path may be the host's, and only the mount itself is there: its own group.
        for folder in mounts:
            yield from ((folder / group, version) for group in dict.fromkeys((path, *path.parents)))
