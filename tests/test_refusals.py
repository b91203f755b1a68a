"""Commands on a machine that refuses disk, memory or handles, has a wrong clock, or kills processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.build import PIPELINE, hash_files, pipeline
from tests.killing import JOBS, read_output
from tests.model import worlds
from tests.refusing import REFUSALS
from tests.test_kills import make_world
from tests.waiting import GUARD_SECONDS, is_gone, wait_until

# tests/pipeline/test_errors.py has the commonest refusals of each command.
pytestmark = pytest.mark.skipif(
    not os.environ.get("REDUB_PATIENT"), reason="takes minutes; $REDUB_PATIENT=1 waits for it"
)
SANDBOX = "stages.engine.sandbox"
FUTURE = 4_102_444_800  # 2100-01-01


@pytest.fixture(scope="module")
def world(grid: Path, landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, grid)
    return folder


@pytest.mark.parametrize("refusal", [refusal.name for refusal in REFUSALS])
def test_what_the_machine_refuses_ends_a_command_in_one_line_or_does_not_stop_it(
    refusal: str, world: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.refusing", "--world", world, "--folder", tmp_path]
    process = subprocess.run(
        [*map(str, command), "--refusal", refusal],
        env=os.environ | worlds.ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    rows: list[dict[str, Any]] = json.loads(process.stdout)
    if not rows:
        pytest.skip("only root can mount file systems of its own")
    problems = [row for row in rows if not ends_well(row)]
    assert not problems, "\n".join(f"{row['command']}: {row['code']}\n{row['output']}" for row in problems)


def ends_well(row: dict[str, Any]) -> bool:
    """Whether a command succeeded, or failed with one line on the error, and left no partial file."""
    lines = row["output"].strip().splitlines()
    n_errors = sum(line.startswith("Error: ") for line in lines)
    is_refused = row["code"] == 1 and n_errors == 1 and lines[-1].startswith("Error: ")
    return (row["code"] == 0 or is_refused) and "Traceback" not in row["output"] and not row["left"]


def test_files_from_the_future_are_as_good_as_others(world: Path) -> None:
    """As after the clock was set back: nothing is computed again, and nothing waits for a time to come."""
    for path in [world, *world.rglob("*")]:
        os.utime(path, (FUTURE, FUTURE))
    folders = ("work/shards", "run", "samples", "evaluation")
    before = {folder: read_output(world / folder) for folder in folders}
    summary = json.loads(pipeline(*JOBS["shard"].words(world, world / "work"), "--json"))
    assert [stage["clips_computed"] for stage in summary["stages"]] == [0] * len(summary["stages"])
    for name, out in {"train": "run", "sample": "samples", "evaluate": ".", "report": "."}.items():
        pipeline(*JOBS[name].words(world, world / out))
    assert {folder: read_output(world / folder) for folder in folders} == before


@pytest.mark.parametrize(
    ("name", "victim", "out"),
    [
        ("shard", SANDBOX, "work/shards"),
        # Dask's worker, with its own sandbox.
        ("shard", "multiprocessing.spawn", "work/shards"),
        ("edit", SANDBOX, ""),
        ("evaluate", SANDBOX, "evaluation"),
        ("evaluate", "multiprocessing.spawn", "evaluation"),
    ],
)
def test_a_killed_process_of_a_command_is_replaced_and_changes_no_byte(
    name: str, victim: str, out: str, world: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if name == "edit":
        pipeline(*JOBS[name].words(world, work))
        expected = hash_files(work)
    else:
        expected = read_output(world / out)
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*PIPELINE, *map(str, JOBS[name].words(world, work))], stdout=file, stderr=file
        )
    killed: list[int] = []

    def kill_one() -> bool:
        """Kill the first process of this kind that is at work."""
        for child in list_children(process.pid):
            try:
                if victim in " ".join(child.cmdline()) and is_at_work(child):
                    child.kill()
                    killed.append(child.pid)
                    return True
            except psutil.Error:
                continue
        return process.poll() is not None

    assert wait_until(kill_one) and killed, log.read_text()
    assert wait_until(lambda: is_gone(killed[0]))
    assert process.wait(timeout=GUARD_SECONDS) == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    made = tmp_path / ("work" if name == "edit" else out.replace("evaluation", "work/evaluation"))
    assert read_output(made) == expected


def is_at_work(process: psutil.Process) -> bool:
    """Whether a sandbox has used CPU time for its libraries, or a worker has a sandbox."""
    if SANDBOX in " ".join(process.cmdline()):
        return bool(sum(process.cpu_times()[:2]) > 1)
    return any(SANDBOX in " ".join(child.cmdline()) for child in process.children())


def list_children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
