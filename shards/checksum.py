"""Hashes of files' contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shards.files import name_errors, open_file

CHUNK_BYTES = 2**20
HASH_LETTERS = 12  # of a sha256, in the names of files that are named by their contents


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes. Raises OSError, also for a path that is no regular file."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes, read in chunks."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with name_errors(path), open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
