"""Files at a web address, by requests. They can be read, not written or listed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter

from shards.schema import ShardError
from shards.storage import FileInfo, MissingFileError
from shards.transport import (
    CONNECT_SECONDS,
    CONNECTIONS,
    SILENCE_SECONDS,
    Response,
    TransientError,
    range_header,
    range_of,
)


class HttpTransport:
    """``https://host/path``. A name and password before the host, and a query, are sent but never shown."""

    def __init__(self, address: str) -> None:
        self.url = urlsplit(address.rstrip("/"))
        host = self.url.netloc.rpartition("@")[2]
        self.address = urlunsplit((self.url.scheme, host, self.url.path, "", ""))

    @contextlib.contextmanager
    def open(self, name: str, start: int, stop: int | None) -> Iterator[Response]:
        with self._ask("GET", name, range_header(start, stop)) as answer:
            begin, size = range_of(answer.headers.get("Content-Range"), _length(answer))
            yield Response(answer.raw, begin, size, answer.headers.get("ETag", ""))

    def facts(self, name: str) -> tuple[int, str | None]:
        with self._ask("HEAD", name, {}) as answer:
            length = _length(answer)
        if length is None:
            raise ShardError(f"{self.address}/{name}: the server does not tell how long it is")
        return length, None

    def put(self, path: Path, name: str, sha256: str) -> None:
        raise ShardError(f"{self.address}: a web address can be read only; write to a folder or to s3://")

    def delete(self, name: str) -> None:
        raise ShardError(f"{self.address}: a web address can be read only")

    def names(self) -> Iterator[str]:
        raise ShardError(f"{self.address}: a web address cannot be listed")

    def page(self, after: str) -> tuple[list[FileInfo], str]:
        raise ShardError(f"{self.address}: a web address cannot be listed")

    def _ask(self, method: str, name: str, headers: dict[str, str]) -> requests.Response:
        what = f"{self.address}/{name}"
        url = urlunsplit(self.url._replace(path=f"{self.url.path}/{quote(name)}"))
        try:
            answer = _session(os.getpid()).request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},  # bytes as they are, to be counted
                stream=True,
                timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
                allow_redirects=True,
            )
        except requests.RequestException as err:
            if isinstance(err, (requests.ConnectionError, requests.Timeout)) and not isinstance(
                err, requests.exceptions.SSLError
            ):
                raise TransientError(_cause(err)) from err
            raise ShardError(f"{what}: cannot be asked for ({_cause(err)})") from err
        if answer.ok:
            return answer
        answer.close()
        told = f"{answer.status_code} {answer.reason}"
        if answer.status_code in (404, 410):
            raise MissingFileError(f"{what}: not there")
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise TransientError(told)
        raise ShardError(f"{what}: refused ({told})")


@functools.lru_cache(maxsize=1)
def _session(pid: int) -> requests.Session:
    """The one session of a process: a forked child must not speak into its parent's connections."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
    return session


def _length(answer: requests.Response) -> int | None:
    told = answer.headers.get("Content-Length", "")
    return int(told) if told.isdecimal() else None


def _cause(err: BaseException) -> str:
    """What began it, without the address, which may hold a password."""
    while (before := err.__cause__ or err.__context__) is not None:
        err = before
    return str(err) if isinstance(err, OSError) and err.strerror else type(err).__name__
