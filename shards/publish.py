"""Copy whole datasets: download one to this machine once, and publish one from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from platformdirs import user_cache_path

from shards.atomic import write_atomically
from shards.cache import DOWNLOADS, get_cached_shard_path, get_user_shard_cache
from shards.checksum import file_sha256
from shards.files import is_regular_file
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    ShardEntry,
    compute_digest,
    get_published_name,
    parse_shard_entries,
    read_manifest,
    read_table,
    read_table_hashes,
)
from shards.locks import hold_lock
from shards.schema import ShardError
from shards.storage import LocalStorage, Storage, is_remote, open_storage

T = TypeVar("T")
U = TypeVar("U")

UPLOADS = 4  # at the same time
# Files named by their contents, which publishing leaves behind; `prune` removes no others.
PUBLISHED = re.compile(r"[^/]+-\d{5}-[0-9a-f]{12}\.tar|(index|ledger)-[0-9a-f]{12}\.parquet")


def download_dataset(
    address: str,
    cache: Path | None = None,
    *,
    limit_bytes: int | None = None,
    progress: Callable[[str, int, int], object] = lambda label, done, total: None,
) -> Path:
    """The folder of the dataset at ``address``: a folder itself, or a copy that is made once per machine.

    Copies are in ``cache`` (by default the user's), named by the dataset's digest. The manifest is written
    last: without it a folder is no dataset. Each shard is checked by size and sha256; one that is in the
    cache of shards is linked, not copied. Processes that want the same dataset wait for the one that
    downloads it. ``progress`` counts bytes. Raises ShardError when the dataset cannot be read or differs from
    its manifest, or its shards have more than ``limit_bytes``.
    """
    if not is_remote(address):
        return Path(address)
    storage = open_storage(address)
    manifest = read_manifest(storage)
    entries = parse_shard_entries(manifest)
    folder = _locate_copy(storage, manifest, cache)
    total = sum(entry.bytes for entry in entries)

    def download(entry: ShardEntry) -> int:
        path = folder / entry.name
        cached = get_cached_shard_path(cache or get_user_shard_cache(), entry)
        if not path.is_file() and not _link_file(cached, path, entry.sha256):
            storage.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)
        return entry.bytes

    folder.mkdir(parents=True, exist_ok=True)
    message = f"{storage.address}: waiting for another process that downloads it to {folder}"
    with hold_lock(FileLock(folder / ".lock"), message):
        if (folder / DATASET_NAME).is_file():
            return folder
        if limit_bytes is not None and total > limit_bytes:
            raise ShardError(
                f"{storage.address}: a copy of it takes {total / 1e9:.3g} GB, the limit is "
                f"{limit_bytes / 1e9:.3g} GB; allow more, or read it in windows"
            )
        done = 0
        for size in _run_in_threads(download, entries, DOWNLOADS):
            done += size
            progress("downloading", done, total)
        for name in (INDEX_NAME, LEDGER_NAME):
            with write_atomically(folder / name) as partial:
                partial.write_bytes(read_table(storage, manifest, name))
        with write_atomically(folder / DATASET_NAME) as partial:
            partial.write_text(json.dumps(manifest))
    return folder


def _run_in_threads(function: Callable[[T], U], items: Iterable[T], n_threads: int) -> Iterator[U]:
    """Results in the order in which they are ready. After an error no further item is begun."""
    pool = ThreadPoolExecutor(n_threads)
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def locate_dataset(address: str, cache: Path | None = None) -> Path | Storage:
    """The folder of the dataset at ``address`` if ``download_dataset`` has made a copy, else its storage.

    A copy in the user's cache counts too, whichever ``cache`` is named.
    """
    if not is_remote(address):
        return Path(address)
    storage = open_storage(address)
    manifest = read_manifest(storage)
    folders = (_locate_copy(storage, manifest, each) for each in dict.fromkeys((cache, None)))
    return next((folder for folder in folders if (folder / DATASET_NAME).is_file()), storage)


def _locate_copy(storage: Storage, manifest: Mapping[str, Any], cache: Path | None) -> Path:
    """The folder for a copy of a dataset. Raises ShardError when the manifest's digest is wrong."""
    path = f"{storage.address}/{DATASET_NAME}"
    digest = compute_digest(parse_shard_entries(manifest))
    if manifest.get("digest") != digest:
        raise ShardError(f"{path}: digest {manifest.get('digest')!r}, its shards make {digest!r}")
    return (cache or user_cache_path("redub") / "datasets") / digest


def _link_file(source: Path, path: Path, sha256: str) -> bool:
    """Make ``path`` a hard link to a file with this sha256; False if there is none on this file system."""
    try:
        if file_sha256(source) != sha256:
            return False
        with write_atomically(path) as partial:
            os.link(source, partial)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of a dataset, and its name in the storage."""

    path: Path
    name: str
    size: int
    sha256: str


def publish(
    folder: Path,
    storage: Storage,
    *,
    progress: Callable[[str, int, int], object] = lambda label, done, total: None,
) -> int:
    """Make the dataset in ``folder`` the one in ``storage``. Returns the number of bytes uploaded.

    Shards and tables are named by their contents and replace nothing, so that readers of an older dataset
    continue. The manifest is uploaded last: a reader sees the old dataset or the new one, complete. A file
    that is in the storage is not uploaded again and need not be in ``folder``: a killed upload continues
    where it stopped, and the shards may have been uploaded by the machines that made them. ``progress``
    counts bytes.
    """
    uploads = list(_list_uploads(folder))
    manifest = folder / DATASET_NAME
    total = sum(upload.size for upload in uploads)
    done = n_sent = 0
    for size, is_sent in _run_in_threads(
        lambda upload: _upload_if_missing(upload, storage), uploads, UPLOADS
    ):
        done, n_sent = done + size, n_sent + size * is_sent
        progress("upload", done, total)
    storage.upload(manifest, DATASET_NAME, sha256=file_sha256(manifest))
    return n_sent


def _list_uploads(folder: Path) -> Iterator[Upload]:
    """All files of a dataset but its manifest."""
    manifest = read_manifest(folder)
    for entry in parse_shard_entries(manifest):
        yield Upload(folder / entry.name, entry.name, entry.bytes, entry.sha256)
    for name in (INDEX_NAME, LEDGER_NAME):
        sha256 = read_table_hashes(manifest).get(name)
        if sha256 is None:
            raise ShardError(f"{folder / DATASET_NAME}: has no sha256 of {name}; build the dataset again")
        yield Upload(
            folder / name, get_published_name(name, sha256), LocalStorage(folder).size(name) or 0, sha256
        )


def _upload_if_missing(upload: Upload, storage: Storage) -> tuple[int, bool]:
    """Upload a file that the storage does not have; (its bytes, whether they were sent)."""
    if storage.has_file(upload.name, upload.size, upload.sha256):
        return upload.size, False
    if not is_regular_file(upload.path, inside=upload.path.parent):
        raise ShardError(f"{upload.path}: no file in this folder, but {DATASET_NAME} names it")
    sha256 = file_sha256(upload.path)
    if sha256 != upload.sha256:
        raise ShardError(f"{upload.path}: sha256 {sha256[:12]}, its manifest says {upload.sha256[:12]}")
    storage.upload(upload.path, upload.name, sha256=upload.sha256)
    if not storage.has_file(upload.name, upload.size, upload.sha256):
        raise ShardError(f"{storage.address}/{upload.name}: was uploaded, but is not there as it was sent")
    return upload.size, True


def find_leftovers(storage: Storage) -> list[str]:
    """Shards and tables that the dataset does not name: an older dataset's, or an interrupted upload's."""
    manifest = read_manifest(storage)
    names = {entry.name for entry in parse_shard_entries(manifest)}
    names |= {get_published_name(name, sha256) for name, sha256 in read_table_hashes(manifest).items()}
    listed = (file.name for file in storage.walk())  # PUBLISHED matches no file in a folder
    return [name for name in listed if PUBLISHED.fullmatch(name) and name not in names]
