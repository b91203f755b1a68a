"""A proxy before an HTTP or S3 server that causes network faults: cut, stalled, altered responses."""

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
# Headers of one connection, which a proxy does not pass on.
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(slots=True)
class Fault:
    """A fault in the next ``times`` requests by ``method`` whose path contains ``path``."""

    kind: Literal[
        "cut",  # the connection closes after ``at`` bytes of the body, of the request's if it has one
        "stall",  # the same, but it stays open and sends nothing
        "busy",  # 503, without a request to the server
        "short",  # a well-formed response of ``at`` bytes
        "flip",  # the byte at ``at`` is altered
    ]
    path: str = ""
    at: int = 0
    times: int = 1
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the proxy received."""

    method: str
    path: str  # unquoted, with the bucket, without the query
    bytes_range: str  # "bytes=0-9", or empty


class Proxy:
    """A running proxy, its requests, and the faults to cause. ``faults`` may be changed at any time."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.endpoint = ""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def add_request(self, request: Request) -> Fault | None:
        """Record a request. Returns the fault to cause, if any."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.method == request.method and fault.path in request.path:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, path: str = "") -> int:
        """The number of requests by ``method`` for paths that contain ``path``."""
        return sum(request.method == method and path in request.path for request in self.requests)


@contextlib.contextmanager
def start_proxy(upstream: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy on ``host`` for ``upstream``, an address such as http://127.0.0.1:8000."""
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
    """Passes a request on, unless there is a fault for it."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client may disconnect at any time
            super().handle()

    def _pass_on(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.proxy.add_request(Request(self.command, path, self.headers.get("Range", "")))
        length = int(self.headers.get("Content-Length", 0))
        if fault is not None and length and fault.kind in ("cut", "stall"):
            self.rfile.read(min(fault.at, length))
            self._end_response(fault)
            return
        body = self.rfile.read(length)
        if fault is not None and fault.kind == "busy":
            self._send_head(503, {"Content-Length": "0"})
            return
        # The Host header is passed on: the client's signature covers it.
        server = http.client.HTTPConnection(self.proxy.upstream)
        with contextlib.closing(server):
            server.request(self.command, self.path, body, dict(self.headers))
            response = server.getresponse()
            headers = {key: value for key, value in response.getheaders() if key.lower() not in HOP_HEADERS}
            if response.chunked:
                data = response.read()
                headers["Content-Length"] = str(len(data))
                self._send_head(response.status, headers)
                self.wfile.write(data)
                return
            self._send_response(response, headers, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _send_response(
        self, response: http.client.HTTPResponse, headers: dict[str, str], fault: Fault | None
    ) -> None:
        if fault is not None and fault.kind == "short":
            headers["Content-Length"] = str(fault.at)
        self._send_head(response.status, headers)
        sent = 0
        while block := response.read(BLOCK_BYTES):
            if fault is not None and fault.kind == "flip" and sent <= fault.at < sent + len(block):
                altered = bytearray(block)
                altered[fault.at - sent] ^= 1
                block = bytes(altered)
            if fault is not None and fault.kind in ("cut", "stall", "short"):
                block = block[: fault.at - sent]
            self.wfile.write(block)
            sent += len(block)
            if fault is not None and fault.kind in ("cut", "stall", "short") and sent == fault.at:
                self._end_response(fault)
                return

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _end_response(self, fault: Fault) -> None:
        self.wfile.flush()
        if fault.kind == "stall":
            self.proxy.closing.wait()
        if fault.kind != "short":
            self.close_connection = True
