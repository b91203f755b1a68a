"""A publisher of corpora on loopback, which answers as Zenodo and GitHub do and fails as networks do."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Publisher:
    """What is served by path, what goes wrong there next, and what was asked."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and Range
    closing: threading.Event = field(default_factory=threading.Event)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def fail(self, path: str, faults: list[str]) -> None:
        """Say what goes wrong in the next answers; "well" is nothing."""
        self.faults[path] = list(faults)

    def record(self, number: int, files: dict[str, bytes]) -> None:
        """Publish files as a record of Zenodo."""
        listed = []
        for key, data in files.items():
            digest = f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"
            listed.append({"key": key, "size": len(data), "checksum": digest})
            self.files[f"/api/records/{number}/files/{key}/content"] = data
        self.files[f"/api/records/{number}"] = json.dumps({"files": listed}).encode()

    def repository(self, files: dict[str, bytes]) -> None:
        """Publish files as a Git repository with LFS."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for path, data in files.items():
                oid = hashlib.sha256(data).hexdigest()
                self.files[f"/lfs/{oid}"] = data
                text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"
                member = tarfile.TarInfo(f"CREMA-D-master/{path}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
        self.files["/archive.tar.gz"] = packed.getvalue()

    def batch(self, question: bytes) -> bytes:
        """The answer of Git LFS to where objects lie."""
        objects = json.loads(question)["objects"]
        for told in objects:
            if f"/lfs/{told['oid']}" in self.files:
                told["actions"] = {
                    "download": {"href": f"{self.url}/lfs/{told['oid']}?signed=1", "header": {}}
                }
            else:
                told["error"] = {"code": 404, "message": "Object does not exist"}
        return json.dumps({"transfer": "basic", "objects": objects}).encode()


class _Handler(BaseHTTPRequestHandler):
    publisher: Publisher

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range", "")
        self.publisher.asked.append((path, wanted))
        coming = self.publisher.faults.get(path, [])
        fault = coming.pop(0) if coming else "well"
        data = self.publisher.files.get(path)
        if data is None or fault.isdigit():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        if fault == "other":
            data = bytes(reversed(data))
        if fault == "longer":
            data += b"more"
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if wanted and fault != "no ranges" and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if fault in ("cut", "stall"):
            body = body[: len(body) // 2]
        if fault == "trickle":
            with contextlib.suppress(OSError):  # who asked has gone
                for start in range(0, len(body), 100):
                    self.wfile.write(body[start : start + 100])
                    self.publisher.closing.wait(0.02)
            return
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            self.publisher.closing.wait(60)

    def do_POST(self) -> None:
        self.publisher.asked.append((self.path, ""))
        answer = self.publisher.batch(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


@contextlib.contextmanager
def publisher() -> Iterator[Publisher]:
    """A publisher that is there as long as the block."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        handler.publisher = Publisher(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield handler.publisher
        finally:
            handler.publisher.closing.set()
            http.shutdown()
            thread.join()
