"""Docker's health check: does the page answer, where the container serves it? Other commands are healthy."""

import sys
import urllib.error
import urllib.request
from pathlib import Path

PORT = 7860  # the Dockerfile exposes it


def main() -> int:
    arguments = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    if b"app" not in arguments:
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as answer:
            return int(answer.status != 200)
    except (urllib.error.URLError, OSError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
