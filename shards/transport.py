"""The interface of one request to a storage server; ``shards.s3`` and ``shards.http`` implement it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, urlsplit

from shards.schema import ShardError
from shards.storage import FileInfo, strip_address

if TYPE_CHECKING:
    import urllib3

CONNECT_SECONDS = 10
MAX_CONNECTIONS = 32  # kept open per process, for threads that send requests at the same time
SILENCE_SECONDS = 20  # a connection that sends no byte for this long is closed, and the request is repeated


class TransientError(Exception):
    """A request failed and may succeed when it is repeated: connection lost, no response, server busy."""


class UnreachableError(TransientError):
    """No connection to the server could be made."""


class TlsError(ShardError):
    """The server is not trusted, or does not offer a secure connection."""


class RangeError(ShardError):
    """The file ends before the first byte of the range."""


@dataclass(frozen=True, slots=True)
class Response:
    """The body of a response, not read yet."""

    body: urllib3.BaseHTTPResponse
    start: int  # position in the file of the body's first byte
    size: int | None  # of the whole file, where the server says it
    version: str  # changes when the file does; empty where the server does not say it


class Transport(Protocol):
    """Sends single requests, without retries. Raises TransientError where a retry may succeed."""

    address: str

    def open(self, name: str, start: int, stop: int | None) -> contextlib.AbstractContextManager[Response]:
        """Bytes ``start`` to ``stop`` of a file. The server may send more, before and after them."""

    def stat(self, name: str) -> tuple[int, str | None]:
        """A file's size, and its sha256 where the server keeps it."""

    def upload(self, path: Path, name: str, sha256: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def list_page(self, after: str) -> tuple[list[FileInfo], str]:
        """One page of all files, and the token that gets the next page; it is empty after the last one."""


def split_address(address: str) -> SplitResult:
    """The parts of a web address. Raises ShardError for one that has none, such as http://[x/."""
    try:
        return urlsplit(address)
    except ValueError as err:
        raise ShardError(f"{strip_address(address[:200])!a}: no web address ({err})") from err


def parse_content_range(value: str | None, length: int | None) -> tuple[int, int | None]:
    """(first byte, size of the file) from a Content-Range such as "bytes 0-9/300", else from the length."""
    if not value:
        return 0, length
    span, _, size = value.removeprefix("bytes ").partition("/")
    try:
        return int(span.partition("-")[0]), int(size)
    except ValueError as err:
        raise TransientError(f"Content-Range {value!r} cannot be parsed") from err


def make_range_header(start: int, stop: int | None) -> dict[str, str]:
    """The header that requests a part of a file; empty for the whole file."""
    if start == 0 and stop is None:
        return {}
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
