from __future__ import annotations

import errno
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards.ledger import DROPPED, FAILED, OK
from stages.engine import sandbox
from stages.engine.outcome import MACHINE_ERRORS, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from tests.waiting import GUARD_SECONDS, is_gone, wait_until

MEGABYTE = 2**20
HERE = Path(__file__).parent
QUICK = LimitParams(deadline_seconds=0.6, deadline_per_second=0.0, memory_mb=300)
GOOD = LimitParams(deadline_seconds=30.0)


@pytest.fixture(autouse=True)
def _no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children can import misbehave.py, and none of them outlives its test, not even as a zombie."""
    monkeypatch.syspath_prepend(os.fspath(HERE))
    monkeypatch.setenv("PYTHONPATH", os.fspath(HERE))  # of processes whose children they are
    kill_idle_children()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    kill_idle_children()
    survivors = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not survivors


def kill_idle_children() -> None:
    while True:
        try:
            sandbox._idle.get_nowait().kill()
        except queue.Empty:
            return


def name_function(module: str, name: str) -> Callable[..., Outcome]:
    """A function that only the child can call: here it has a name and no body."""

    def function(**arguments: Any) -> Outcome:
        raise AssertionError("jobs run in the child")

    function.__module__, function.__qualname__ = module, name
    return function


def run(
    function: str,
    limits: LimitParams = GOOD,
    *,
    video_seconds: float = 0.0,
    on_poll: Callable[[], None] = lambda: None,
    **arguments: Any,
) -> Outcome:
    """Run a function of misbehave.py in the sandbox."""
    job = ClipJob(name_function("misbehave", function), **arguments)
    return sandbox.run(job, limits, video_seconds=video_seconds, on_poll=on_poll)


def read_doubled(outcome: Outcome) -> int:
    assert outcome.status == OK, outcome
    number: int = outcome.facts["doubled"]
    return number


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_an_outcome_comes_back_with_its_facts() -> None:
    outcome = run("double", number=21)
    assert read_doubled(outcome) == 42
    assert outcome.facts["pid"] != os.getpid()


def test_a_warm_child_is_used_again_and_replaced_after_its_number_of_clips() -> None:
    limits = LimitParams(clips_per_child=2)
    pids = [run("double", limits, number=k).facts["pid"] for k in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


@pytest.mark.parametrize("how", ["hang", "hang_in_c", "hang_with_a_child"])
def test_a_hang_ends_at_its_deadline_and_neighbours_are_unharmed(tmp_path: Path, how: str) -> None:
    pids = tmp_path / "pids"
    # Within the deadline the job starts a child and writes down both pids.
    limits = replace(QUICK, deadline_seconds=4.0)
    started = time.monotonic()
    outcome = run(how, limits, pids=os.fspath(pids))
    assert time.monotonic() - started < GUARD_SECONDS, "the job would sleep twice as long"
    assert (outcome.status, outcome.code) == (FAILED, "hang")
    assert outcome.reason == f"no answer within {limits.deadline_seconds:g} s (tried 2 times)"
    killed = pids_in(pids)
    assert len(killed) == (4 if how == "hang_with_a_child" else 2)
    assert wait_until(lambda: all(is_gone(pid) for pid in killed))
    assert read_doubled(run("double", number=4)) == 8


def test_a_longer_clip_has_a_later_deadline(tmp_path: Path) -> None:
    limits = LimitParams(deadline_seconds=0.2, deadline_per_second=2.0)
    assert limits.compute_deadline(0.5) == pytest.approx(1.2)
    started = time.monotonic()
    outcome = run("hang", limits, video_seconds=0.5, pids=os.fspath(tmp_path / "pids"))
    assert outcome.reason.startswith("no answer within 1.2 s")
    assert time.monotonic() - started > 2 * 1.2


@pytest.mark.parametrize(
    ("function", "args", "words"),
    [
        ("segfault", {}, "was killed by SIGSEGV"),
        ("abort", {}, "was killed by SIGABRT: free(): invalid pointer"),
        ("leave", {"code": 3}, "SystemExit: 3 (leave:"),
        ("leave_at_once", {"code": 0}, "exited with 0"),
        ("fail", {"number": 7}, "ValueError: number is 7, expected 8 (fail:"),
        ("not_json", {}, "not JSON serializable"),
        ("no_such_function", {}, "no attribute 'no_such_function'"),
    ],
)
def test_a_crash_is_reported_and_neighbours_are_unharmed(
    function: str, args: dict[str, Any], words: str
) -> None:
    outcome = run(function, **args)
    assert (outcome.status, outcome.code) == (FAILED, "crash")
    assert words in outcome.reason and outcome.reason.endswith("(tried 2 times)")
    assert read_doubled(run("double", number=5)) == 10


def test_what_our_modules_warn_of_in_the_child_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    assert run("warn", words="waiting\nfor a lock", n=2).status == OK
    assert caplog.messages == ["waiting for a lock"] * 2


def test_warnings_put_off_no_deadline() -> None:
    outcome = run("warn", QUICK, words="still here", n=10_000)
    assert (outcome.status, outcome.code) == (FAILED, "hang")


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize("name", ["RLIMIT_CORE", "RLIMIT_FSIZE"])
@pytest.mark.parametrize(
    ("soft", "hard"),
    [(10 * MEGABYTE, 20 * MEGABYTE), (30 * MEGABYTE, 30 * MEGABYTE), (10 * MEGABYTE, UNLIMITED),
     (2**40, 2**41), (UNLIMITED, UNLIMITED)],
)  # fmt: skip
def test_no_limit_of_the_process_is_raised(name: str, soft: int, hard: int) -> None:
    """As after ``ulimit`` on a login node: raising a hard limit again fails for all but root."""
    if hard == UNLIMITED and resource.getrlimit(getattr(resource, name))[1] != UNLIMITED:
        pytest.skip("the limits here are lower")
    ours = sandbox.CHILD_LIMITS[getattr(resource, name)]
    code = "import json, resource; from tests.stages.engine.test_sandbox import run; "
    code += f"resource.setrlimit(resource.{name}, ({soft}, {hard})); "
    code += "outcome = run('read_limits'); print(json.dumps(outcome.to_json()))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    outcome = json.loads(finished.stdout)
    assert outcome["status"] == OK, outcome

    def lower(limit: int) -> int:
        return ours if limit == UNLIMITED else min(limit, ours)

    assert outcome["facts"][name] == [lower(soft), lower(hard)]


def test_every_limit_is_tested() -> None:
    assert set(sandbox.CHILD_LIMITS) == {resource.RLIMIT_CORE, resource.RLIMIT_FSIZE}


@pytest.mark.parametrize("place", ["file/x", "folder", "x" * 256])
def test_a_file_that_cannot_be_written_is_no_fault_of_the_clip(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="Errno") as caught:
        run("write", path=tmp_path / place)
    assert str(caught.value.filename).startswith(str(tmp_path / place.partition("/")[0]))
    assert read_doubled(run("double", number=5)) == 10


@pytest.mark.parametrize("number", sorted(MACHINE_ERRORS))
def test_a_machine_that_is_full_is_no_fault_of_the_clip(number: int) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        run("raise_os_error", number=number)
    assert (caught.value.errno, caught.value.filename) == (number, "/a/file")


def test_a_file_that_cannot_be_read_is_the_clip_s_own_fault() -> None:
    outcome = run("raise_os_error", number=errno.EIO)
    assert (outcome.status, outcome.code) == (FAILED, "crash") and "/a/file" in outcome.reason


def test_a_module_that_is_not_there_is_a_crash_that_names_it() -> None:
    outcome = sandbox.run(ClipJob(name_function("nowhere_to_be_found", "run")), GOOD)
    assert (outcome.status, outcome.code) == (FAILED, "crash")
    assert "nowhere_to_be_found" in outcome.reason


@pytest.mark.parametrize("step_mb", [16, 500])
def test_a_child_that_eats_memory_is_killed_at_its_limit(step_mb: int) -> None:
    limits = LimitParams(deadline_seconds=30.0, memory_mb=300)
    outcome = run("eat", limits, step_mb=step_mb)
    assert (outcome.status, outcome.code) == (FAILED, "memory")
    assert "limits.memory_mb is 300" in outcome.reason
    assert read_doubled(run("double", limits, number=7)) == 14


def test_a_drop_is_an_answer_and_is_not_tried_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    outcome = run("drop", calls=os.fspath(calls))
    assert outcome == Outcome(DROPPED, "too_dull", "its plot has 0 twists, expected 1 or more")
    assert len(pids_in(calls)) == 1


def test_what_a_library_prints_is_no_answer() -> None:
    outcome = run("chatter", megabytes=3)
    assert outcome == Outcome(facts={"said": 3})
    assert read_doubled(run("double", number=8)) == 16
    assert "SIGSEGV" in run("segfault").reason


def test_a_job_that_fails_once_is_tried_again_in_a_fresh_child(tmp_path: Path) -> None:
    warm = run("double", number=1).facts["pid"]
    outcome = run("fail_at_first", state=os.fspath(tmp_path / "state"))
    assert outcome.status == OK
    first, second = map(int, outcome.facts["pids"])
    assert first == warm and second != warm


def test_a_second_try_is_made_in_a_child_that_has_seen_no_other_clip(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(run, "double", number=k) for k in range(2)]
        warm = {future.result().facts["pid"] for future in both}
    outcome = run("fail_at_first", state=os.fspath(tmp_path / "state"))
    assert int(outcome.facts["pids"][1]) not in warm


def test_a_child_killed_between_two_clips_costs_nothing() -> None:
    pid = run("double", number=1).facts["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: is_gone(pid))
    again = run("double", number=9)
    assert read_doubled(again) == 18
    assert again.facts["pid"] != pid


def test_a_child_killed_within_a_clip_is_tried_again(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    limits = LimitParams(deadline_seconds=4.0)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(run, "hang", limits, pids=os.fspath(pids))
        assert wait_until(lambda: pids.exists() and pids_in(pids))
        os.kill(pids_in(pids)[0], signal.SIGKILL)
        outcome = running.result()
    assert len(pids_in(pids)) == 2
    assert outcome.code == "hang"


def test_good_jobs_among_bad_ones_all_give_their_right_result(tmp_path: Path) -> None:
    jobs: list[Callable[[], Outcome]] = []
    for k in range(12):
        jobs.append(partial(run, "double", number=k))
        if k % 4 == 0:
            jobs.append(partial(run, "segfault"))
        if k % 4 == 2:
            jobs.append(partial(run, "hang", QUICK, pids=os.fspath(tmp_path / f"{k}")))
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(lambda job: job(), jobs))
    good = [outcome for outcome in outcomes if "doubled" in outcome.facts]
    assert [read_doubled(outcome) for outcome in good] == [2 * k for k in range(12)]
    assert sorted({outcome.code for outcome in outcomes if outcome.status != OK}) == ["crash", "hang"]


# A shell starts what runs in its background with Ctrl-C ignored; the parent is to die of it.
PARENT = """
import json, signal, sys
import misbehave
from stages.engine import sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)
function, pids, deadline = json.loads(sys.argv[1])
job = sandbox.ClipJob(getattr(misbehave, function), pids=pids)
sandbox.run(job, sandbox.LimitParams(deadline_seconds=deadline))
"""


def start_a_parent(function: str, pids: Path, deadline: float = 60.0) -> subprocess.Popen[bytes]:
    """Another process that runs a job in its own sandbox."""
    arguments = json.dumps([function, os.fspath(pids), deadline])
    return subprocess.Popen([sys.executable, "-c", PARENT, arguments])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_child_goes_when_its_parent_dies(tmp_path: Path, how: signal.Signals) -> None:
    pids = tmp_path / "pids"
    with start_a_parent("hang", pids) as parent:
        assert wait_until(lambda: pids.exists() and pids_in(pids))
        [child] = pids_in(pids)
        assert not is_gone(child)
        parent.send_signal(how)
        parent.wait(timeout=GUARD_SECONDS)
        assert wait_until(lambda: is_gone(child))


def test_a_child_that_holds_the_interpreter_ends_itself_when_its_parent_dies(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with start_a_parent("hang_in_c", pids, deadline=3.0) as parent:
        assert wait_until(lambda: pids.exists() and pids_in(pids))
        [child] = pids_in(pids)
        parent.kill()
        parent.wait(timeout=GUARD_SECONDS)
        assert wait_until(lambda: is_gone(child))


def test_who_waits_is_polled_again_and_again() -> None:
    polls = iter(range(20))

    def interrupt_at_last() -> None:
        if next(polls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("hang", pids="/dev/null", on_poll=interrupt_at_last)


def test_a_call_that_is_interrupted_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    """As by Ctrl-C while a job is at work."""
    pids = tmp_path / "pids"

    def interrupt() -> None:
        if pids.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("hang", pids=os.fspath(pids), on_poll=interrupt)
    assert all(wait_until(lambda pid=pid: is_gone(pid)) for pid in pids_in(pids))
    assert read_doubled(run("double", number=4)) == 8
