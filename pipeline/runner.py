"""Runs tasks with Dask, on this machine or on an existing cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import progress
from pipeline.errors import describe_error
from stages.engine.outcome import StageError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30.0
RECONNECT_SECONDS = 600.0  # to a scheduler that was reached before, and its workers
# Enough tasks at the scheduler that no worker idles, not even one that has just joined and is not counted
# yet; few enough that a million clips fit in its memory.
IN_FLIGHT_PER_WORKER = 8
IN_FLIGHT_AT_LEAST = 500
COUNT_SECONDS = 5.0  # between counts of the workers, which join and leave
# Scheduler, nanny, worker and client measure themselves 50 to 100 times a second for a dashboard that is not
# started: a tenth of a core for each worker.
QUIET_DASK = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
QUIET_TRACKER = "ignore:resource_tracker:UserWarning"
# Measured: 21 in the command, 10 more for each worker, and 18 in a worker.
OPEN_FILES = 48
OPEN_FILES_PER_WORKER = 16


class _LostSchedulerError(Exception):
    """The scheduler has lost the tasks."""


class DaskMapper:
    """A ``stages.engine.stage.Mapper``. The cluster starts with the first task.

    One of this machine has as many processes as there are tasks, up to ``workers``: starting one takes
    seconds of a core, and a dataset of one part has no work for a second.

    ``check_worker`` is called before each task on workers that are not of this process and may join at any
    time: an error that it raises there ends the run. Those of this process have its libraries.
    """

    def __init__(
        self,
        workers: int,
        scheduler: str | None,
        *,
        quiet: bool,
        check_worker: Callable[[], None] | None = None,
    ) -> None:
        self._workers = workers
        self._scheduler = scheduler
        self._quiet = quiet
        self._check_worker = check_worker
        self._client: Client | None = None
        self._connect_seconds = CONNECT_SECONDS
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> DaskMapper:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def __call__(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        label: str,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Result]:
        sizes = sizes or [1] * len(items)
        if self._scheduler is not None and self._check_worker is not None:
            task = functools.partial(run_checked, task, self._check_worker)
        pairs = self._results(task, items, sizes)
        yield from progress.show_results(pairs, label, sum(sizes), len(items), quiet=self._quiet)

    def _results(
        self, task: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
    ) -> Iterator[tuple[Result, int]]:
        remaining = dict(enumerate(zip(items, sizes, strict=True)))
        while remaining:
            try:
                yield from self._run_remaining(task, remaining)
            except _LostSchedulerError:
                self._resources.close()
                self._client = None
                if self._scheduler is None:
                    raise StageError("the workers' scheduler has died; run again to continue") from None
                log.warning("--scheduler %s: connection lost; waiting for it", self._scheduler)

    def _run_remaining(
        self, task: Callable[[Item], Result], remaining: dict[int, tuple[Item, int]]
    ) -> Iterator[tuple[Result, int]]:
        """Results of the remaining items; an item is removed when its result is there.

        Raises _LostSchedulerError when the scheduler loses the tasks: it died, or the network failed.
        """
        from distributed import KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        client = self._connect(len(remaining))
        pending = iter(list(remaining))
        numbers: dict[Any, int] = {}  # of items, by the key of their future
        running = as_completed(with_results=True)
        limit, last_count = 0, -math.inf

        def submit() -> None:
            nonlocal limit, last_count
            if time.monotonic() - last_count > COUNT_SECONDS:
                last_count = time.monotonic()
                limit = max(IN_FLIGHT_AT_LEAST, sum(client.nthreads().values()) * IN_FLIGHT_PER_WORKER)
            for number in itertools.islice(pending, max(0, limit - len(numbers))):
                # pure=False: the task writes files, so an equal call is not an equal result.
                future = client.submit(task, remaining[number][0], pure=False)
                numbers[future.key] = number
                running.add(future)

        try:
            submit()
            for future, result in running:
                if future.cancelled():
                    raise _LostSchedulerError
                submit()  # first: if it raises, the result is not lost
                _, size = remaining.pop(numbers.pop(future.key))
                yield result, size
        except CommClosedError as err:
            raise _LostSchedulerError from err
        except KilledWorker as err:
            raise StageError(f"a task killed every worker that ran it, last {err.last_worker}") from err

    def _connect(self, n_tasks: int) -> Client:
        n_needed = min(self._workers, n_tasks)
        if self._client is None:
            if self._scheduler is None:
                cluster = start_local_client(self._workers, n_needed)
            else:
                cluster = connect_client(self._scheduler, self._connect_seconds)
            self._client = self._resources.enter_context(cluster)
            self._connect_seconds = RECONNECT_SECONDS
        elif self._scheduler is None:
            local: Any = self._client.cluster
            if n_needed > len(local.worker_spec):
                local.scale(n_needed)
        return self._client


def run_checked(task: Callable[[Item], Result], check_worker: Callable[[], None], item: Item) -> Result:
    """The task's result, if the worker that this runs on is one that may work on it."""
    check_worker()
    return task(item)


def allow_open_files(workers: int) -> None:
    """Let this process open the files that so many workers need, below its hard limit.

    Raises StageError when that is too low: a scheduler that cannot accept a connection tries for ever.
    """
    needed = OPEN_FILES + workers * OPEN_FILES_PER_WORKER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StageError(
            f"--workers {workers}: they need {needed} open files, and this shell allows {hard} (`ulimit -n`)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextlib.contextmanager
def start_local_client(workers: int, n_started: int) -> Iterator[Client]:
    """Start ``n_started`` processes on this machine; yield a client of them. They end with the context.

    There may be up to ``workers`` of them later: raises StageError if this machine does not allow so many.
    """
    import dask
    from distributed import Client, LocalCluster

    allow_open_files(workers)
    # Python's own process that tidies up after killed ones would say so after our line.
    filters = os.environ.get("PYTHONWARNINGS", "")
    if QUIET_TRACKER not in filters:  # workers are started again after a lost scheduler
        os.environ["PYTHONWARNINGS"] = f"{filters},{QUIET_TRACKER}".lstrip(",")
    dask.config.set(QUIET_DASK)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    # A worker that is ended amid a task leaves what it has there, such as faces.
    with TemporaryDirectory(prefix="redub.", ignore_cleanup_errors=True) as scratch:
        try:
            cluster = LocalCluster(
                n_workers=n_started,
                threads_per_worker=1,
                processes=True,
                # Dask opens a dashboard port in any case: a free one on loopback, so that runs do not clash.
                dashboard_address="127.0.0.1:0",
                # Memory is used by the sandbox's child, which has its own limit.
                memory_limit=0,
                env={"TMPDIR": scratch},
                # Not even errors: the one of a task is raised in this process too.
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError) as err:
            cause = _find_system_error(err)
            raise StageError(
                f"--workers {workers}: they do not start ({describe_error(cause) or cause})"
            ) from err
        with cluster, Client(cluster) as client:
            yield client


def _find_system_error(err: BaseException) -> BaseException:
    """The OSError behind an error of Dask's, or the error itself."""
    cause: BaseException | None = err
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or err


@contextlib.contextmanager
def connect_client(address: str, timeout_seconds: float) -> Iterator[Client]:
    """A client of an existing scheduler. Raises StageError when there is none, or when it has no worker."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a lost scheduler is reported in one line
    try:
        client = Client(address, timeout=timeout_seconds)
    except (OSError, ValueError) as err:
        raise StageError(f"--scheduler {address}: no Dask scheduler responds ({err})") from err
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout_seconds)
        except TimeoutError as err:
            raise StageError(f"--scheduler {address}: it has no workers") from err
        yield client
