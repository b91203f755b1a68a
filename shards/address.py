"""From an address to the place there."""

from __future__ import annotations

from pathlib import Path

from shards.places import Folder, Place
from shards.schema import ShardError


def is_remote(address: str) -> bool:
    """Whether it is an address and no folder."""
    return "://" in address


def place_of(where: str | Path | Place) -> Place:
    """The place at a folder, ``s3://bucket/prefix`` or ``https://...``. Nothing is asked of it yet."""
    if isinstance(where, Path):
        return Folder(where)
    if not isinstance(where, str):
        return where
    if not is_remote(where):
        return Folder(Path(where))
    from shards.remote import Remote

    scheme = where.partition("://")[0].lower()
    if scheme == "s3":
        from shards.bucket import Bucket  # needs boto3

        return Remote(Bucket(where))
    if scheme in ("http", "https"):
        from shards.web import Web  # loads requests

        return Remote(Web(where))
    raise ShardError(f"{where}: cannot be read; known are folders, s3:// and https://")
