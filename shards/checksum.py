"""The name of a file's contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK_BYTES = 2**20
HASH_LETTERS = 12  # of a sha256, in the names of files that are called by their contents


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes, read a piece at a time."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
