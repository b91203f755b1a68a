"""Commands of tests that see a file system which the rest of the machine does not."""

from __future__ import annotations

import os
import subprocess

import pytest


def mount_before(*options: str) -> list[str]:
    """Words before a command that mount a file system for it alone. Skips the test where that is refused."""
    words = ["unshare", "--mount", "sh", "-c", f'mount {" ".join(options)} && exec "$@"', "sh"]
    if os.geteuid() or subprocess.run([*words, "true"], check=False).returncode:
        pytest.skip("only root can mount file systems of its own")
    return words
