"""One request to a server that keeps files: what is asked, and what may come back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import urllib3

from shards.storage import FileInfo

CONNECT_SECONDS = 10
CONNECTIONS = 32  # kept open, for the threads that ask at once
SILENCE_SECONDS = 20  # a connection that brings nothing for so long is given up, and tried anew


class TransientError(Exception):
    """What may go well the next time: a cut, a silence, a busy server."""


@dataclass(frozen=True, slots=True)
class Response:
    """A file's bytes on their way here."""

    body: urllib3.BaseHTTPResponse
    start: int  # of the first byte of the body, in the file
    size: int | None  # of the whole file
    version: str  # the same as long as the file is; nothing where the server does not say


class Transport(Protocol):
    """One request each, tried once. What may go well the next time is a TransientError."""

    address: str

    def open(self, name: str, start: int, stop: int | None) -> contextlib.AbstractContextManager[Response]:
        """A file from ``start`` on. The server may send more than was asked for, on both sides."""

    def facts(self, name: str) -> tuple[int, str | None]:
        """A file's size, and its sha256 where the server keeps that."""

    def put(self, path: Path, name: str, sha256: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def names(self) -> Iterator[str]: ...

    def page(self, after: str) -> tuple[list[FileInfo], str]:
        """Some of all files and what to ask for the next ones with; at the end nothing."""


def range_of(told: str | None, length: int | None) -> tuple[int, int | None]:
    """(first byte, size of the file) by a Content-Range like "bytes 0-9/300", else by the body's length."""
    if not told:
        return 0, length
    span, _, size = told.removeprefix("bytes ").partition("/")
    try:
        return int(span.partition("-")[0]), int(size)
    except ValueError as err:
        raise TransientError(f"Content-Range {told!r} makes no sense") from err


def range_header(start: int, stop: int | None) -> dict[str, str]:
    """What asks for a part of a file; nothing where all of it is wanted."""
    if start == 0 and stop is None:
        return {}
    return {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
