"""The pool: Dask on this machine or on a cluster that exists. No engine of our own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import progress
from stages.work import StageError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 30
# Enough tasks with the scheduler that no worker waits; few enough that a million clips fit its memory.
IN_FLIGHT_PER_WORKER = 8
# Scheduler, nanny, worker and client look after themselves 50 to 100 times a second, for a dashboard that
# is not there: a tenth of a core beside one worker.
QUIET_DASK = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


class DaskMapper:
    """A ``stages.work.Mapper``. The cluster starts with the first task, so a run that has none is quick."""

    def __init__(self, workers: int, scheduler: str | None, *, quiet: bool) -> None:
        self._workers = workers
        self._scheduler = scheduler
        self._quiet = quiet
        self._client: Client | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> DaskMapper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        if not items:
            return
        from distributed import as_completed

        client = self._connect()
        n_workers = max(1, sum(client.nthreads().values()))
        waiting = iter(zip(items, sizes, strict=True))
        size_of: dict[Any, int] = {}
        running = as_completed(with_results=True)

        def submit() -> None:
            following = next(waiting, None)
            if following is not None:
                item, size = following
                # pure=False: the task writes files, so an equal call is not an equal result.
                future = client.submit(task, item, pure=False)
                size_of[future.key] = size
                running.add(future)

        for _ in range(n_workers * IN_FLIGHT_PER_WORKER):
            submit()
        for future, result in running:
            submit()
            yield result, size_of.pop(future.key)

    def _connect(self) -> Client:
        if self._client is None:
            self._client = self._open.enter_context(
                cluster_client(self._workers) if self._scheduler is None else remote_client(self._scheduler)
            )
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
def remote_client(address: str) -> Iterator[Client]:
    """A client of a scheduler that runs already. Raises StageError when there is none, or no worker."""
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as err:
        raise StageError(f"--scheduler {address}: no Dask scheduler answers there ({err})") from err
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as err:
            raise StageError(f"--scheduler {address}: it has no workers") from err
        yield client
