"""Download one file over HTTP. A transfer that breaks off is resumed at the same byte, by a later run too."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shards.checksum import file_digest
from shards.retry import Retries, RetryError, RetryPolicy
from shards.schema import ShardError
from shards.transport import RangeError, TlsError, TransientError, UnreachableError

if TYPE_CHECKING:
    from shards.http import HttpTransport  # it loads requests, which only a process that downloads needs

DIGEST = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")
TRIES = 2  # a file with a wrong digest is downloaded once more
# Large files from slow servers: hours are allowed, and only failures in a row end a download.
RETRY_POLICY = RetryPolicy(
    first_pause_seconds=1.0,
    longest_pause_seconds=32.0,
    tries=6,
    connect_tries=3,
    progress_bytes=2**20,
    slowest_bytes_per_second=10_000,
    silence_seconds=30.0,
)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its publisher lists it."""

    path: str
    bytes: int
    digest: str  # "sha256:..." or "md5:..."

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.digest):
            raise ValueError(f"{self.path}: {self.digest!r} is neither md5 nor sha256")

    @property
    def digest_name(self) -> str:
        return self.digest.partition(":")[0]

    @property
    def digest_hex(self) -> str:
        return self.digest.partition(":")[2]


class DownloadError(Exception):
    """A file that cannot be downloaded. ``code`` is one word to count by."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def read_response(
    source: HttpTransport, policy: RetryPolicy, *, limit_bytes: int, body: bytes | None = None
) -> bytes:
    """The whole response to a GET, or to a POST of ``body``. Raises DownloadError."""
    retries = Retries(source.address, policy)

    def read_once() -> bytes:
        data = bytearray()
        with source.open_response(body) as response:
            for block in retries.read_blocks(response):  # gives up a server that sends a byte now and then
                data += block
                if len(data) > limit_bytes:
                    raise DownloadError("wrong", f"{source.address} sends more than {limit_bytes} bytes")
        return bytes(data)

    with _convert_errors(source):
        return retries.run(read_once)


@dataclass(slots=True)
class Download:
    """The download of one file to ``partial``, by one thread."""

    source: HttpTransport
    partial: Path  # kept when a transfer breaks off, for the next run too; its ETag is in a file beside it
    digest: str  # "sha256:..." or "md5:..."
    policy: RetryPolicy
    size: int | None = None  # bytes, where they are known
    on_bytes: Callable[[int], object] = lambda n_bytes: None  # bytes received, or minus those discarded
    stop: threading.Event = field(default_factory=threading.Event)
    max_bytes: int = 2**63  # where the size is not known

    def run(self) -> None:
        """Download the file until its digest is right.

        Raises DownloadError. The bytes received so far are kept if the download can be resumed.
        """
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.partial, self._etag):
            if path.is_symlink() or not path.is_file():  # not written by us: it could lead anywhere
                path.unlink(missing_ok=True)
        digest = ""
        for _ in range(TRIES):
            with _convert_errors(self.source):
                self._receive_file()
            digest = self._compute_digest()
            if digest == self.digest:
                self._etag.unlink(missing_ok=True)
                return
            self.discard()
        raise DownloadError(
            "wrong",
            f"{self.source.address} has {digest.replace(':', ' ')}, expected {self.digest.partition(':')[2]}",
        )

    def discard(self) -> None:
        """Remove what was received."""
        self.on_bytes(-self._count_bytes())
        self.partial.unlink(missing_ok=True)
        self._etag.unlink(missing_ok=True)

    def _receive_file(self) -> None:
        """Send requests until all bytes are there."""
        retries = Retries(self.source.address, self.policy, sleep=self.stop.wait)
        is_complete = self._is_complete()
        while not is_complete:
            if self.stop.is_set():
                raise DownloadError("stopped", f"{self.source.address}: stopped")
            try:
                is_complete = self._receive(retries)
            except TransientError as err:
                retries.wait(err)

    def _receive(self, retries: Retries) -> bool:
        """Request the missing bytes and append them; whether the file is complete."""
        start = self._count_bytes()
        etag = self._etag.read_text() if start and self._etag.is_file() else ""
        try:
            # A file that has another ETag by now is sent from its first byte.
            with self.source.open("", start, None, version=etag) as response:
                if self.size is not None and response.size not in (None, self.size):
                    raise DownloadError(
                        "wrong",
                        f"{self.source.address} has {response.size} bytes, expected {self.size}",
                    )
                if response.start != start:
                    self.discard()
                if response.start not in (0, start):
                    raise TransientError(f"sends bytes from {response.start} instead of {start}")
                if response.version.startswith('"'):  # a weak ETag does not identify the bytes
                    self._etag.write_text(response.version)
                self._append(retries.read_blocks(response.body))
        except RangeError as err:
            self.discard()
            raise TransientError(f"has no byte {start}") from err
        size = response.size if self.size is None else self.size
        if size is not None and self._count_bytes() < size and not self.stop.is_set():
            raise TransientError(f"broke off at byte {self._count_bytes()} of {size}")
        return not self.stop.is_set()

    def _append(self, blocks: Iterator[bytes]) -> None:
        limit = self.max_bytes if self.size is None else self.size
        with self.partial.open("ab") as out:
            for block in blocks:
                if out.tell() + len(block) > limit:
                    self.discard()
                    raise DownloadError("wrong", f"{self.source.address} sends more than {limit} bytes")
                out.write(block)
                self.on_bytes(len(block))
                if self.stop.is_set():
                    return

    def _is_complete(self) -> bool:
        """Whether a run before this one received all bytes."""
        if not self.partial.is_file():
            return False
        if self.size is None:
            return self._compute_digest() == self.digest
        return self._count_bytes() == self.size

    def _compute_digest(self) -> str:
        algorithm = self.digest.partition(":")[0]
        return f"{algorithm}:{file_digest(self.partial, algorithm)}"

    @property
    def _etag(self) -> Path:
        return self.partial.with_suffix(".etag")

    def _count_bytes(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0


@contextlib.contextmanager
def _convert_errors(source: HttpTransport) -> Iterator[None]:
    """Raise DownloadError for the errors of the storage layer."""
    try:
        yield
    except RetryError as err:
        if isinstance(err.__cause__, UnreachableError):
            raise DownloadError(
                "unreachable", f"{source.address} cannot be reached ({err.__cause__})"
            ) from err
        raise DownloadError("cut", str(err)) from err
    except TlsError as err:
        raise DownloadError("unreachable", str(err)) from err
    except ShardError as err:
        raise DownloadError("refused", str(err)) from err
