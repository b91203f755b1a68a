"""Work on a stranger's file, in a warmed child process that may hang, crash or eat memory.

The parent gives the child one clip at a time, with a deadline and a memory limit. When the child
breaks either, or dies, it is killed with its whole process group, the clip is tried once more in a
fresh child that has seen no other clip, and if that fails too the clip's row in the ledger says why.
The other clips never notice.

Talk is one JSON object a line, so nothing is unpickled. ``python -m stages.engine.sandbox`` is the child.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.ledger import FAILED, OK
from stages.engine.cache import load_entry
from stages.engine.outcome import Drop, Outcome, StageError

WARM_UP_SECONDS = 600.0  # loading libraries; the first librosa on a machine compiles for half a minute
POLL_SECONDS = 0.1
ORPHAN_FACTOR = 2  # times its deadline, after which a child whose parent is gone ends itself
STDERR_TAIL = 600
MAX_ANSWER_BYTES = 64 * 2**20
MAX_FILE_BYTES = 8 * 2**30  # a decoder that writes without end fills no disk
TRIES = 2
MEGABYTE = 2**20


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LimitParams:
    """Bounds on the work on one clip. They change no result, so no cache key holds them."""

    deadline_seconds: float = Field(default=60.0, gt=0)  # for any clip
    deadline_per_second: float = Field(default=20.0, ge=0)  # and for each second of its video
    memory_mb: int = Field(default=1400, ge=200)  # resident, of the child
    clips_per_child: int = Field(default=500, ge=1)  # then a fresh one, in case a library leaks
    max_drop_fraction: float = Field(default=0.5, ge=0, le=1)  # a stage that loses more exits with 1


@dataclass(frozen=True, slots=True)
class ClipJob:
    """One call of ``module:function`` on one clip. Arguments and facts are what JSON can carry."""

    function: str
    args: dict[str, Any]
    seconds: float  # of video, for the deadline
    limits: LimitParams

    @property
    def deadline_seconds(self) -> float:
        return self.limits.deadline_seconds + self.seconds * self.limits.deadline_per_second


class SandboxFailure(Exception):
    """The child hung, crashed or ate too much memory."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def run(job: ClipJob, waiting: Callable[[], None] = lambda: None) -> Outcome:
    """The outcome of the job; a failure only after a second try, alone in a fresh child.

    ``waiting`` is called some ten times a second meanwhile: a long job may leave word in a file.
    """
    failure: SandboxFailure | None = None
    for _ in range(TRIES):
        with _a_child(fresh=failure is not None) as child:
            try:
                return child.call(job, waiting)
            except SandboxFailure as err:
                failure = err
                child.kill()
            except BaseException:  # Ctrl-C: the answer would come to the next who asks
                child.kill()
                raise
    assert failure is not None, "the loop above runs at least once"
    return Outcome(FAILED, failure.code, f"{failure.reason} (tried {TRIES} times)")


def run_or_raise(job: ClipJob, path: Path, waiting: Callable[[], None] = lambda: None) -> Outcome:
    """The outcome of a job on a file without which nothing goes on. Raises StageError, which names it."""
    outcome = run(job, waiting)
    if outcome.status != OK:
        raise StageError(f"{path}: {outcome.reason}")
    return outcome


def run_for_arrays(
    function: str, args: dict[str, Any], seconds: float, limits: LimitParams
) -> dict[str, NDArray[Any]]:
    """What a function with these ``args`` saves in the file ``entry``. Raises Drop where there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder, "entry.npz")
        outcome = run(ClipJob(function, args | {"entry": os.fspath(entry)}, seconds, limits))
        kept = load_entry(entry) if outcome.status == OK else None
    if kept is None:
        raise Drop(outcome.code, outcome.reason)
    return kept[1]


_idle: queue.LifoQueue[Child] = queue.LifoQueue()


@contextlib.contextmanager
def _a_child(*, fresh: bool) -> Iterator[Child]:
    """Borrow a warm child of this process. A thread that finds none idle starts one."""
    try:
        child = _idle.get_nowait()
        if fresh:
            child.kill()
    except queue.Empty:
        child = Child()
    try:
        yield child
    finally:
        _idle.put(child)


@atexit.register
def _end_idle_children() -> None:
    while not _idle.empty():
        _idle.get_nowait().kill()


class Child:
    """The parent's end of one child process, started when first called."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._buffer = b""

    def call(self, job: ClipJob, waiting: Callable[[], None]) -> Outcome:
        """Raises SandboxFailure when the child did not answer as it should."""
        if self._calls >= job.limits.clips_per_child:
            self.kill()
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self._calls += 1
        self._stderr.truncate(0)
        try:
            words = [job.function, job.args, job.deadline_seconds]
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as err:
            raise self._crashed() from err
        self._answer(WARM_UP_SECONDS, job.limits.memory_mb, waiting)  # "warm"
        answer = self._answer(job.deadline_seconds, job.limits.memory_mb, waiting)
        return Outcome.from_json(answer)

    def kill(self) -> None:
        """End the child and whatever it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile("ab+")  # noqa: SIM115, closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.engine.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # a process group of its own, to be killed whole
            env=child_environment(),
        )
        self._calls = 0
        self._buffer = b""

    def _answer(self, deadline_seconds: float, memory_mb: int, waiting: Callable[[], None]) -> dict[str, Any]:
        """The next line from the child, or SandboxFailure."""
        assert self._process is not None and self._process.stdout is not None
        process = psutil.Process(self._process.pid)
        pipe = self._process.stdout.fileno()
        watch = select.poll()  # select() knows no descriptor above 1023
        watch.register(pipe, select.POLLIN | select.POLLHUP)
        until = time.monotonic() + deadline_seconds
        while b"\n" not in self._buffer:
            waiting()
            if watch.poll(POLL_SECONDS * 1000):
                data = os.read(pipe, 65536)
                if not data:
                    raise self._crashed()
                self._buffer += data
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.memory_info().rss // MEGABYTE
                if used > memory_mb:
                    raise SandboxFailure(
                        "memory", f"used {used} MB of memory, limits.memory_mb is {memory_mb}"
                    )
            if time.monotonic() > until:
                raise SandboxFailure("hang", f"no answer within {deadline_seconds:g} s")
            if len(self._buffer) > MAX_ANSWER_BYTES:
                raise SandboxFailure("crash", f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SandboxFailure("crash", answer["error"])
        return answer

    def _crashed(self) -> SandboxFailure:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return SandboxFailure("crash", "the child process closed its pipe")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        self._stderr.seek(0)
        tail = self._stderr.read()[-STDERR_TAIL:].decode(errors="replace").strip().splitlines()
        return SandboxFailure("crash", f"the child process {how}" + (f": {tail[-1]}" if tail else ""))


# One clip, one core: the pool decides how many run at once (and a torch mel took 15 times longer
# with two threads on a busy machine).
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOG_minloglevel": "2",  # MediaPipe greets with a dozen lines
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def child_environment() -> dict[str, str]:
    """This process's environment, but for what slows the child down.

    Dask has its workers give freed memory back at once (MALLOC_TRIM_THRESHOLD_). A child that frees and
    takes a frame's buffers 25 times a second then spends a fifth of its time on page faults.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    return inherited | CHILD_ENVIRONMENT


def serve() -> None:
    """The child: read a job a line, answer "warm" once its module is loaded, then the outcome."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    # Libraries print to descriptor 1 as they please; the answers go through one that they do not know.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    jobs: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    warm: set[str] = set()
    while True:
        name, args, deadline = json.loads(jobs.get())
        try:
            module_name, function_name = name.split(":")
            module = importlib.import_module(module_name)
            if module_name not in warm:
                getattr(module, "warm_up", lambda: None)()
                warm.add(module_name)
            answers.write(b'{"warm":true}\n')
            # Should the parent be gone and the job hold the interpreter, nobody else can end this process.
            faulthandler.dump_traceback_later(ORPHAN_FACTOR * deadline, exit=True)
            try:
                outcome = getattr(module, function_name)(**args)
            except Drop as drop:
                outcome = Outcome.dropped(drop)
            finally:
                faulthandler.cancel_dump_traceback_later()
            answer = json.dumps(outcome.to_json())
        except (Exception, SystemExit) as err:  # leaving would end in an abort: a thread reads stdin
            traceback.print_exc()
            where = traceback.extract_tb(err.__traceback__)[-1]
            answer = json.dumps({"error": f"{type(err).__name__}: {err} ({where.name}:{where.lineno})"})
        answers.write(answer.encode() + b"\n")


def _read_jobs(jobs: queue.Queue[bytes]) -> None:
    """Pass lines on; when the parent is gone, whatever the main thread does, go too."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    serve()
