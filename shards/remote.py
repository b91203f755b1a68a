"""Files on another machine, over a network that breaks: retried, gone on with, counted and checked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from urllib3.exceptions import HTTPError

from shards.atomic import write_atomically
from shards.schema import ShardError
from shards.storage import TRIES, ChangedFileError, FileInfo, MissingFileError, check
from shards.transport import TransientError, Transport

log = logging.getLogger(__name__)
T = TypeVar("T")

# All that is done for one file, with all its retries, takes no longer than this.
DEADLINE_SECONDS = 60
SLOWEST_BYTES_PER_SECOND = 1e6  # and for each byte so much longer
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
TOLD_AFTER_TRIES = 3
BLOCK_BYTES = 2**18
MAX_WHOLE_BYTES = 2**31  # of a manifest, an index or a ledger


class RemoteStorage:
    """A source, and the patience that it takes."""

    def __init__(self, source: Transport) -> None:
        self.source = source
        self.address = source.address

    def size(self, name: str) -> int | None:
        facts = self._facts(name)
        return None if facts is None else facts[0]

    def holds(self, name: str, size: int, sha256: str) -> bool:
        return self._facts(name) in ((size, sha256), (size, None))

    def read(self, name: str, start: int, stop: int) -> bytes:
        return b"".join(self._blocks(name, start, stop))

    def whole(self, name: str, *, sha256: str | None = None) -> bytes:
        def once() -> bytes:
            data = b"".join(self._blocks(name, limit=MAX_WHOLE_BYTES))
            check(f"{self.address}/{name}", len(data), hashlib.sha256(data).hexdigest(), None, sha256)
            return data

        return _twice(once)

    def bring(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        def once() -> None:
            digest, n_bytes = hashlib.sha256(), 0
            with write_atomically(path) as partial:
                with partial.open("wb") as file:
                    for block in self._blocks(name, size=size):
                        file.write(block)
                        digest.update(block)
                        n_bytes += len(block)
                check(f"{self.address}/{name}", n_bytes, digest.hexdigest(), size, sha256)

        _twice(once)

    def put(self, path: Path, name: str, *, sha256: str) -> None:
        size = path.stat().st_size
        _twice(lambda: self._patiently(name, lambda: self.source.put(path, name, sha256), size))

    def delete(self, name: str) -> None:
        with contextlib.suppress(MissingFileError):
            self._patiently(name, lambda: self.source.delete(name))

    def names(self) -> Iterator[str]:
        return iter(self._patiently("", lambda: list(self.source.names())))

    def tree(self) -> Iterator[FileInfo]:
        after = ""
        while True:
            listed, after = self._patiently("", functools.partial(self.source.page, after))
            yield from listed
            if not after:
                return

    def _facts(self, name: str) -> tuple[int, str | None] | None:
        try:
            return self._patiently(name, lambda: self.source.facts(name))
        except MissingFileError:
            return None

    def _patiently(self, name: str, act: Callable[[], T], n_bytes: int = 0) -> T:
        patience = Patience(f"{self.address}/{name}")
        patience.allow_for(n_bytes)
        while True:
            try:
                return act()
            except TransientError as err:
                patience.wait(err)

    def _blocks(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """The bytes from start to stop or to the end, which is at ``size`` where that is told.

        After a break it goes on from the last byte. Raises ShardError when the file is shorter, or longer
        than ``size`` or ``limit``.
        """
        what = f"{self.address}/{name}"
        patience = Patience(what)
        here, end = start, start + 1  # until an answer tells where the end is
        version: str | None = None  # of the file; nothing came yet
        while here < end:
            try:
                with self.source.open(name, here, stop) as answer:
                    if version is None:
                        version, end = answer.version, _end_of(what, answer.size, stop, size, limit)
                        patience.allow_for(end - start)
                    elif answer.version != version:
                        raise ChangedFileError(f"{what}: became another file while it was read")
                    at = answer.start  # a server that knows no ranges begins at the beginning
                    if at > here:
                        raise TransientError(f"began at byte {at}, asked for {here}")
                    while block := answer.body.read1(BLOCK_BYTES):  # to its end, or the connection is lost
                        patience.came_on()
                        wanted = block[max(0, here - at) : max(0, end - at)]
                        at += len(block)
                        here += len(wanted)
                        yield wanted
                        if at > end:
                            break
                if here < end:
                    raise TransientError(f"ended after {here} of {end} bytes")
            except (TransientError, HTTPError) as err:
                patience.wait(err)


def _end_of(what: str, found: int | None, stop: int | None, size: int | None, limit: int | None) -> int:
    """Where the bytes that were asked for end, in a file of ``found`` bytes."""
    if found is None:
        raise ShardError(f"{what}: the server does not tell how long it is")
    if size is not None and found != size:
        raise ChangedFileError(f"{what}: {found} bytes, expected {size}")
    if limit is not None and found > limit:
        raise ShardError(f"{what}: {found} bytes, more than the {limit} of any table")
    if stop is not None and found < stop:
        raise ShardError(f"{what}: ends at byte {found}, expected {stop} or more")
    return found if stop is None else stop


class Patience:
    """Pauses that grow and differ, up to a deadline for one file."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.tries = 0
        self.until = time.monotonic() + DEADLINE_SECONDS

    def allow_for(self, n_bytes: int) -> None:
        """Put the deadline off for a file of this size."""
        self.until += n_bytes / SLOWEST_BYTES_PER_SECOND

    def came_on(self) -> None:
        """Something came; raise ShardError when the time is over all the same."""
        self.tries = 0
        if time.monotonic() > self.until:
            slowest = f"{SLOWEST_BYTES_PER_SECOND / 1e6:g} MB/s"
            raise ShardError(f"{self.what}: given up, less than {slowest} came")

    def wait(self, err: Exception) -> None:
        """Pause before the next try, or raise ShardError when the time does not suffice for one."""
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self.tries) * random.uniform(0.5, 1.5)
        self.tries += 1
        told = " ".join(str(err).split()) or type(err).__name__
        if time.monotonic() + pause > self.until:
            raise ShardError(f"{self.what}: given up after {self.tries} tries ({told})") from err
        if self.tries == TOLD_AFTER_TRIES:
            left = self.until - time.monotonic()
            log.warning("%s: %s; trying again for at most %.0f s", self.what, told, left)
        time.sleep(pause)


def _twice(once: Callable[[], T]) -> T:
    for tries_left in reversed(range(TRIES)):
        try:
            return once()
        except ChangedFileError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")
