"""The pool on a cluster that breaks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.runner import DaskMapper
from stages.engine.outcome import StageError
from tests.build import PIPELINE
from tests.mounting import mount_before
from tests.waiting import wait_until

DASK = [sys.executable, "-m", "dask"]
ONE_DEATH = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
Start = Callable[..., list[subprocess.Popen[bytes]]]


def slowly(item: int) -> int:
    time.sleep(0.05)
    return item


def end_this_worker(item: int) -> int:
    os._exit(1)


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start(address: str) -> Iterator[Start]:
    """Starts a scheduler at the address, and a worker; both with the variables that are given."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(**variables: str) -> list[subprocess.Popen[bytes]]:
        host, port = address.removeprefix("tcp://").split(":")
        for words in (
            ["scheduler", "--host", host, "--port", port, "--no-dashboard"],
            ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"],
        ):
            processes.append(
                subprocess.Popen(
                    [*DASK, *words],
                    env=os.environ | ONE_DEATH | variables,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        return processes[-2:]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def leave_scratch(item: int) -> str:
    return tempfile.mkdtemp()


def test_what_a_worker_leaves_in_its_temporary_folder_goes_with_it() -> None:
    with DaskMapper(1, None, quiet=True) as mapper:
        [folder] = map(Path, mapper(leave_scratch, [0], label=""))
        assert folder.is_dir() and folder.parent.name.startswith("redub.")
    assert not folder.parent.exists()


def tell_process(item: int) -> int:
    time.sleep(0.5)  # so that an idle worker would be given one of the others
    return os.getpid()


def test_there_are_no_more_workers_than_tasks_and_later_tasks_get_theirs() -> None:
    with DaskMapper(3, None, quiet=True) as mapper:
        assert len(set(mapper(tell_process, [0], label=""))) == 1
        assert mapper._client is not None
        assert len(mapper._client.cluster.workers) == 1
        assert wait_until(lambda: len(set(mapper(tell_process, range(3), label=""))) == 3)
        list(mapper(tell_process, [0], label=""))
        assert len(mapper._client.cluster.workers) == 3, "they stay for the stages to come"


def test_a_scheduler_that_is_lost_is_asked_again_for_what_is_left(address: str, start: Start) -> None:
    running = start()
    with DaskMapper(1, address, quiet=True) as mapper:
        results = []
        for result in mapper(slowly, range(60), label=""):
            results.append(result)
            if len(results) == 5:
                for process in running:
                    process.kill()
                    process.wait()
                start()
    assert sorted(results) == list(range(60)), "each once"


def test_a_task_that_ends_its_workers_ends_the_run_with_a_line(address: str, start: Start) -> None:
    start()
    with (
        DaskMapper(1, address, quiet=True) as mapper,
        pytest.raises(StageError, match="killed every worker that ran it"),
    ):
        list(mapper(end_this_worker, [0], label=""))


def test_a_worker_with_another_library_writes_nothing_under_the_command_s_keys(
    address: str, start: Start, tmp_path: Path
) -> None:
    """Of a folder that both see: a bucket build has a check of its own."""
    (tmp_path / "other" / "av-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "other" / "av-1.0.dist-info" / "METADATA").write_text("Name: av\nVersion: 1.0\n")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"no video")
    start(PYTHONPATH=os.pathsep.join([str(tmp_path / "other"), *filter(None, sys.path)]))
    words = ["clips", "--dataset", "folder", "--raw", tmp_path / "raw", "--work", tmp_path / "work"]
    finished = subprocess.run(
        [*PIPELINE, *map(str, words), "--scheduler", address], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    expected = f"has av 1.0, expected {metadata.version('av')}: it would make other bytes"
    assert expected in finished.stderr and finished.stderr.count("\n") == 1
    assert not list((tmp_path / "work").rglob("*.npz"))


@pytest.mark.parametrize(
    ("soft", "hard", "result"),
    [(16, 16, "--workers 2: they need 80 open files, and this shell allows 16 (`ulimit -n`)"),
     (16, 200, "80"), (100, 200, "100"), (79, 79, "--workers 2: they need 80 open files")],
)  # fmt: skip
def test_too_few_open_files_are_a_line_before_the_scheduler_spins(soft: int, hard: int, result: str) -> None:
    code = f"""if True:
        import resource
        from pipeline.runner import allow_open_files
        from stages.engine.outcome import StageError
        resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
        try:
            allow_open_files(2)
            print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        except StageError as err:
            print(err)
    """
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith(result)


START = """if True:
    from pipeline.runner import start_local_client
    from stages.engine.outcome import StageError
    try:
        with start_local_client(1, 1):
            pass
    except StageError as err:
        print(err)
"""


def test_workers_that_the_system_does_not_start_are_a_line_with_its_reason() -> None:
    """As in a sandbox without shared memory, which the semaphores of processes need."""
    command = [*mount_before("-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"), sys.executable, "-c", START]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout == "--workers 1: they do not start (Read-only file system)\n"
