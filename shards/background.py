"""Reading ahead and writing behind, in threads beside the caller's: bounded, in order, errors passed on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(items: Iterable[Item], n_ahead: int) -> Generator[Item, None, None]:
    """The same items in the same order; a thread reads up to ``n_ahead`` of them before they are asked for.

    An error of ``items`` is raised in its place. Close the generator to end the thread before the last item;
    that closes ``items`` too, if it is a generator.
    """
    iterator, end = iter(items), object()

    def read() -> object:
        return next(iterator, end)

    try:
        with ThreadPoolExecutor(1) as pool:
            pending = deque(pool.submit(read) for _ in range(n_ahead))
            try:
                while (item := pending.popleft().result()) is not end:
                    pending.append(pool.submit(read))
                    yield item  # type: ignore[misc]
            finally:
                for future in pending:
                    future.cancel()
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Generator[Result, None, None]:
    """``function`` of each item, in order, computed by threads before it is asked for.

    This thread reads ``items``, and is at most ``2 * n_threads`` of them ahead. An error of ``function`` is
    raised in its item's place, one of ``items`` at once: results of the items before it may be lost. Close
    the generator to end the threads before the last item.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * n_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class BackgroundWriter(Generic[Item]):
    """Calls ``write`` with each item that it is given, in threads beside the caller's. Use it in ``with``.

    With one thread the items are written in their order, with ``n_threads`` each begins in that order. At
    most ``n_waiting`` items wait; ``put`` waits while there are so many. An error of ``write`` is raised by
    the next ``put``, or at the end; no item is begun after it. Where the ``with`` block raises an error, the
    items that wait are written first; after Ctrl-C they are not. When the block is left no thread runs any
    more, so what ``write`` uses can be closed then.
    """

    def __init__(self, write: Callable[[Item], object], *, n_waiting: int, n_threads: int = 1) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(n_threads)
        self._free = threading.Semaphore(n_waiting + n_threads)
        self._error: BaseException | None = None
        self._dropped = False

    def __enter__(self) -> BackgroundWriter[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._dropped = kind is not None and not issubclass(kind, Exception)
        try:
            self._pool.shutdown()
        except BaseException:  # Ctrl-C while it waits: what is being written ends first
            self._dropped = True
            self._pool.shutdown()
            raise
        if kind is None:
            self._raise_error()

    def put(self, item: Item) -> None:
        """Have an item written; waits for its place. Raises what writing an earlier one has raised."""
        self._free.acquire()
        self._raise_error()
        self._pool.submit(self._write_item, item)

    def _write_item(self, item: Item) -> None:
        try:
            if self._error is None and not self._dropped:
                self._write(item)
        except BaseException as err:
            self._error = self._error or err
        finally:
            self._free.release()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
