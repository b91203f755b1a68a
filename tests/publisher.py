"""A publisher of corpora on loopback that responds as Zenodo and GitHub do, with network faults."""

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
    """Files by path, the faults of the next responses, and the requests so far."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)  # path and Range
    closing: threading.Event = field(default_factory=threading.Event)

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def fail(self, path: str, faults: list[str]) -> None:
        """Set the faults of the next responses; "well" is none."""
        self.faults[path] = list(faults)

    def add_record(self, number: int, files: dict[str, bytes]) -> None:
        """Publish files as a record of Zenodo."""
        entries = []
        for key, data in files.items():
            digest = f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"
            entries.append({"key": key, "size": len(data), "checksum": digest})
            self.files[f"/api/records/{number}/files/{key}/content"] = data
        self.files[f"/api/records/{number}"] = json.dumps({"files": entries}).encode()

    def add_repository(self, files: dict[str, bytes]) -> None:
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

    def locate_objects(self, body: bytes) -> bytes:
        """The response of the Git LFS batch API: the address of each object."""
        objects = json.loads(body)["objects"]
        for item in objects:
            if f"/lfs/{item['oid']}" in self.files:
                item["actions"] = {
                    "download": {"href": f"{self.url}/lfs/{item['oid']}?signed=1", "header": {}}
                }
            else:
                item["error"] = {"code": 404, "message": "Object does not exist"}
        return json.dumps({"transfer": "basic", "objects": objects}).encode()


class _Handler(BaseHTTPRequestHandler):
    publisher: Publisher

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        byte_range = self.headers.get("Range", "")
        self.publisher.requests.append((path, byte_range))
        pending = self.publisher.faults.get(path, [])
        fault = pending.pop(0) if pending else "well"
        data = self.publisher.files.get(path)
        if fault.startswith("redirect "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect "))
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has disconnected
                self.wfile.write(data or b"")
            return
        if data is None or fault.isdigit():
            self.send_error(int(fault) if fault.isdigit() else 404)
            return
        if fault == "other":
            data = bytes(reversed(data))
        if fault == "longer":
            data += b"more"
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if byte_range and fault != "no ranges" and self.headers.get("If-Range", etag) == etag:
            start = int(byte_range.removeprefix("bytes=").rstrip("-"))
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
            with contextlib.suppress(OSError):  # the client has disconnected
                for start in range(0, len(body), 100):
                    self.wfile.write(body[start : start + 100])
                    self.publisher.closing.wait(0.02)
            return
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            self.publisher.closing.wait(60)

    def do_POST(self) -> None:
        self.publisher.requests.append((self.path, ""))
        response = self.publisher.locate_objects(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


@contextlib.contextmanager
def start_publisher() -> Iterator[Publisher]:
    """A publisher that runs as long as the block."""
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
