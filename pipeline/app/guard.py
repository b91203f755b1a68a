"""Refuses requests that no page of ours makes, before Gradio looks at them.

Any web page that a user opens can send requests to a server on the same machine, and a name that resolves to
127.0.0.1 makes them look as if they came from the page itself (DNS rebinding). Both show in the request: its
Host must be a name of this server, and its Origin the same host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shards.errors import shorten
from stages.engine.outcome import StageError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ANY_ADDRESS = frozenset({"0.0.0.0", "::"})
UPLOAD_ROUTE = "/gradio_api/upload"
MAX_BODY_BYTES = 2**20  # of a request that is no upload: settings and names of files
MULTIPART_BYTES = 2**16  # what an upload has besides its file: names and borders
# For the rest of a body that was refused, and of it for the next piece, as nginx's lingering_time and
# lingering_timeout.
DISCARD_SECONDS, SILENT_SECONDS = 30, 5
DEFAULT_PORTS = {None, 80, 443}  # a proxy may speak HTTPS with the visitor

log = logging.getLogger(__name__)


class Refusal(HTTPException):
    """A request that is not answered; ``detail`` says why in one line, for the visitor and for the log."""


class RequestGuard:
    """An ASGI application around another one, to which it passes only requests of the page.

    ``hosts`` are the names of the server besides those of loopback. With 0.0.0.0 or :: among them every IP
    address is one: it cannot be rebound, as a name can. ``check_space`` raises StageError when there is no
    room for an upload of so many bytes.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        *,
        max_upload_bytes: int,
        check_space: Callable[[int], None],
    ) -> None:
        self._app = app
        self._names = LOOPBACK_NAMES | {host.strip("[]").lower().rstrip(".") for host in hosts}
        self._max_upload_bytes = max_upload_bytes
        self._check_space = check_space
        self._arriving_bytes = 0  # of uploads that are not complete: together they need room too

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        receive, send = _read_before_end(receive, send)
        try:
            limit, upload_bytes = self._check(scope)
        except Refusal as err:
            _log_refusal(scope, err)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
                return
            response = PlainTextResponse(f"{err.detail}\n", err.status_code, {"Connection": "close"})
            await response(scope, receive, send)
            return
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Frame-Options"] = "SAMEORIGIN"  # no other page around ours
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        self._arriving_bytes += upload_bytes
        try:
            await self._app(scope, _limit_body(scope, receive, limit), send_with_headers)
        except Exception as err:  # of Gradio, by a request that its page does not make
            _log_refusal(scope, err)
            if not is_started and scope["type"] == "http":
                await PlainTextResponse("the request failed\n", 500)(scope, receive, send)
        finally:
            self._arriving_bytes -= upload_bytes

    def _check(self, scope: Scope) -> tuple[int, int]:
        """The most bytes that the request's body may have, and those of an upload that it announces.

        Raises Refusal for a request of a stranger.
        """
        headers = Headers(scope=scope)
        hosts = [_get_one(headers, name) for name in ("host", "x-forwarded-host")]
        if hosts[0] is None:
            raise Refusal(400, "there is no Host")
        own = [_split(host) for host in hosts if host is not None]
        for host in own:
            if not self._is_own(host.hostname or ""):
                raise Refusal(403, f"Host {shorten(host.netloc)} is no name of this page (see --allow-host)")
        origin = _get_one(headers, "origin")
        if origin is not None and not any(_is_same(_split(origin), host) for host in own):
            raise Refusal(403, f"Origin {shorten(origin)} is another page")
        is_visit = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_visit:
            raise Refusal(403, "another page asks for it")
        return self._check_length(scope, headers)

    def _is_own(self, name: str) -> bool:
        name = name.rstrip(".")
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return bool(ANY_ADDRESS & self._names)

    def _check_length(self, scope: Scope, headers: Headers) -> tuple[int, int]:
        is_upload = scope["path"].rstrip("/") == UPLOAD_ROUTE
        limit = self._max_upload_bytes + MULTIPART_BYTES if is_upload else MAX_BODY_BYTES
        text = headers.get("content-length")
        n_bytes = limit if text is None else int(text) if text.isdecimal() and len(text) < 20 else limit + 1
        if n_bytes > limit:
            raise Refusal(413, f"the request has {shorten(text)} bytes, expected at most {limit:,}")
        if not is_upload or scope.get("method") != "POST":
            return limit, 0
        try:
            self._check_space(n_bytes + self._arriving_bytes)
        except StageError as err:
            raise Refusal(507, str(err)) from err
        return limit, n_bytes


def _split(host: str) -> SplitResult:
    """Host and port of a Host header or an Origin. Raises Refusal."""
    try:
        parts = urlsplit(host if "://" in host else f"//{host}")
        assert parts.port is None or parts.port, "reading the port checks it"
    except (ValueError, AssertionError) as err:
        raise Refusal(400, f"{shorten(host)} is no host") from err
    return parts


def _is_same(one: SplitResult, other: SplitResult) -> bool:
    if one.hostname != other.hostname or one.hostname is None:
        return False
    return one.port == other.port or {one.port, other.port} <= DEFAULT_PORTS


def _get_one(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(values) > 1:
        raise Refusal(400, f"there are {len(values)} headers {name}")
    return values[0] if values else None


def _limit_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    n_bytes = 0

    async def receive_some() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > limit:
            refusal = Refusal(413, f"the request has more than {limit:,} bytes")
            _log_refusal(scope, refusal)
            raise refusal
        return message

    return receive_some


def _read_before_end(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """The same, but an answer ends only when the body of the request was read, or discarded.

    A connection that is closed with bytes unread is reset, and then the visitor loses the answer as well
    (RFC 9112, section 9.6).
    """
    is_read = False

    async def receive_some() -> Message:
        nonlocal is_read
        message = await receive()
        is_read = not message.get("more_body", False)
        return message

    async def discard_body() -> None:
        while not is_read:
            await asyncio.wait_for(receive_some(), SILENT_SECONDS)

    async def send_some(message: Message) -> None:
        is_end = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_end and not is_read:
            await send({**message, "more_body": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(discard_body(), DISCARD_SECONDS)
            message = {"type": "http.response.body"}
        await send(message)

    return receive_some, send_some


def _log_refusal(scope: Scope, err: Exception) -> None:
    """One line, whatever the request holds."""
    client = (scope.get("client") or ("?",))[0]
    request = f"{client} {scope.get('method', 'WS')} {shorten(scope['path'])[1:-1]}"
    if isinstance(err, HTTPException):
        log.warning("%s: %s, %s", request, err.status_code, err.detail)
    else:
        log.warning("%s: failed, %s: %s", request, type(err).__name__, shorten(str(err))[1:-1])
