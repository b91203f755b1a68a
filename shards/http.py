"""Files at a web address, by requests. They can be read, not written or listed."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import quote, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from shards.schema import ShardError
from shards.storage import FileInfo, MissingFileError, strip_address
from shards.transport import (
    CONNECT_SECONDS,
    MAX_CONNECTIONS,
    SILENCE_SECONDS,
    RangeError,
    Response,
    TlsError,
    TransientError,
    UnreachableError,
    make_range_header,
    parse_content_range,
    split_address,
)

MAX_DIGITS = 18  # of a size in bytes


class HttpTransport:
    """``https://host/path``: the files below it, or the file that it is the address of, whose name is "".

    A user name and password before the host, a query (it may be a signature) and ``headers`` are sent but
    never shown in messages.
    """

    def __init__(
        self,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        url = split_address(address)
        self.url = url._replace(path=url.path.rstrip("/"))
        self.headers = dict(headers or {})
        self.silence_seconds = silence_seconds
        self.address = strip_address(address).rstrip("/")

    @contextlib.contextmanager
    def open(self, name: str, start: int, stop: int | None, *, version: str = "") -> Iterator[Response]:
        """As in ``Transport``. A file with another version than this one is sent from its first byte."""
        headers = make_range_header(start, stop)
        if headers and version:
            headers["If-Range"] = version
        with self._send("GET", name, headers) as response:
            begin, size = parse_content_range(response.headers.get("Content-Range"), _get_length(response))
            yield Response(response.raw, begin, size, response.headers.get("ETag", ""))

    @contextlib.contextmanager
    def open_response(self, body: bytes | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """The response to a GET of the address, or to a POST of ``body``; its bytes are not read yet."""
        with self._send("GET" if body is None else "POST", "", {}, body) as response:
            yield response.raw

    def stat(self, name: str) -> tuple[int, str | None]:
        with self._send("HEAD", name, {}) as response:
            length = _get_length(response)
        if length is None:
            raise ShardError(f"{self._describe(name)}: the server does not say how long it is")
        return length, None

    def upload(self, path: Path, name: str, sha256: str) -> None:
        raise ShardError(f"{self.address}: a web address can be read only; write to a folder or to s3://")

    def delete(self, name: str) -> None:
        raise ShardError(f"{self.address}: a web address can be read only")

    def list_page(self, after: str) -> tuple[list[FileInfo], str]:
        raise ShardError(f"{self.address}: a web address cannot be listed")

    def _describe(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _send(
        self, method: str, name: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        path = self._describe(name)
        url_path = f"{self.url.path}/{quote(name)}" if name else self.url.path
        try:
            response = _get_session(os.getpid()).request(
                method,
                urlunsplit(self.url._replace(path=url_path)),
                data=body,
                headers={**self.headers, **headers},
                stream=True,
                timeout=(CONNECT_SECONDS, self.silence_seconds),
                allow_redirects=True,
            )
        except requests.exceptions.SSLError as err:
            raise TlsError(f"{path}: request failed ({_find_cause(err)})") from err
        except (requests.ConnectionError, requests.Timeout) as err:
            is_unreachable = err.args and isinstance(err.args[0], urllib3.exceptions.MaxRetryError)
            raise (UnreachableError if is_unreachable else TransientError)(_find_cause(err)) from err
        except (requests.RequestException, ValueError) as err:  # ValueError: a redirect to http://[x/
            raise ShardError(f"{path}: request failed ({_find_cause(err)})") from err
        if response.ok:
            return response
        response.close()
        status = f"{response.status_code} {response.reason}"
        if response.status_code in (404, 410):
            raise MissingFileError(f"{path}: not there")
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            raise RangeError(f"{path}: refused ({status})")
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise TransientError(status)  # Retry-After is ignored: it can be a year
        raise ShardError(f"{path}: refused ({status})")


@functools.lru_cache(maxsize=1)
def _get_session(pid: int) -> requests.Session:
    """The session of a process; a forked child must not use the connections of its parent."""
    session = requests.Session()
    session.headers["User-Agent"] = f"redub/{metadata.version('redub')}"  # Zenodo slows down other clients
    session.headers["Accept-Encoding"] = "identity"  # bytes are counted and resumed as they are in the file
    session.hooks["response"].append(_leave_out_redirect_body)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))
    return session


def _leave_out_redirect_body(response: requests.Response, **_: object) -> None:
    """Close a redirect's response. Else requests reads its body into memory and unpacks it, however long."""
    if response.is_redirect:
        response._content = b""
        response.close()


def _get_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    # A number of thousands of digits is an error of int, and no length.
    return int(length) if length.isdecimal() and len(length) <= MAX_DIGITS else None


def _find_cause(err: BaseException) -> str:
    """The first exception of the chain, without the address, which may hold a password."""
    while (cause := err.__cause__ or err.__context__) is not None:
        err = cause
    return str(err) if isinstance(err, OSError) and err.strerror else type(err).__name__
