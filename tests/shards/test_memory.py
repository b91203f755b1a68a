"""Free memory is the least of what the machine has and what the groups around this process allow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shards import cgroups, resident
from shards.memory import find_free_memory
from shards.schema import ShardError
from tests.shards import test_streaming as streaming

MACHINE = 100_000
NO_LIMIT = 9223372036854771712  # as version 1 says it


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of made groups."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))
    monkeypatch.setattr(cgroups, "PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def write_group(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def version_2(limit: object, usage: int, active: int = 0, inactive: int = 0) -> dict[str, object]:
    statistics = f"anon {usage}\nactive_file {active}\ninactive_file {inactive}"
    return {"memory.max": limit, "memory.current": usage, "memory.stat": statistics}


def version_1(limit: int, usage: int, active: int = 0, inactive: int = 0) -> dict[str, object]:
    statistics = f"active_file 1\ntotal_active_file {active}\ntotal_inactive_file {inactive}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": statistics}


def write_membership(*lines: str) -> None:
    cgroups.PROCESS_GROUPS.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("group", "free"),
    [
        (version_2(3000, 1000), 2000),
        (version_2(3000, 2900, active=500, inactive=1400), 2000),
        (version_2(3000, 3100), 0),
        (version_2(3000, 100, active=900), 3000),
        (version_2(900_000, 1000), MACHINE),
        (version_2("max", 1000), MACHINE),
        ({"memory.max": 3000}, MACHINE),
        (version_2(3000, 1000) | {"memory.stat": "nothing of files"}, 2000),
    ],
)
def test_a_container_has_what_its_limit_leaves_and_what_caches_files(
    group: Mapping[str, object], free: int, groups: Path
) -> None:
    write_membership("0::/")
    write_group(groups, group)
    assert find_free_memory() == free


@pytest.mark.parametrize("tightest", ["job.slice", "job.slice/step", ""])
def test_the_limit_of_every_group_around_the_process_holds(tightest: str, groups: Path) -> None:
    write_membership("0::/job.slice/step")
    for path in ("", "job.slice", "job.slice/step"):
        limit = 2000 if path == tightest else 4000
        write_group(groups / path, version_2(limit, 500))
    write_group(groups / "job.slice" / "another", version_2(600, 500))
    assert find_free_memory() == 1500


@pytest.mark.parametrize("mount", ["memory", "cpu,memory"])
def test_the_first_version_of_groups_is_read_too(mount: str, groups: Path) -> None:
    write_membership("9:name=systemd:/", f"4:{mount}:/jobs/7", "3:cpuset:/", "0::/")
    folder = groups / mount
    write_group(folder, version_1(NO_LIMIT, 50_000))
    write_group(folder / "jobs", version_1(NO_LIMIT, 40_000))
    assert find_free_memory() == MACHINE
    write_group(folder / "jobs" / "7", version_1(3000, 2900, active=400, inactive=500))
    assert find_free_memory() == 1000


@pytest.mark.parametrize(
    ("line", "folder", "group"),
    [
        ("4:memory:/docker/0123", "memory", version_1(3000, 1000)),
        ("0::/../../other", "", version_2(3000, 1000)),
        ("0::/kubepods/pod1", "unified", version_2(3000, 1000)),
    ],
)
def test_a_path_of_the_host_s_means_the_group_that_is_mounted(
    line: str, folder: str, group: Mapping[str, object], groups: Path
) -> None:
    write_membership(line)
    write_group(groups / folder, group)
    assert find_free_memory() == 2000


@pytest.mark.parametrize("lines", [(), ("0::/",), ("3:cpuset:/a",)])
def test_without_limits_the_machine_s_memory_counts(lines: tuple[str, ...]) -> None:
    assert find_free_memory() == MACHINE
    write_membership(*lines)
    assert find_free_memory() == MACHINE


def test_a_dataset_that_fits_the_machine_and_not_the_container_is_refused(
    groups: Path, tmp_path: Path
) -> None:
    folder = streaming.dataset(tmp_path / "shards")
    write_membership("0::/")
    write_group(groups, version_2(9000, 1000))
    with pytest.raises(ShardError, match=r"frames take 0\.0 GB, of 0\.0 GB free on cpu 80% may be used"):
        streaming.resident(folder)
    assert streaming.windowed(folder)[0].memory_bytes == int(resident.MEMORY_SHARE * 8000)
