"""Whole datasets on their way: brought to this machine once, and published from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from shards.atomic import write_atomically
from shards.cache import cached_shard_path, user_shard_cache
from shards.checksum import file_sha256
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    compute_digest,
    published_name,
    read_dataset,
    read_table,
    read_table_hashes,
    shard_entries,
)
from shards.schema import ShardError
from shards.storage import LocalStorage, Storage, is_remote, open_storage

UPLOADS = 4  # at once
# Files with the names of their contents, which publishing leaves behind; nothing else is ever removed.
PUBLISHED = re.compile(r"[^/]+-\d{5}-[0-9a-f]{12}\.tar|(index|ledger)-[0-9a-f]{12}\.parquet")


def download_dataset(address: str, cache: Path | None = None) -> Path:
    """The local folder of the dataset at ``address``: itself, or a copy that is made once per machine.

    Copies lie in ``cache`` (by default the user's) under the dataset's digest; the manifest, which makes a
    folder a dataset, is written last. Each shard is checked by size and sha256; one that lies in the cache of
    shards already takes no room twice. Processes that want the same dataset wait for the one that fetches it.
    Raises ShardError when it cannot be read or is not what its manifest says.
    """
    if not is_remote(address):
        return Path(address)
    place = open_storage(address)
    manifest = read_dataset(place)
    entries = shard_entries(manifest, f"{place.address}/{DATASET_NAME}")
    folder = _copy_of(place, manifest, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / DATASET_NAME).is_file():
            return folder
        for entry in entries:
            path = folder / entry.name
            if not path.is_file() and not _linked(
                cached_shard_path(user_shard_cache(), entry), path, entry.sha256
            ):
                place.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)
        for name in (INDEX_NAME, LEDGER_NAME):
            with write_atomically(folder / name) as partial:
                partial.write_bytes(read_table(place, manifest, name))
        with write_atomically(folder / DATASET_NAME) as partial:
            partial.write_text(json.dumps(manifest))
    return folder


def locate_dataset(address: str, cache: Path | None = None) -> Path | Storage:
    """The folder of the dataset at ``address`` if ``download_dataset`` has made a copy; else the place itself."""
    if not is_remote(address):
        return Path(address)
    place = open_storage(address)
    folder = _copy_of(place, read_dataset(place), cache)
    return folder if (folder / DATASET_NAME).is_file() else place


def _copy_of(place: Storage, manifest: Mapping[str, Any], cache: Path | None) -> Path:
    """Where the copy of the dataset at a place lies. Raises ShardError when it tells a wrong digest."""
    path = f"{place.address}/{DATASET_NAME}"
    digest = compute_digest(shard_entries(manifest, path))
    if manifest.get("digest") != digest:
        raise ShardError(f"{path}: digest {manifest.get('digest')!r}, its shards make {digest!r}")
    return (cache or user_cache_path("redub") / "datasets") / digest


def _linked(kept: Path, path: Path, sha256: str) -> bool:
    """Give a file a second name, if it is there, on the same file system, and what it should be."""
    try:
        if file_sha256(kept) != sha256:
            return False
        with write_atomically(path) as partial:
            os.link(kept, partial)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a dataset, and what it is called where it is published."""

    path: Path
    name: str
    size: int
    sha256: str


def publish(
    folder: Path, place: Storage, *, done: Callable[[int, int], object] = lambda n_bytes, total: None
) -> int:
    """Make the dataset in ``folder`` the one at ``place``; returns how many bytes had to be sent.

    Shards and tables have the names of their contents and replace nothing, so whoever reads an older dataset
    there reads on. The manifest comes last: who opens the place sees the old dataset or the new one, whole.
    A file that is there already is not sent again and need not be in ``folder``: so a killed upload goes on
    where it stopped, and shards may have been put there by the machines that made them.
    """
    uploads = list(_uploads(folder))
    manifest = folder / DATASET_NAME
    total = sum(upload.size for upload in uploads)
    sent = seen = 0
    pool = ThreadPoolExecutor(UPLOADS)
    try:
        for waiting in as_completed([pool.submit(_send, upload, place) for upload in uploads]):
            size, was_sent = waiting.result()
            seen, sent = seen + size, sent + size * was_sent
            done(seen, total)
    finally:
        pool.shutdown(cancel_futures=True)
    place.upload(manifest, DATASET_NAME, sha256=file_sha256(manifest))
    return sent


def _uploads(folder: Path) -> Iterator[Upload]:
    """All files of a dataset but its manifest."""
    manifest = read_dataset(folder)
    for entry in shard_entries(manifest, folder / DATASET_NAME):
        yield Upload(folder / entry.name, entry.name, entry.bytes, entry.sha256)
    for name in (INDEX_NAME, LEDGER_NAME):
        sha256 = read_table_hashes(manifest).get(name)
        if sha256 is None:
            raise ShardError(f"{folder / DATASET_NAME}: names no sha256 of {name}; build the dataset again")
        yield Upload(
            folder / name, published_name(name, sha256), LocalStorage(folder).size(name) or 0, sha256
        )


def _send(upload: Upload, place: Storage) -> tuple[int, bool]:
    """Put a file where it is not; (its bytes, whether they were sent)."""
    if place.has_file(upload.name, upload.size, upload.sha256):
        return upload.size, False
    if not upload.path.is_file():
        raise ShardError(f"{upload.path}: not there, but {DATASET_NAME} names it")
    found = file_sha256(upload.path)
    if found != upload.sha256:
        raise ShardError(f"{upload.path}: sha256 {found[:12]}, its manifest says {upload.sha256[:12]}")
    place.upload(upload.path, upload.name, sha256=upload.sha256)
    if not place.has_file(upload.name, upload.size, upload.sha256):
        raise ShardError(f"{place.address}/{upload.name}: was sent, but is not there as it was sent")
    return upload.size, True


def leftovers(place: Storage) -> list[str]:
    """Shards and tables that the dataset at ``place`` does not name: an older one's, or a broken upload's."""
    manifest = read_dataset(place)
    kept = {entry.name for entry in shard_entries(manifest, f"{place.address}/{DATASET_NAME}")}
    kept |= {published_name(name, sha256) for name, sha256 in read_table_hashes(manifest).items()}
    return [name for name in place.list_names() if PUBLISHED.fullmatch(name) and name not in kept]
