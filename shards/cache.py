"""Shards of a remote dataset on this machine's disk: each is downloaded once, complete and checked.

    FOLDER/<sha256>.tar    shards, named by their contents: datasets that share a shard share its file
    FOLDER/users/          a file for each process that reads here, which lists the shards it holds
    FOLDER/.lock           locked by a process while it downloads, removes or holds shards

The shards that were not used for longest are removed when room is needed, except those that a living process
holds.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from shards.atomic import remove_partials, write_atomically
from shards.files import is_inside, name_errors
from shards.index import ShardEntry
from shards.locks import hold_lock
from shards.reader import Dataset
from shards.schema import ShardError
from shards.storage import LocalStorage

DOWNLOADS = 8  # at the same time
SILENT_WAIT_SECONDS = 10.0  # for another process's download, before a warning
SUFFIX = ".tar"
USER_NAME = re.compile(r"[0-9a-f]{32}")
SHARD_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")  # no other file is removed to make room


class ShardStore(Protocol):
    """Shards as local files, which can be read between ``hold`` and ``release``."""

    def path(self, entry: ShardEntry) -> Path: ...

    def hold(self, entries: Iterable[ShardEntry]) -> None: ...

    def release(self, entries: Iterable[ShardEntry]) -> None: ...


@contextlib.contextmanager
def open_shard_store(dataset: Dataset, folder: Path | None, limit_bytes: int) -> Iterator[ShardStore]:
    """The shards of a local dataset in its folder; of a remote one in a cache, by default the user's."""
    storage = dataset.storage
    if isinstance(storage, LocalStorage):
        yield LocalShards(storage.path)
        return

    def download(entry: ShardEntry, path: Path) -> None:
        storage.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)

    cache = ShardCache(folder or get_user_shard_cache(), limit_bytes, download)
    with contextlib.closing(cache):
        yield cache


def get_user_shard_cache() -> Path:
    """The user's folder of cached shards."""
    return user_cache_path("redub") / "shards"


def get_cached_shard_path(folder: Path, entry: ShardEntry) -> Path:
    """The path of a shard in a cache."""
    return folder / f"{entry.sha256}{SUFFIX}"


class LocalShards:
    """The shards of a folder on this machine: nothing to download."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, entry: ShardEntry) -> Path:
        path = self.folder / entry.name
        if path.exists() and not is_inside(path, self.folder):
            raise ShardError(f"{path}: leads out of its folder by a link; copy the file there")
        return path

    def hold(self, entries: Iterable[ShardEntry]) -> None:
        pass

    def release(self, entries: Iterable[ShardEntry]) -> None:
        pass


class ShardCache:
    """A folder of shards that several processes use, as one of them sees it."""

    def __init__(
        self, folder: Path, limit_bytes: int, download: Callable[[ShardEntry, Path], object]
    ) -> None:
        """``download`` writes a shard's file, complete and with the right sha256, or raises ShardError."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._download = download
        self._holds: Counter[str] = Counter()  # by sha256
        self._holds_lock = threading.Lock()
        self._thread_lock = threading.Lock()  # a FileLock does not exclude threads of its own process
        users = folder / "users"
        users.mkdir(parents=True, exist_ok=True)
        self._process_lock = FileLock(folder / ".lock", thread_local=False)
        self._list = users / uuid.uuid4().hex
        self._is_alive = FileLock(f"{self._list}.lock", thread_local=False)  # released when the process ends
        with name_errors(folder / ".lock"), self._wait_for_lock():
            self._is_alive.acquire()

    def path(self, entry: ShardEntry) -> Path:
        return get_cached_shard_path(self.folder, entry)

    def hold(self, entries: Iterable[ShardEntry]) -> None:
        """Download the missing shards, and keep all of them until ``release``. Raises ShardError."""
        by_hash = {entry.sha256: entry for entry in entries}
        with self._thread_lock, self._wait_for_lock():
            missing = [entry for entry in by_hash.values() if not self._is_cached(entry)]
            self._make_room(sum(entry.bytes for entry in missing), keep=set(by_hash))
            self._change_holds(by_hash, 1)
            try:
                with ThreadPoolExecutor(DOWNLOADS) as pool:
                    futures = [pool.submit(self._download, entry, self.path(entry)) for entry in missing]
                for future in futures:  # all have finished
                    future.result()
            except BaseException:
                self._change_holds(by_hash, -1)
                raise
            for entry in by_hash.values():
                os.utime(self.path(entry))  # the time of its last use

    def release(self, entries: Iterable[ShardEntry]) -> None:
        """Allow these shards to be removed. Does not block."""
        self._change_holds({entry.sha256 for entry in entries}, -1)

    def close(self) -> None:
        """Release all shards."""
        self._list.unlink(missing_ok=True)
        self._is_alive.release()

    def _wait_for_lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder; say so if another process has it for longer than SILENT_WAIT_SECONDS."""
        message = (
            f"{self.folder}: waiting for another process that downloads shards to it; "
            f"it has locked {self._process_lock.lock_file}"
        )
        return hold_lock(self._process_lock, message, silent_seconds=SILENT_WAIT_SECONDS)

    def _is_cached(self, entry: ShardEntry) -> bool:
        try:
            return self.path(entry).stat().st_size == entry.bytes
        except FileNotFoundError:
            return False

    def _change_holds(self, hashes: Iterable[str], change: int) -> None:
        """Hold these shards once more, or once less, and write the list that other processes read."""
        with self._holds_lock:
            for sha256 in hashes:
                self._holds[sha256] += change
            self._holds = +self._holds
            with write_atomically(self._list) as partial:
                partial.write_text("\n".join(self._holds))

    def _make_room(self, n_bytes: int, keep: set[str]) -> None:
        remove_partials(self.folder)
        files = []
        for path in filter(lambda path: SHARD_NAME.fullmatch(path.name), self.folder.iterdir()):
            stat = path.stat()
            files.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in files) + n_bytes - self.limit_bytes
        if excess <= 0:
            return
        in_use = keep | self._find_in_use()
        for _, size, path in sorted(files):
            if excess > 0 and path.stem not in in_use:
                path.unlink()
                excess -= size
        if excess > 0:
            in_use_bytes = sum(size for _, size, path in files if path.stem in in_use)
            raise ShardError(
                f"{self.folder}: {n_bytes / 1e9:.3g} GB more are needed beside {in_use_bytes / 1e9:.3g} GB "
                f"in use, the limit is {self.limit_bytes / 1e9:.3g} GB; "
                "allow more, or read in smaller windows"
            )

    def _find_in_use(self) -> set[str]:
        """The shards that living processes hold, this one included. Removes the lists of dead processes."""
        in_use = set(self._holds)
        for lock_file in self._list.parent.glob("*.lock"):
            shard_list = lock_file.with_suffix("")
            if shard_list == self._list or not USER_NAME.fullmatch(shard_list.name):
                continue
            try:
                with FileLock(lock_file, timeout=0):
                    shard_list.unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(FileNotFoundError):
                    in_use |= set(shard_list.read_text().split())
        return in_use
