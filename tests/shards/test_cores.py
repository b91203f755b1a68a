"""The cores that a process may use, and its place among the ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards import cgroups
from shards.cores import count_cores
from shards.errors import ShardError
from shards.torchrun import Place, check_meeting_point, read_place

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of made groups; this process may use 16 cores, and no launcher has started it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(cgroups, "PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "groups"


def write_limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("limit", "n_cores"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("5", 16),
     ("9900000 100000", 16)],
)  # fmt: skip
def test_a_container_has_the_cores_of_its_limit(limit: str, n_cores: int, groups: Path) -> None:
    cgroups.PROCESS_GROUPS.write_text("0::/job/step\n")
    write_limit(groups / "job", cpu_max=limit)
    write_limit(groups / "job" / "step", cpu_max="max 100000")
    assert count_cores() == n_cores


@pytest.mark.parametrize(("quota", "n_cores"), [("-1", 16), ("200000", 2)])
def test_the_first_version_of_groups_limits_cores_too(quota: str, n_cores: int, groups: Path) -> None:
    cgroups.PROCESS_GROUPS.write_text("4:memory:/\n3:cpu,cpuacct:/\n")
    write_limit(groups / "cpu,cpuacct", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    assert count_cores() == n_cores


def test_a_machine_without_groups_has_the_cores_that_are_assigned_to_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert count_cores() == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert count_cores() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


def test_workers_by_default_are_the_cores_that_may_be_used_divided_among_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.commands.train import default_workers

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert default_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 4


def test_a_process_that_no_launcher_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_place() == Place(0, 1, 0, 1)
    for name, value in zip(VARIABLES[:4], "5812", strict=True):
        monkeypatch.setenv(name, value)
    assert read_place() == Place(5, 8, 1, 2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many', expected a number from 1 to"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', expected a number from 1 to"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0', expected a number from 1"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1', expected"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2', expected a number from 0 to 1"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, and RANK, MASTER_ADDR, MASTER_PORT not set; start"),
        ({"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)  # fmt: skip
def test_an_environment_that_torchrun_does_not_make_is_one_line(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ShardError) as caught:
        check_meeting_point(read_place())
    assert str(caught.value).startswith(message)
