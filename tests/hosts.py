"""Several hosts on one machine: network namespaces on a bridge, each with a scratch folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NET = "10.213.77"  # .1 is this host, .11 and on are the others


@dataclass
class Hosts:
    """This host's address on the bridge, and the others by name."""

    names: list[str]
    scratch: Path  # a folder that each of them has an empty one of its own in the place of
    address: str = f"{NET}.1"
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def get_address(self, host: int) -> str:
        return f"{NET}.{11 + host}"

    def start(self, host: int, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run a command on a host. It sees this machine's programs, and nothing of what is in ``scratch``."""
        own_scratch = 'mount -t tmpfs tmpfs "$TMPDIR" && exec "$@"'
        process = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.names[host],
                "unshare",
                "--mount",
                "sh",
                "-c",
                own_scratch,
                "sh",
                *words,
            ],
            env={**os.environ, "TMPDIR": os.fspath(self.scratch), **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def cut(self, host: int) -> None:
        """Nothing comes or goes any more; nobody is told."""
        _ip("link", "set", f"v{self.names[host]}", "nomaster")

    def mend(self, host: int) -> None:
        _ip("link", "set", f"v{self.names[host]}", "master", _bridge(self.names[host]))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def hosts(count: int, scratch: Path) -> Iterator[Hosts]:
    """That many hosts beside this one, each with a ``scratch`` folder of its own.

    The test skips where namespaces may not be made.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("hosts in network namespaces need root and iproute2")
    tag = uuid.uuid4().hex[:4]
    made = Hosts([f"rd{tag}{number}" for number in range(count)], scratch)
    bridge = _bridge(made.names[0])
    with contextlib.ExitStack() as undo:
        try:
            _ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as err:
            pytest.skip(f"no network namespaces here: {err.stderr.decode().strip()}")
        undo.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{NET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, name in enumerate(made.names):
            _ip("netns", "add", name)
            undo.callback(_ip, "netns", "del", name)
            _ip("link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"v{name}", "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{made.get_address(number)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        try:
            yield made
        finally:
            for process in made.processes:
                end(process)


def _bridge(name: str) -> str:
    return f"b{name[:-1]}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
