"""Run work on an untrusted file in a warm child process that may hang, crash or use too much memory.

The parent sends the child one clip at a time, with a deadline and a memory limit. When the child exceeds
either, or dies, it is killed with its whole process group. The clip is tried once more in a fresh child
that has processed no other clip; if that fails too, the clip's row in the ledger says why. Other clips
are not affected.

Messages are one JSON object per line, so nothing is unpickled. The child runs ``CHILD_PROGRAM``. What our own
modules warn of in it, the parent logs.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import logging
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
from io import RawIOBase
from pathlib import Path
from typing import Any, ParamSpec

import psutil
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass as params_dataclass
from pydantic_core import to_jsonable_python

from shards.atomic import WriteError
from shards.errors import shorten_message
from shards.ledger import FAILED, OK
from stages.engine.cache import load_entry
from stages.engine.outcome import MACHINE_ERRORS, Drop, Outcome, StageError

WARM_UP_SECONDS = 600.0  # loading libraries; librosa's first import on a machine compiles for half a minute
POLL_SECONDS = 0.1
# The child imports from where its parent does. ``python -m`` would look in the user's folder first, for any
# module: a folder named `stages` or a file json.py there would take the place of ours or of Python's.
CHILD_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; import stages.engine.sandbox as child; child.serve()"
ORPHAN_FACTOR = 2  # a child whose parent is gone exits after so many deadlines
STDERR_TAIL = 600
MAX_REPLY_BYTES = 64 * 2**20
MAX_FILE_BYTES = 8 * 2**30  # a decoder that never stops writing does not fill the disk
TRIES = 2
MEBIBYTE = 2**20

P = ParamSpec("P")

log = logging.getLogger(__name__)

DAY = 86_400.0  # seconds: no recording of one person talking is longer, nor should the work on one be
MAX_PIXELS = 2**28  # of a frame: 16384 x 16384


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LimitParams:
    """Bounds on the work on one clip. No cache key includes them: what breaks them is not in the cache."""

    deadline_seconds: float = Field(default=60.0, gt=0, le=DAY)  # for any clip
    deadline_per_second: float = Field(default=20.0, ge=0, le=3600)  # and for each second of its video
    memory_mb: int = Field(default=1400, ge=200, le=2**20)  # in MiB; resident, of the child
    clips_per_child: int = Field(default=500, ge=1, le=10**6)  # then a fresh one, in case a library leaks
    max_drop_fraction: float = Field(default=0.5, ge=0, le=1)  # a stage that loses more exits with 1

    def compute_deadline(self, video_seconds: float) -> float:
        """Seconds that the work on a clip of so many seconds may take."""
        return self.deadline_seconds + video_seconds * self.deadline_per_second


class ClipJob:
    """One call of a module-level function on one clip, to be made in the child.

        ClipJob(find_landmarks_in_file, path=path, start=0.0, n_frames=75, params=params, ...)

    Arguments are given by name. They cross as JSON, and the function's annotations turn them back into
    paths, dataclasses and fractions (pydantic). The function returns an ``Outcome`` whose facts are JSON too.
    """

    __slots__ = ("arguments", "function_name")

    def __init__(self, function: Callable[P, Outcome], *args: P.args, **kwargs: P.kwargs) -> None:
        assert not args, "arguments of a job are given by name"
        self.function_name = f"{function.__module__}:{function.__qualname__}"
        self.arguments: dict[str, Any] = to_jsonable_python(kwargs, fallback=str)


class SandboxFailure(Exception):
    """The child hung, crashed or used too much memory."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def run(
    job: ClipJob,
    limits: LimitParams,
    *,
    video_seconds: float = 0.0,
    on_poll: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a job in a child process. A failure is final only after a second try, alone in a fresh child.

    The deadline grows with ``video_seconds``. ``on_poll`` is called some ten times a second meanwhile: a
    long job may report its progress in a file. Raises OSError when the machine is the reason and not the
    clip: a full disk, a folder that cannot be written to, too many open files.
    """
    deadline_seconds = limits.compute_deadline(video_seconds)
    failure: SandboxFailure | None = None
    for _ in range(TRIES):
        with _borrow_child(fresh=failure is not None) as child:
            try:
                return child.call(job, limits, deadline_seconds, on_poll)
            except SandboxFailure as err:
                failure = err
                child.kill()
            except BaseException:  # Ctrl-C: else the answer would go to the next job
                child.kill()
                raise
    assert failure is not None, "the loop above runs at least once"
    return Outcome(FAILED, failure.code, f"{failure.reason} (tried {TRIES} times)")


def run_or_raise(
    job: ClipJob,
    limits: LimitParams,
    path: Path,
    *,
    video_seconds: float = 0.0,
    on_poll: Callable[[], None] = lambda: None,
) -> Outcome:
    """As ``run``, for a file that the command cannot do without. Raises StageError, which names it."""
    outcome = run(job, limits, video_seconds=video_seconds, on_poll=on_poll)
    if outcome.status != OK:
        raise StageError(f"{path}: {outcome.reason}")
    return outcome


def run_for_arrays(
    make_job: Callable[[Path], ClipJob],
    limits: LimitParams,
    *,
    video_seconds: float,
    on_poll: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[Any]]:
    """Run a job that saves a cache entry (``save_entry``) to the path that ``make_job`` receives.

    Returns the entry's arrays by name. Raises Drop when the job failed or dropped the clip. ``on_poll`` is as
    in ``run``; what it raises ends the job.
    """
    with tempfile.TemporaryDirectory(prefix="redub.") as folder:
        path = Path(folder, "entry.npz")
        outcome = run(make_job(path), limits, video_seconds=video_seconds, on_poll=on_poll)
        entry = load_entry(path) if outcome.status == OK else None
    if entry is None:
        raise Drop(outcome.code, outcome.reason)
    return entry[1]


_idle: queue.LifoQueue[Child] = queue.LifoQueue()


@contextlib.contextmanager
def _borrow_child(*, fresh: bool) -> Iterator[Child]:
    """Borrow an idle child of this process. A thread that finds none starts one."""
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
    """The parent's side of one child process, which starts at the first call."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._buffer = b""

    def call(
        self, job: ClipJob, limits: LimitParams, deadline_seconds: float, on_poll: Callable[[], None]
    ) -> Outcome:
        """Send a job and wait for its outcome. Raises SandboxFailure when there is none."""
        if self._calls >= limits.clips_per_child:
            self.kill()
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        self._calls += 1
        self._stderr.truncate(0)
        try:
            request = [job.function_name, job.arguments, deadline_seconds]
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as err:
            raise self._describe_crash() from err
        self._read_reply(WARM_UP_SECONDS, limits.memory_mb, on_poll)  # {"warm": true}
        reply = self._read_reply(deadline_seconds, limits.memory_mb, on_poll)
        return Outcome.from_json(reply)

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
            [sys.executable, "-c", CHILD_PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # a process group of its own, to be killed whole
            env=make_child_environment(),
        )
        self._calls = 0
        self._buffer = b""

    def _read_reply(
        self, deadline_seconds: float, memory_mb: int, on_poll: Callable[[], None]
    ) -> dict[str, Any]:
        """The next reply from the child; what it warns of before that is logged.

        Raises SandboxFailure when a limit is exceeded or the child dies.
        """
        assert self._process is not None and self._process.stdout is not None
        process = psutil.Process(self._process.pid)
        pipe = self._process.stdout.fileno()
        poller = select.poll()  # select() takes no descriptor above 1023
        poller.register(pipe, select.POLLIN | select.POLLHUP)
        until = time.monotonic() + deadline_seconds
        while True:
            if b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                reply: dict[str, Any] = json.loads(line)
                if "warning" not in reply:
                    break
                log.warning("%s", shorten_message(f"{reply['warning']}"))
            on_poll()
            if poller.poll(POLL_SECONDS * 1000):
                data = os.read(pipe, 65536)
                if not data:
                    raise self._describe_crash()
                self._buffer += data
            with contextlib.suppress(psutil.NoSuchProcess):
                used = process.memory_info().rss // MEBIBYTE
                if used > memory_mb:
                    raise SandboxFailure(
                        "memory", f"used {used} MB of memory, limits.memory_mb is {memory_mb}"
                    )
            if time.monotonic() > until:
                raise SandboxFailure("hang", f"no answer within {deadline_seconds:g} s")
            if len(self._buffer) > MAX_REPLY_BYTES:
                raise SandboxFailure("crash", f"its answer is longer than {MAX_REPLY_BYTES} bytes")
        if "os_error" in reply:
            raise OSError(*reply["os_error"])
        if "error" in reply:
            raise SandboxFailure("crash", reply["error"])
        return reply

    def _describe_crash(self) -> SandboxFailure:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return SandboxFailure("crash", "the child process closed its pipe")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        self._stderr.seek(0)
        tail = self._stderr.read()[-STDERR_TAIL:].decode(errors="replace").strip().splitlines()
        return SandboxFailure("crash", f"the child process {how}" + (f": {tail[-1]}" if tail else ""))


# Libraries have one thread: the pool decides how many children run at once, and a job how many threads it
# starts. (With two threads of torch on a busy machine, mels took 15 times longer.)
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOG_minloglevel": "2",  # MediaPipe prints a dozen lines at start
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


def make_child_environment() -> dict[str, str]:
    """This process's environment without what slows the child down.

    Dask makes its workers return freed memory at once (MALLOC_TRIM_THRESHOLD_). A child that frees and
    allocates a frame's buffers 25 times a second would spend a fifth of its time on page faults.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}
    return inherited | CHILD_ENVIRONMENT


CHILD_LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: MAX_FILE_BYTES}


def serve() -> None:
    """The child's loop: read a job, reply "warm" once its module is loaded, then reply with the outcome."""
    for kind, value in CHILD_LIMITS.items():
        _lower_limit(kind, value)
    # Libraries print to descriptor 1 as they please; replies go through one that they do not know.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for package in ("shards", "stages"):
        logging.getLogger(package).addHandler(_WarningSender(replies))
    jobs: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    warm_modules: set[str] = set()
    while True:
        name, arguments, deadline_seconds = json.loads(jobs.get())
        try:
            module_name, function_name = name.split(":")
            module = importlib.import_module(module_name)
            if module_name not in warm_modules:
                getattr(module, "warm_up", lambda _: None)(arguments)
                warm_modules.add(module_name)
            replies.write(b'{"warm":true}\n')
            # If the parent is gone and the job holds the GIL, nothing else can end this process.
            faulthandler.dump_traceback_later(ORPHAN_FACTOR * deadline_seconds, exit=True)
            try:
                outcome = _call_function(getattr(module, function_name), arguments)
            finally:
                faulthandler.cancel_dump_traceback_later()
            reply = json.dumps(outcome.to_json())
        except (Exception, SystemExit) as err:  # exiting here would abort: another thread reads stdin
            reply = json.dumps(_describe_error(err))
        replies.write(reply.encode() + b"\n")


class _WarningSender(logging.Handler):
    """Sends warnings to the parent: nobody reads the child's stderr, unless it crashes."""

    def __init__(self, replies: RawIOBase) -> None:
        super().__init__(logging.WARNING)
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        self._replies.write(json.dumps({"warning": record.getMessage()}).encode() + b"\n")


def _describe_error(err: BaseException) -> dict[str, Any]:
    """The reply to a job that raised: of the machine, or of the clip."""
    if isinstance(err, WriteError) or (isinstance(err, OSError) and err.errno in MACHINE_ERRORS):
        return {"os_error": [err.errno, err.strerror, err.filename and str(err.filename)]}
    traceback.print_exception(err)
    where = traceback.extract_tb(err.__traceback__)[-1]
    return {"error": f"{type(err).__name__}: {err} ({where.name}:{where.lineno})"}


def _lower_limit(kind: int, value: int) -> None:
    """Set both limits of this process to ``value``, except those that are lower already."""

    def take_lower(limit: int) -> int:
        return value if limit == resource.RLIM_INFINITY else min(limit, value)

    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (take_lower(soft), take_lower(hard)))


def _call_function(function: Callable[..., Outcome], arguments: dict[str, Any]) -> Outcome:
    """Call a job's function with arguments from JSON, converted to what its annotations say."""
    try:
        return validate_call(function)(**arguments)
    except Drop as drop:
        if isinstance(drop.__cause__, OSError) and drop.__cause__.errno in MACHINE_ERRORS:
            raise drop.__cause__ from None
        return Outcome.from_drop(drop)


def _read_jobs(jobs: queue.Queue[bytes]) -> None:
    """Pass lines on to the main loop; when the parent is gone, exit at once, whatever that loop does."""
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)
