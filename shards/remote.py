"""Files on another machine, over an unreliable network: requests are repeated, resumed and checked."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from shards.atomic import write_atomically
from shards.retry import Retries, RetryPolicy
from shards.schema import ShardError
from shards.storage import MAX_FILE_BYTES, TRIES, ChangedFileError, FileInfo, MissingFileError, check_file
from shards.transport import TransientError, Transport

T = TypeVar("T")

RETRY_POLICY = RetryPolicy(deadline_seconds=60, slowest_bytes_per_second=1e6)


class RemoteStorage:
    """A ``Storage`` over a transport, with retries."""

    def __init__(self, source: Transport) -> None:
        self.source = source
        self.address = source.address

    def size(self, name: str) -> int | None:
        info = self._stat(name)
        return None if info is None else info[0]

    def has_file(self, name: str, size: int, sha256: str) -> bool:
        return self._stat(name) in ((size, sha256), (size, None))

    def read(self, name: str, start: int, stop: int) -> bytes:
        return b"".join(self._read_blocks(name, start, stop))

    def read_all(self, name: str, *, sha256: str | None = None) -> bytes:
        def read_once() -> bytes:
            data = b"".join(self._read_blocks(name, limit=MAX_FILE_BYTES))
            check_file(f"{self.address}/{name}", len(data), hashlib.sha256(data).hexdigest(), None, sha256)
            return data

        return _repeat_if_changed(read_once)

    def download(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        def download_once() -> None:
            digest, n_bytes = hashlib.sha256(), 0
            with write_atomically(path) as partial:
                with partial.open("wb") as file:
                    for block in self._read_blocks(name, size=size):
                        file.write(block)
                        digest.update(block)
                        n_bytes += len(block)
                check_file(f"{self.address}/{name}", n_bytes, digest.hexdigest(), size, sha256)

        _repeat_if_changed(download_once)

    def upload(self, path: Path, name: str, *, sha256: str) -> None:
        size = path.stat().st_size
        _repeat_if_changed(lambda: self._run(name, lambda: self.source.upload(path, name, sha256), size))

    def delete(self, name: str) -> None:
        with contextlib.suppress(MissingFileError):
            self._run(name, lambda: self.source.delete(name))

    def walk(self) -> Iterator[FileInfo]:
        after = ""
        while True:
            page, after = self._run("", functools.partial(self.source.list_page, after))
            yield from page
            if not after:
                return

    def _stat(self, name: str) -> tuple[int, str | None] | None:
        try:
            return self._run(name, lambda: self.source.stat(name))
        except MissingFileError:
            return None

    def _run(self, name: str, request: Callable[[], T], n_bytes: int = 0) -> T:
        """Repeat a request that sends ``n_bytes`` until it succeeds. Raises RetryError."""
        retries = Retries(f"{self.address}/{name}", RETRY_POLICY)
        retries.extend_deadline(n_bytes)
        return retries.run(request)

    def _read_blocks(
        self,
        name: str,
        start: int = 0,
        stop: int | None = None,
        *,
        size: int | None = None,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """The bytes from ``start`` to ``stop``, or to the end of the file.

        A request that breaks off is resumed after its last byte. Raises ShardError when the file is shorter
        than ``stop``, not ``size`` bytes, or longer than ``limit``.
        """
        path = f"{self.address}/{name}"
        retries = Retries(path, RETRY_POLICY)
        position, end = start, start + 1  # the first response says where the end is
        version: str | None = None  # of the file; None before the first response
        while position < end:
            try:
                with self.source.open(name, position, stop) as response:
                    if version is None:
                        version = response.version
                        end = _find_end(path, response.size, stop, size, limit)
                        retries.extend_deadline(end - start)
                    elif response.version != version:
                        raise ChangedFileError(f"{path}: changed while it was read")
                    block_start = response.start  # 0 from a server that does not support ranges
                    if block_start > position:
                        raise TransientError(f"began at byte {block_start}, not {position}")
                    for block in retries.read_blocks(response.body):  # read to its end to keep the connection
                        part = block[max(0, position - block_start) : max(0, end - block_start)]
                        block_start += len(block)
                        position += len(part)
                        yield part
                        if block_start > end:
                            break
                if position < end:
                    raise TransientError(f"ended after {position} of {end} bytes")
            except TransientError as err:
                retries.wait(err)


def _find_end(path: str, n_bytes: int | None, stop: int | None, size: int | None, limit: int | None) -> int:
    """Where a range ends in a file of ``n_bytes``."""
    if n_bytes is None:
        raise ShardError(f"{path}: the server does not say how long it is")
    if size is not None and n_bytes != size:
        raise ChangedFileError(f"{path}: {n_bytes} bytes, expected {size}")
    if limit is not None and n_bytes > limit:
        raise ShardError(f"{path}: {n_bytes} bytes, more than the limit of {limit}")
    if stop is not None and n_bytes < stop:
        raise ShardError(f"{path}: ends at byte {n_bytes}, expected {stop} or more")
    return n_bytes if stop is None else stop


def _repeat_if_changed(transfer: Callable[[], T]) -> T:
    """Repeat a transfer whose bytes were altered on the way, ``TRIES`` times in all."""
    for remaining in reversed(range(TRIES)):
        try:
            return transfer()
        except ChangedFileError:
            if not remaining:
                raise
    raise AssertionError("the last try returns or raises")
