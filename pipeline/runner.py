"""The pool: Dask on this machine or on a cluster that exists. No engine of our own."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import progress
from stages.engine.outcome import StageError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30.0
RECONNECT_SECONDS = 600.0  # for a scheduler that was there, and its workers
# Enough tasks with the scheduler that no worker waits, nor one that has just come and was not counted yet;
# few enough that a million clips fit its memory.
IN_FLIGHT_PER_WORKER = 8
IN_FLIGHT_AT_LEAST = 500
COUNT_SECONDS = 5.0  # between counts of the workers: they come and go
# Scheduler, nanny, worker and client look after themselves 50 to 100 times a second, for a dashboard that
# is not there: a tenth of a core beside one worker.
QUIET_DASK = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


class _LostSchedulerError(Exception):
    """The scheduler knows nothing of the tasks any more."""


class DaskMapper:
    """A ``stages.engine.outcome.Mapper``. The cluster starts with the first task, so a run that has none is quick."""

    def __init__(self, workers: int, scheduler: str | None, *, quiet: bool) -> None:
        self._workers = workers
        self._scheduler = scheduler
        self._quiet = quiet
        self._client: Client | None = None
        self._patience_seconds = CONNECT_SECONDS
        self._open = contextlib.ExitStack()

    def __enter__(self) -> DaskMapper:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(
        self,
        task: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        label: str,
        sizes: Sequence[int] | None = None,
    ) -> Iterator[Result]:
        sizes = sizes or [1] * len(items)
        pairs = self._results(task, items, sizes)
        yield from progress.shown(pairs, label, sum(sizes), len(items), quiet=self._quiet)

    def _results(
        self, task: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
    ) -> Iterator[tuple[Result, int]]:
        left = dict(enumerate(zip(items, sizes, strict=True)))
        while left:
            try:
                yield from self._results_of(task, left)
            except _LostSchedulerError:
                self._open.close()
                self._client = None
                if self._scheduler is None:
                    raise StageError("the workers' scheduler ended; run again to go on") from None
                log.warning("--scheduler %s: lost; waiting for it", self._scheduler)

    def _results_of(
        self, task: Callable[[Item], Result], left: dict[int, tuple[Item, int]]
    ) -> Iterator[tuple[Result, int]]:
        """Results of what is left; each item that has one is taken out.

        Raises _LostSchedulerError when the scheduler forgets what it was asked: it ended, or the network did.
        """
        from distributed import KilledWorker, as_completed
        from distributed.comm.core import CommClosedError

        client = self._connect()
        waiting = iter(list(left))
        number_of: dict[Any, int] = {}
        running = as_completed(with_results=True)
        room, counted = 0, -math.inf

        def submit() -> None:
            nonlocal room, counted
            if time.monotonic() - counted > COUNT_SECONDS:
                counted = time.monotonic()
                room = max(IN_FLIGHT_AT_LEAST, sum(client.nthreads().values()) * IN_FLIGHT_PER_WORKER)
            for number in itertools.islice(waiting, max(0, room - len(number_of))):
                # pure=False: the task writes files, so an equal call is not an equal result.
                future = client.submit(task, left[number][0], pure=False)
                number_of[future.key] = number
                running.add(future)

        try:
            submit()
            for future, result in running:
                if future.cancelled():
                    raise _LostSchedulerError
                submit()  # first: what it may raise must not take the result along
                _, size = left.pop(number_of.pop(future.key))
                yield result, size
        except CommClosedError as err:
            raise _LostSchedulerError from err
        except KilledWorker as err:
            raise StageError(f"a task ended each worker that had it; its last was {err.last_worker}") from err

    def _connect(self) -> Client:
        if self._client is None:
            if self._scheduler is None:
                cluster = cluster_client(self._workers)
            else:
                cluster = remote_client(self._scheduler, self._patience_seconds)
            self._client = self._open.enter_context(cluster)
            self._patience_seconds = RECONNECT_SECONDS
        return self._client


@contextlib.contextmanager
def cluster_client(workers: int) -> Iterator[Client]:
    """A client of a cluster of ``workers`` processes on this machine, which ends with it."""
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(QUIET_DASK)
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # Dask opens a port for it in any case: a free one, on loopback, so that two runs do not meet.
            dashboard_address="127.0.0.1:0",
            # What eats memory is the sandbox's child, which has its own limit.
            memory_limit=0,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def remote_client(address: str, patience_seconds: float) -> Iterator[Client]:
    """A client of a scheduler that runs already. Raises StageError when there is none, or no worker."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a lost scheduler is told in one line
    try:
        client = Client(address, timeout=patience_seconds)
    except (OSError, ValueError) as err:
        raise StageError(f"--scheduler {address}: no Dask scheduler answers there ({err})") from err
    with client:
        try:
            client.wait_for_workers(1, timeout=patience_seconds)
        except TimeoutError as err:
            raise StageError(f"--scheduler {address}: it has no workers") from err
        yield client
