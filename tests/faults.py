"""A proxy between a client and an HTTP or S3 server, which does what networks do: cut, stall, alter."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

BLOCK_BYTES = 2**16
# Between two servers and no business of ours to pass on.
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next ``times`` requests by ``method`` for a path that holds ``of``."""

    kind: Literal[
        "cut",  # the connection ends after ``at`` bytes of the body, of the request's where it has one
        "stall",  # the same, but it stays open and silent
        "busy",  # 503, and the server is not asked
        "short",  # a well-formed answer, ``at`` bytes long
        "flip",  # the byte at ``at`` is another
    ]
    of: str = ""
    at: int = 0
    times: int = 1
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came by."""

    method: str
    path: str  # unquoted, with the bucket, without the query
    bytes_range: str  # "bytes=0-9", or nothing


class Proxy:
    """Where it answers, what was asked, and what it is to spoil. ``faults`` may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.endpoint = ""
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def note(self, asked: Asked) -> Fault | None:
        """Remember a request; the fault that is due for it, if any."""
        with self._lock:
            self.asked.append(asked)
            for fault in self.faults:
                if fault.times and fault.method == asked.method and fault.of in asked.path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, of: str = "") -> int:
        """How many requests by ``method`` came for paths that hold ``of``."""
        return sum(asked.method == method and of in asked.path for asked in self.asked)


@contextlib.contextmanager
def between(upstream: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy on ``host`` before ``upstream``, an address like http://127.0.0.1:8000."""
    proxy = Proxy(upstream)
    server = http.server.ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    proxy.endpoint = f"http://{host}:{server.server_port}"
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes one request on, unless a fault is due."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client may leave when it likes
            super().handle()

    def _pass_on(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.proxy.note(Asked(self.command, path, self.headers.get("Range", "")))
        length = int(self.headers.get("Content-Length", 0))
        if fault is not None and length and fault.kind in ("cut", "stall"):
            self.rfile.read(min(fault.at, length))
            self._end(fault)
            return
        body = self.rfile.read(length)
        if fault is not None and fault.kind == "busy":
            self._answer(503, {"Content-Length": "0"})
            return
        # The host that the client asked goes along: its signature covers it.
        server = http.client.HTTPConnection(self.proxy.upstream)
        with contextlib.closing(server):
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            headers = {key: value for key, value in answer.getheaders() if key.lower() not in HOP_HEADERS}
            if answer.chunked:
                data = answer.read()
                headers["Content-Length"] = str(len(data))
                self._answer(answer.status, headers)
                self.wfile.write(data)
                return
            self._send(answer, headers, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _send(self, answer: http.client.HTTPResponse, headers: dict[str, str], fault: Fault | None) -> None:
        if fault is not None and fault.kind == "short":
            headers["Content-Length"] = str(fault.at)
        self._answer(answer.status, headers)
        sent = 0
        while block := answer.read(BLOCK_BYTES):
            if fault is not None and fault.kind == "flip" and sent <= fault.at < sent + len(block):
                changed = bytearray(block)
                changed[fault.at - sent] ^= 1
                block = bytes(changed)
            if fault is not None and fault.kind in ("cut", "stall", "short"):
                block = block[: fault.at - sent]
            self.wfile.write(block)
            sent += len(block)
            if fault is not None and fault.kind in ("cut", "stall", "short") and sent == fault.at:
                self._end(fault)
                return

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _end(self, fault: Fault) -> None:
        self.wfile.flush()
        if fault.kind == "stall":
            self.proxy.closing.wait()
        if fault.kind != "short":
            self.close_connection = True
