"""One file over HTTP: a broken transfer goes on at the byte where it broke, and what is kept is right."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from shards.checksum import file_digest

logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are no news to a user

CHUNK_BYTES = 2**18
DIGEST = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")
BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for."""

    timeout_seconds: float = 30.0  # without a byte
    tries: int = 6  # in a row that bring less than ``progress_bytes``
    backoff_seconds: float = 1.0  # before the second try; doubled for each one more
    progress_bytes: int = 2**20
    slowest_bytes_per_second: int = 10_000  # of one transfer; below it, it is broken off and resumed


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its publisher has it."""

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


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file's bytes are asked for now; some publishers sign theirs for an hour."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.url.partition("?")[0]  # the rest may be a signature


class DownloadError(Exception):
    """A file that cannot be had. ``code`` is one word to count by."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _BrokenOffError(Exception):
    """A transfer that ended early; what came is kept, and the next try goes on from there."""


def open_session(patience: Patience) -> requests.Session:
    """A session that says who asks, and asks a busy server again. ``Retry-After`` may be a year: unheard."""
    session = requests.Session()
    session.headers["User-Agent"] = f"redub/{metadata.version('redub')}"  # Zenodo slows down who has no name
    session.headers["Accept-Encoding"] = "identity"  # bytes are counted and resumed as they are
    retry = Retry(
        total=None,
        connect=2,
        read=False,  # resumed by ``Download``
        redirect=5,
        status=3,
        backoff_factor=patience.backoff_seconds,
        status_forcelist=BUSY,
        allowed_methods=None,  # what is posted here only asks
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=32))
    return session


def ask(
    session: requests.Session,
    url: str,
    patience: Patience,
    *,
    limit_bytes: int,
    question: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """The whole answer to one question. Raises DownloadError when there is none that says yes."""
    method = "GET" if question is None else "POST"
    try:
        with session.request(
            method, url, data=question, headers=headers, timeout=patience.timeout_seconds, stream=True
        ) as answer:
            answer.raise_for_status()
            body: bytes = answer.raw.read(limit_bytes + 1)
    except requests.HTTPError as err:
        raise DownloadError("refused", f"{url}: {err.response.status_code} {err.response.reason}") from err
    except (requests.ConnectionError, requests.Timeout) as err:
        raise _nobody_answered(url, err) from err
    except requests.RequestException as err:
        raise DownloadError("refused", f"{url}: {err}") from err
    except (urllib3.exceptions.HTTPError, OSError) as err:
        raise DownloadError("cut", f"{url}: broke off ({err})") from err
    if len(body) > limit_bytes:
        raise DownloadError("wrong", f"{url} sends more than {limit_bytes} bytes")
    return body


def _nobody_answered(address: Address | str, err: requests.RequestException) -> DownloadError:
    """Whether there is no server, or one that takes a question and does not answer it."""
    if err.args and isinstance(err.args[0], urllib3.exceptions.MaxRetryError):
        return DownloadError("unreachable", f"{address} cannot be reached")
    return DownloadError("cut", f"{address}: takes the question and does not answer")


@dataclass(slots=True)
class Download:
    """One file on its way to ``partial``, in the hands of one thread."""

    session: requests.Session
    address: Address
    file: RemoteFile
    partial: Path  # kept when a transfer breaks, for the next run too
    patience: Patience
    brought: Callable[[int], None]  # told of bytes as they come; negative when they are thrown away
    stop: threading.Event

    def run(self) -> None:
        """Bring the file whole and right. Raises DownloadError, and keeps what may be gone on from."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        failures = wrong = 0
        while not self.stop.is_set():
            before = self._size()
            try:
                if before != self.file.bytes:
                    self._transfer()
                if file_digest(self.partial, self.file.digest_name) == self.file.digest_hex:
                    self._etag.unlink(missing_ok=True)
                    return
                self._throw_away()
                wrong += 1
                if wrong == 2:
                    raise DownloadError(
                        "wrong",
                        f"{self.address} has another {self.file.digest_name} than {self.file.digest_hex}",
                    )
            except _BrokenOffError as err:
                failures = 0 if self._size() - before >= self.patience.progress_bytes else failures + 1
                if failures == self.patience.tries:
                    raise DownloadError("cut", f"{self.address}: {err}") from err
            except (requests.ConnectionError, requests.Timeout) as err:
                failures += 1
                if failures == self.patience.tries:
                    raise _nobody_answered(self.address, err) from err
            except requests.RequestException as err:
                raise DownloadError("refused", f"{self.address}: {err}") from err
            if failures:
                self.stop.wait(self.patience.backoff_seconds * 2 ** (failures - 1))
        raise DownloadError("stopped", f"{self.address}: stopped")

    def _transfer(self) -> None:
        """Ask for what is missing and add what comes."""
        start = self._size()
        headers = dict(self.address.headers)
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._etag.is_file():
                headers["If-Range"] = self._etag.read_text()  # another file by now: sent whole
        timeout = self.patience.timeout_seconds
        with self.session.get(self.address.url, headers=headers, timeout=timeout, stream=True) as answer:
            self._check(answer, start)
            if answer.status_code != requests.codes.partial_content:
                self._throw_away()
            etag = answer.headers.get("ETag", "")
            if etag.startswith('"'):  # a weak one names no bytes
                self._etag.write_text(etag)
            self._receive(answer)
        if self._size() < self.file.bytes:
            raise _BrokenOffError(f"broke off at byte {self._size()} of {self.file.bytes}")

    def _check(self, answer: requests.Response, start: int) -> None:
        """Whether what is about to come is what was asked for."""
        if answer.status_code in BUSY:
            raise _BrokenOffError(f"{answer.status_code} {answer.reason}")
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            self._throw_away()
            raise _BrokenOffError(f"has no byte {start}")
        if not answer.ok:
            raise DownloadError("refused", f"{self.address}: {answer.status_code} {answer.reason}")
        said = answer.headers.get("Content-Length", "")
        if answer.status_code == requests.codes.partial_content:
            unit, _, said = answer.headers.get("Content-Range", "").partition("/")
            if not unit.startswith(f"bytes {start}-"):
                self._throw_away()
                raise _BrokenOffError(f"sends {unit or 'no range'} when asked from byte {start}")
        if said.isdigit() and int(said) != self.file.bytes:
            raise DownloadError("wrong", f"{self.address} has {said} bytes, expected {self.file.bytes}")

    def _receive(self, answer: requests.Response) -> None:
        started, received = time.monotonic(), 0
        patience = self.patience
        try:
            with self.partial.open("ab") as out:
                # read1 gives what is there: a cut loses no byte that came, and a trickle is noticed.
                while chunk := answer.raw.read1(CHUNK_BYTES):
                    if out.tell() + len(chunk) > self.file.bytes:
                        self._throw_away()
                        raise DownloadError(
                            "wrong", f"{self.address} sends more than {self.file.bytes} bytes"
                        )
                    out.write(chunk)
                    received += len(chunk)
                    self.brought(len(chunk))
                    late = time.monotonic() - started - patience.timeout_seconds
                    if late > 0 and received < late * patience.slowest_bytes_per_second:
                        raise _BrokenOffError(f"sends less than {patience.slowest_bytes_per_second} bytes/s")
                    if self.stop.is_set():
                        return
        except (urllib3.exceptions.HTTPError, ConnectionError) as err:
            raise _BrokenOffError(f"broke off at byte {self._size()} of {self.file.bytes}") from err

    @property
    def _etag(self) -> Path:
        return self.partial.with_suffix(".etag")

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _throw_away(self) -> None:
        self.brought(-self._size())
        self.partial.unlink(missing_ok=True)
        self._etag.unlink(missing_ok=True)
