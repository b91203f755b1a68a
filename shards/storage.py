"""Datasets that lie elsewhere: https:// and whatever else fsspec reads, brought to this machine once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock
from platformdirs import user_cache_path

from shards.atomic import written_whole
from shards.index import DATASET_NAME, INDEX_NAME, LEDGER_NAME, digest_of, shard_entries
from shards.schema import ShardError

BLOCK_BYTES = 2**20
MAX_TABLE_BYTES = 2**31  # of the manifest, the index and the ledger
TRIES = 2  # a shard that comes wrong is fetched once more


def is_remote(address: str) -> bool:
    """Whether it is an address and no folder."""
    return "://" in address


def at_hand(address: str, cache: Path | None = None) -> Path:
    """The local folder of the dataset at ``address``: itself, or a copy that is made once per machine.

    Copies lie in ``cache`` (by default the user's) under the dataset's digest; the manifest, which makes a
    folder a dataset, is written last. Each shard is checked by size and sha256. Processes that want the same
    dataset wait for the one that fetches it. Raises ShardError when it cannot be read or is not what its
    manifest says.
    """
    if not is_remote(address):
        return Path(address)
    cache = user_cache_path("redub") / "datasets" if cache is None else cache
    place = _Place(address)
    manifest = place.manifest()
    entries = shard_entries(manifest, Path(DATASET_NAME))
    digest = digest_of(entries)
    if manifest.get("digest") != digest:
        told = manifest.get("digest")
        raise ShardError(f"{address}/{DATASET_NAME}: digest {told!r}, its shards make {digest!r}")
    folder = cache / digest
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / DATASET_NAME).is_file():
            return folder
        for entry in entries:
            if not (folder / entry.name).is_file():
                place.bring(entry.name, folder / entry.name, size=entry.bytes, sha256=entry.sha256)
        for name in (INDEX_NAME, LEDGER_NAME):
            place.bring(name, folder / name)
        with written_whole(folder / DATASET_NAME) as partial:
            partial.write_text(json.dumps(manifest))
    return folder


class _Place:
    """A folder somewhere else. Each file read from it is bounded."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as err:
            raise ShardError(f"{address}: cannot be read ({err})") from err

    def manifest(self) -> dict[str, Any]:
        data = b"".join(self._blocks(DATASET_NAME))
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError) as err:
            raise ShardError(f"{self.address}/{DATASET_NAME}: not JSON ({err})") from err
        if not isinstance(manifest, dict):
            found = type(manifest).__name__
            raise ShardError(f"{self.address}/{DATASET_NAME}: holds {found}, expected an object")
        return manifest

    def bring(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Copy a file; it appears when it is whole and, if ``sha256`` is told, right."""
        for tries_left in reversed(range(TRIES)):
            try:
                self._copy(name, path, size, sha256)
                return
            except ShardError:
                if not tries_left:
                    raise

    def _copy(self, name: str, path: Path, size: int | None, sha256: str | None) -> None:
        digest, n_bytes = hashlib.sha256(), 0
        with written_whole(path) as partial:
            with partial.open("wb") as file:
                for block in self._blocks(name, MAX_TABLE_BYTES if size is None else size):
                    file.write(block)
                    digest.update(block)
                    n_bytes += len(block)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ShardError(
                    f"{self.address}/{name}: {n_bytes} bytes with sha256 {digest.hexdigest()[:12]}, "
                    f"expected {size} with {sha256[:12]}"
                )

    def _blocks(self, name: str, limit: int = MAX_TABLE_BYTES) -> Iterator[bytes]:
        try:
            with self.files.open(f"{self.root}/{name}", "rb") as file:
                n_bytes = 0
                while block := file.read(BLOCK_BYTES):
                    n_bytes += len(block)
                    if n_bytes > limit:
                        raise ShardError(f"{self.address}/{name}: more than the {limit} bytes expected")
                    yield block
        except ShardError:
            raise
        except Exception as err:  # each kind of storage has errors of its own, and some are no OSError
            cause = _first_cause(err)
            if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
                raise ShardError(f"{self.address}: no {name} here, so this is no whole dataset") from err
            told = " ".join(str(cause).split()) or type(cause).__name__
            raise ShardError(f"{self.address}/{name}: cannot be read ({told})") from err


def _first_cause(err: BaseException) -> BaseException:
    """What began it: fsspec tells of a server that is not there as of a file that is not."""
    while err.__cause__ is not None:
        err = err.__cause__
    return err
