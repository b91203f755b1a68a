"""Serves the page: Gradio's application behind the guard, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio import queueing, route_utils, routes

from pipeline.app.guard import ANY_ADDRESS, RequestGuard
from pipeline.app.page import CSS
from pipeline.options import MEGABYTE
from shards.errors import shorten
from stages.engine.outcome import StageError

FIRST_PORT, N_PORTS = 7860, 100
MAX_CONNECTIONS = 200  # an open page holds two; what is above gets the status 503
START_SECONDS = 60.0
STOP_SECONDS = 10
PRODUCT = Path(__file__).parents[2]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def serve(
    build_page: Callable[[], gr.Blocks],
    *,
    host: str,
    port: int | None,
    allowed_hosts: Collection[str],
    max_upload_mb: int,
    check_space: Callable[[int], None],
) -> Iterator[str]:
    """Serve the page while inside; yields its address. Raises StageError if it cannot listen."""
    _report_requests_in_one_line()
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )

    async def make_app() -> FastAPI:
        page = build_page()
        app: FastAPI = gr.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            page,
            path="/",
            server_name=host,
            root_path=os.environ.get("GRADIO_ROOT_PATH"),
            max_file_size=max_upload_mb * MEGABYTE,
            theme=theme,
            css=CSS,
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            pwa=False,
            mcp_server=False,
            ssr_mode=False,
            footer_links=[],
            app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        )
        # Gradio checks only then that a file which a request names was uploaded, not any file of this machine
        page.has_launched = True
        return app

    # In an event loop: outside one, Gradio opens several and closes none.
    app = asyncio.run(make_app())
    guard = RequestGuard(
        app, [host, *allowed_hosts], max_upload_bytes=max_upload_mb * MEGABYTE, check_space=check_space
    )
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,  # a page keeps its connections open
    )
    server = uvicorn.Server(config)
    with _listen(host.strip("[]"), port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield f"http://{_format_host(host)}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket on this port, or on the first free one."""
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + N_PORTS)
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    except OSError as err:
        raise StageError(f"--host {host}: is no address of this machine ({err.strerror})") from err
    for number in ports:
        with contextlib.suppress(OSError):
            return socket.create_server((host, number), family=family)
    address = f"--host {host}" + (f" --port {port}" if port else "")
    raise StageError(
        f"{address}: cannot listen there; the port is in use, or the address is not this machine's"
    )


def _format_host(host: str) -> str:
    """The host of an address for this machine's browser."""
    host = host.strip("[]")
    return "localhost" if host in ANY_ADDRESS else f"[{host}]" if ":" in host else host


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    for _ in range(int(START_SECONDS / 0.01)):
        thread.join(0.01)
        if server.started:
            return
        if not thread.is_alive():
            break
    raise StageError("the page did not start; the lines above say why")


def _report_requests_in_one_line() -> None:
    """Gradio prints a traceback for whatever a request holds that its page would not send.

    A line is enough for that. Errors that come from our own code keep their traceback.
    """
    reporter = SimpleNamespace(print_exc=_print_error, format_exc=traceback.format_exc)
    for module in (queueing, route_utils, routes):
        module.traceback = reporter  # type: ignore[attr-defined]


def _print_error() -> None:
    _, err, trace = sys.exc_info()
    if err is None:
        return
    files = [Path(frame.filename) for frame in traceback.extract_tb(trace)]
    if files and files[-1].is_relative_to(PRODUCT) and "site-packages" not in files[-1].parts:
        log.error("%s", traceback.format_exc())
    else:
        log.warning("a request failed, %s: %s", type(err).__name__, shorten(str(err))[1:-1])
