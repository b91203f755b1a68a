"""Retries: when a failed request is repeated, and when its file is given up."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shards.schema import ShardError
from shards.transport import SILENCE_SECONDS, TransientError, UnreachableError

if TYPE_CHECKING:
    import urllib3

log = logging.getLogger(__name__)
T = TypeVar("T")

LOG_AFTER_FAILURES = 3
BLOCK_BYTES = 2**18


class RetryError(ShardError):
    """All requests for a file failed. ``__cause__`` is the last failure."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits on the requests for one file. A failure is a request that raises TransientError.

    The storage of shards limits the time, so that training stops soon; downloads of large files limit the
    failures in a row, since a slow connection may take hours.
    """

    first_pause_seconds: float = 0.2  # after a failure; doubled with each further one, varied by a half
    longest_pause_seconds: float = 5.0
    deadline_seconds: float = math.inf  # for all requests, in addition to size / slowest_bytes_per_second
    tries: float = math.inf  # failures in a row
    connect_tries: float = math.inf  # failures in a row without a connection to the server
    progress_bytes: int = 1  # a request that receives as many ends a row of failures
    slowest_bytes_per_second: float = 1e6  # a slower response is aborted and resumed
    silence_seconds: float = SILENCE_SECONDS


class Retries:
    """Pauses between the requests for one file, until its policy's limits are reached."""

    def __init__(
        self, name: str, policy: RetryPolicy, *, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.name = name
        self.policy = policy
        self._sleep = sleep
        self._failures = self._connect_failures = 0  # in a row
        self._received = 0  # bytes since the last failure
        self._deadline = time.monotonic() + policy.deadline_seconds

    def extend_deadline(self, n_bytes: int) -> None:
        """Allow the time that so many bytes take."""
        self._deadline += n_bytes / self.policy.slowest_bytes_per_second

    def run(self, request: Callable[[], T]) -> T:
        """Repeat a request until it succeeds. Raises RetryError."""
        while True:
            try:
                return request()
            except TransientError as err:
                self.wait(err)

    def read_blocks(self, body: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Blocks of a response as they arrive.

        Raises TransientError when the connection is lost or the server is slow, RetryError after the
        deadline.
        """
        from urllib3.exceptions import HTTPError  # only after a transport has loaded it

        start, received = time.monotonic(), 0
        while True:
            try:
                # read1 returns what is there: a lost connection loses no byte, a slow server is noticed.
                block = body.read1(BLOCK_BYTES)
            except (HTTPError, ConnectionError) as err:
                raise TransientError(str(err)) from err
            if not block:
                return
            received += len(block)
            self._received += len(block)
            yield block
            now = time.monotonic()
            slowest = self.policy.slowest_bytes_per_second
            if now > self._deadline:
                raise RetryError(f"{self.name}: given up, slower than {slowest / 1e6:g} MB/s")
            overtime = now - start - self.policy.silence_seconds
            if overtime > 0 and received < overtime * slowest:
                raise TransientError(f"sends less than {slowest:g} bytes/s")

    def wait(self, err: Exception) -> None:
        """Pause after a failure, or raise RetryError when there is to be no other request."""
        if self._received >= self.policy.progress_bytes:
            self._failures = self._connect_failures = 0
        self._received = 0
        self._failures += 1
        self._connect_failures = self._connect_failures + 1 if isinstance(err, UnreachableError) else 0
        policy = self.policy
        pause = min(policy.longest_pause_seconds, policy.first_pause_seconds * 2 ** (self._failures - 1))
        pause *= random.uniform(0.5, 1.5)
        message = " ".join(str(err).split()) or type(err).__name__
        remaining_seconds = self._deadline - time.monotonic()
        if (
            self._failures >= policy.tries
            or self._connect_failures >= policy.connect_tries
            or pause > remaining_seconds
        ):
            raise RetryError(f"{self.name}: given up after {self._failures} tries ({message})") from err
        if self._failures == LOG_AFTER_FAILURES:
            limit = f" for at most {remaining_seconds:.0f} s" if remaining_seconds < math.inf else ""
            log.warning("%s: %s; trying again%s", self.name, message, limit)
        self._sleep(pause)
