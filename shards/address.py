"""From an address to the place there."""

from __future__ import annotations

from pathlib import Path

from shards.schema import ShardError
from shards.storage import LocalStorage, Storage


def is_remote(address: str) -> bool:
    """Whether it is an address and no folder."""
    return "://" in address


def open_storage(where: str | Path | Storage) -> Storage:
    """The place at a folder, ``s3://bucket/prefix`` or ``https://...``. Nothing is asked of it yet."""
    if isinstance(where, Path):
        return LocalStorage(where)
    if not isinstance(where, str):
        return where
    if not is_remote(where):
        return LocalStorage(Path(where))
    from shards.remote import RemoteStorage

    scheme = where.partition("://")[0].lower()
    if scheme == "s3":
        from shards.s3 import S3Transport  # needs boto3

        return RemoteStorage(S3Transport(where))
    if scheme in ("http", "https"):
        from shards.http import HttpTransport  # loads requests

        return RemoteStorage(HttpTransport(where))
    raise ShardError(f"{where}: cannot be read; known are folders, s3:// and https://")
