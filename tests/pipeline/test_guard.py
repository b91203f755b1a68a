"""Which requests the page answers: real ones over HTTP, to a real server without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from pipeline.app import guard
from pipeline.app.guard import MAX_BODY_BYTES, UPLOAD_ROUTE, RequestGuard
from pipeline.app.server import serve
from pipeline.app.sessions import MAX_SESSIONS, Sessions
from stages.engine.outcome import StageError
from tests.waiting import GUARD_SECONDS

# The server runs in this process, and Gradio warns of what its next version does.
pytestmark = pytest.mark.filterwarnings("ignore")

MAX_MB, TOTAL_MB = 1, 3
NAME = "studio.lan"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page that shows the name of an uploaded file."""
    root = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root))

        def build_page() -> gr.Blocks:
            with gr.Blocks(analytics_enabled=False) as page:
                zone = gr.File()
                zone.upload(lambda upload: None, zone, None, preprocess=False)
            return page

        with serve(
            build_page,
            host="127.0.0.1",
            port=None,
            allowed_hosts=[NAME],
            max_upload_mb=MAX_MB,
            check_space=Sessions(root, max_mb=TOTAL_MB).check_space,
        ) as url:
            yield url


def ask(url: str, path: str = "", *, method: str = "GET", **options: Any) -> httpx.Response:
    return httpx.request(method, f"{url}{path}", timeout=GUARD_SECONDS, **options)


def get_port(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port


ROUTES = [
    ("GET", ""),
    ("GET", "config"),
    ("GET", "gradio_api/info"),
    ("GET", "gradio_api/heartbeat/x"),
    ("GET", "gradio_api/queue/data?session_hash=x"),
    ("GET", "gradio_api/file=/etc/hostname"),
    ("GET", "theme.css"),
    ("GET", "nowhere"),
    ("POST", "gradio_api/upload"),
    ("POST", "gradio_api/queue/join"),
    ("POST", "gradio_api/run/predict"),
    ("POST", "gradio_api/cancel"),
    ("OPTIONS", "gradio_api/upload"),
    ("HEAD", ""),
]
STRANGERS = [
    {"Host": "evil.com"},
    {"Host": "evil.com:7860", "Origin": "http://evil.com:7860"},
    {"Host": "localhost.evil.com"},
    {"Host": "127.0.0.1.evil.com"},
    {"Host": "localhost@evil.com"},
    {"Host": "192.0.2.7"},
    {"Origin": "http://evil.com"},
    {"Origin": "null"},
    {"X-Forwarded-Host": "evil.com"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_answers_another_page(url: str, method: str, path: str) -> None:
    for headers in STRANGERS:
        response = ask(url, path, method=method, headers=headers)
        assert response.status_code == 403, headers
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert method == "HEAD" or response.text.count("\n") == 1


@pytest.mark.parametrize("host", ["", "[::1", "localhost:99999", "a b", "::1", "localhost:x"])
def test_what_is_no_host_is_refused(url: str, host: str) -> None:
    assert ask(url, headers={"Host": host}).status_code in (400, 403)


def test_a_request_without_a_host_or_with_two_is_refused(url: str) -> None:
    for lines in (
        "",
        "Host: localhost\r\nHost: evil.com\r\n",
        "Host: localhost\r\nOrigin: http://a\r\nOrigin: x\r\n",
    ):
        with socket.create_connection(("127.0.0.1", get_port(url))) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 40")


def test_the_page_itself_is_answered_under_each_of_its_names(url: str) -> None:
    port = get_port(url)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST", NAME, f"{NAME}:81"):
        for origin in ({}, {"Origin": f"http://{host}"}):
            response = ask(url, "config", headers={"Host": host, "Sec-Fetch-Site": "same-origin", **origin})
            assert response.status_code == 200, host
    assert ask(url, headers={"Host": NAME, "Origin": f"https://{NAME}"}).status_code == 200, "behind a proxy"
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(url, headers=visit).status_code == 200, "a link on another page leads here"
    assert ask(url).headers["X-Frame-Options"] == "SAMEORIGIN"


def test_another_port_of_this_machine_is_another_page(url: str) -> None:
    host = f"localhost:{get_port(url)}"
    assert ask(url, headers={"Host": host, "Origin": "http://localhost:1"}).status_code == 403


def upload(url: str, name: str, n_bytes: int) -> httpx.Response:
    content = name.encode() + bytes(n_bytes - len(name))
    return ask(url, "gradio_api/upload", method="POST", files={"files": (name, content)})


def join_queue(url: str, data: Any) -> str:
    """The last message of an event."""
    body = {"fn_index": 0, "data": data, "session_hash": "x", "event_data": None, "trigger_id": None}
    assert ask(url, "gradio_api/queue/join", method="POST", json=body).status_code == 200
    with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=x", timeout=GUARD_SECONDS) as response:
        return next(line for line in response.iter_lines() if "process_completed" in line)


def test_a_file_that_was_not_uploaded_is_not_read(url: str, tmp_path: Path) -> None:
    (tmp_path / "private.mp4").write_text("private")
    meta = {"_type": "gradio.FileData"}
    for path in (tmp_path / "private.mp4", "/etc/hostname", "/tmp/../etc/hostname"):
        assert '"success":false' in join_queue(url, [{"path": str(path), "meta": meta}])
    [path] = upload(url, "mine.mp4", 10).json()
    assert '"success":true' in join_queue(url, [{"path": path, "meta": meta}])
    Path(path).unlink()


def test_uploads_have_a_size_each_and_together(url: str) -> None:
    assert upload(url, "large.mp4", MAX_MB * 10**6 + 1).status_code == 413
    assert upload(url, "huge.mp4", 4 * MAX_MB * 10**6).status_code == 413
    responses = [upload(url, f"{number}.mp4", MAX_MB * 10**6 - 1000) for number in range(4)]
    assert [response.status_code for response in responses] == [200, 200, 200, 507]
    assert (
        "the files of all pages would take 4.0 MB, expected at most 3 MB (--max-total-mb)"
        in responses[3].text
    )
    for response in responses[:3]:
        Path(response.json()[0]).unlink()


def test_uploads_that_arrive_at_the_same_time_have_a_size_together(tmp_path: Path) -> None:
    is_answered = asyncio.Event()
    statuses: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await is_answered.wait()
        await PlainTextResponse("stored")(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    check_space = Sessions(tmp_path, max_mb=TOTAL_MB).check_space
    request_guard = RequestGuard(app, ["localhost"], max_upload_bytes=10**6, check_space=check_space)
    headers = [(b"host", b"localhost"), (b"content-length", b"1000000")]
    scope = {"type": "http", "method": "POST", "path": UPLOAD_ROUTE, "headers": headers}

    async def upload_five_twice() -> None:
        for _ in range(2):  # the second time, the first five have left
            is_answered.clear()
            tasks = [asyncio.ensure_future(request_guard(scope, receive, send)) for _ in range(5)]
            await asyncio.sleep(0.05)
            is_answered.set()
            await asyncio.gather(*tasks)

    asyncio.run(upload_five_twice())
    assert statuses == [507, 507, 200, 200, 200] * 2


def test_a_body_without_a_length_is_bounded_too(url: str) -> None:
    def send_chunks() -> Iterator[bytes]:
        yield from [b"x" * 2**16] * (2 * MAX_BODY_BYTES // 2**16)

    headers = {"Content-Type": "application/json"}
    response = ask(url, "gradio_api/queue/join", method="POST", content=send_chunks(), headers=headers)
    assert response.status_code == 413


@contextlib.contextmanager
def send_headers(url: str, *lines: str) -> Iterator[socket.socket]:
    """A connection over which only the headers of an upload were sent, and whose answer has begun."""
    head = "\r\n".join((f"POST {UPLOAD_ROUTE} HTTP/1.1", "Host: localhost", *lines))
    with socket.create_connection(("127.0.0.1", get_port(url)), GUARD_SECONDS) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert connection.recv(12, socket.MSG_PEEK).startswith(b"HTTP/1.1 4")
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("header", [f"Content-Length: {40 * 10**6}", "Origin: http://evil.com"])
def test_who_is_refused_while_sending_can_send_all_and_read_why(url: str, header: str) -> None:
    lengths = [header] if "Length" in header else [header, f"Content-Length: {40 * 10**6}"]
    with send_headers(url, *lengths) as connection:
        for _ in range(40):
            connection.sendall(bytes(10**6))  # fails where the connection was closed
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 4") and answer.count(b"\r\n\r\n") == 1
    assert answer.endswith(b"expected at most 1,065,536\n" if "Length" in header else b"is another page\n")


@pytest.mark.parametrize("limit", ["DISCARD_SECONDS", "SILENT_SECONDS"])
def test_who_is_refused_and_sends_no_more_is_not_waited_for(
    limit: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISCARD_SECONDS", "SILENT_SECONDS"):
        monkeypatch.setattr(guard, name, 0.1 if name == limit else 600)
    with send_headers(url, f"Content-Length: {40 * 10**6}") as connection:
        connection.sendall(b"x")
        assert read_to_end(connection).endswith(b"expected at most 1,065,536\n")


BODIES = [
    b"", b"{", b"null", b"[1]", b'"x"', b"{}", b'{"data": 1}', b'{"fn_index": -1, "data": []}',
    b'{"fn_index": 1e9, "data": []}', b'{"fn_index": "x", "data": [], "session_hash": [1]}', b"[" * 50_000,
    json.dumps({"fn_index": 0, "data": [{"path": 5}], "session_hash": "x"}).encode(),
]  # fmt: skip


def test_each_refusal_is_a_line_of_the_log(url: str, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.WARNING)
    ask(url, "config", headers={"Host": "evil.com\t" + "x" * 3000})
    ask(url, "config", headers={"Origin": "http://evil.com"})
    assert [record.message for record in caplog.records][1] == (
        "127.0.0.1 GET /config: 403, Origin 'http://evil.com' is another page"
    )
    for path in (
        "gradio_api/queue/join",
        "gradio_api/upload",
        "gradio_api/run/x",
        "gradio_api/cancel",
        "login",
    ):
        for body in BODIES:
            content_type = {"Content-Type": "application/json"}
            assert ask(url, path, method="POST", content=body, headers=content_type).status_code < 600
    ask(url, "gradio_api/upload", method="POST", files={"files": (None, "text")})
    for data in ([], [None, None], ["x"], [{"path": "\0", "meta": {"_type": "gradio.FileData"}}]):
        join_queue(url, data)
    with contextlib.suppress(httpx.RemoteProtocolError):  # Gradio ends it amid the answer
        ask(url, "gradio_api/queue/data?session_hash=nobody")
    messages = [record.getMessage() for record in caplog.records if not record.exc_info]
    assert len(messages) == len(caplog.records), "no record has a traceback"
    assert all("\n" not in message and len(message) < 400 for message in messages)
    assert "Traceback" not in capfd.readouterr().err


def test_a_session_ends_when_it_was_not_used_for_so_long(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, keep_seconds=0)
    session = sessions.get("a")
    (session.make_empty_folder("result") / "x.mp4").write_bytes(b"x")
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "no page uses it.mp4").write_bytes(b"x")
    with session.keep_files():
        sessions.remove_old()
        assert session.folder.is_dir() and not (tmp_path / "hash").exists()
    sessions.remove_old()
    assert not list(tmp_path.iterdir())
    assert sessions.get("a") is not session


def test_files_of_sessions_in_use_are_not_removed(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, keep_seconds=60)
    (sessions.get("a").make_empty_folder("result") / "x.mp4").write_bytes(b"x")
    sessions.remove_old()
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["x.mp4"]


def test_sessions_without_a_page_are_bounded(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    first = sessions.get("0")
    first.make_empty_folder("result")
    for number in range(MAX_SESSIONS):
        sessions.get(str(number + 1))
    assert first.stop.is_set() and not list(tmp_path.iterdir()), "the oldest has ended"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.app.sessions.Session.is_busy", True)
        with pytest.raises(StageError, match=f"{MAX_SESSIONS} pages are open"):
            sessions.get("one more")
