"""Shards that lie elsewhere, kept on this machine's disk: each is brought once, whole and checked.

    FOLDER/<sha256>.tar    shards, named for their contents: datasets that share one share its file
    FOLDER/users/          a file for each process that reads here, which lists the shards it holds
    FOLDER/.lock           whoever brings, removes or holds shards has it, one process at a time

What was not used for longest goes when room is needed, but nothing that a living process holds.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from shards.atomic import PARTIAL_SUFFIX
from shards.index import ShardEntry
from shards.reader import Dataset
from shards.schema import ShardError
from shards.storage import LocalStorage

AT_ONCE = 8  # shards brought at the same time
SUFFIX = ".tar"


class ShardStore(Protocol):
    """Where shards can be read as local files, once they are held."""

    def path(self, entry: ShardEntry) -> Path: ...

    def hold(self, entries: Iterable[ShardEntry]) -> None: ...

    def release(self, entries: Iterable[ShardEntry]) -> None: ...


@contextlib.contextmanager
def open_shard_store(dataset: Dataset, folder: Path | None, limit_bytes: int) -> Iterator[ShardStore]:
    """A folder's shards where they are, others in the cache ``folder``, by default the user's."""
    if isinstance(dataset.storage, LocalStorage):
        yield LocalShards(dataset.storage.path)
        return

    def bring(entry: ShardEntry, path: Path) -> None:
        dataset.storage.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)

    cache = ShardCache(folder or user_shard_cache(), limit_bytes, bring)
    with contextlib.closing(cache):
        yield cache


def user_shard_cache() -> Path:
    """The user's cache of shards."""
    return user_cache_path("redub") / "shards"


def cached_shard_path(folder: Path, entry: ShardEntry) -> Path:
    """Where a cache keeps a shard."""
    return folder / f"{entry.sha256}{SUFFIX}"


class LocalShards:
    """The shards of a folder of this machine: nothing to bring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, entry: ShardEntry) -> Path:
        return self.folder / entry.name

    def hold(self, entries: Iterable[ShardEntry]) -> None:
        pass

    def release(self, entries: Iterable[ShardEntry]) -> None:
        pass


class ShardCache:
    """This process's use of a folder of shards that other processes use too."""

    def __init__(self, folder: Path, limit_bytes: int, bring: Callable[[ShardEntry, Path], object]) -> None:
        """``bring`` makes a shard's file, whole and of the right sha256, or raises ShardError."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._bring = bring
        self._held: Counter[str] = Counter()  # by sha256
        self._counting = threading.Lock()
        self._turn = threading.Lock()  # a FileLock lets all threads of its process in
        users = folder / "users"
        users.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", thread_local=False)
        self._list = users / uuid.uuid4().hex
        self._alive = FileLock(f"{self._list}.lock", thread_local=False)
        with self._lock:
            self._alive.acquire()

    def path(self, entry: ShardEntry) -> Path:
        return cached_shard_path(self.folder, entry)

    def hold(self, entries: Iterable[ShardEntry]) -> None:
        """Bring what is not here, and keep all of them until ``release``. Raises ShardError."""
        wanted = {entry.sha256: entry for entry in entries}
        with self._turn, self._lock:
            missing = [entry for entry in wanted.values() if not self._is_here(entry)]
            self._make_room(sum(entry.bytes for entry in missing), keep=set(wanted))
            self._count(wanted, 1)
            try:
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    tasks = [pool.submit(self._bring, entry, self.path(entry)) for entry in missing]
                for task in tasks:  # all have ended
                    task.result()
            except BaseException:
                self._count(wanted, -1)
                raise
            for entry in wanted.values():
                os.utime(self.path(entry))  # the last use, for whoever makes room

    def release(self, entries: Iterable[ShardEntry]) -> None:
        """These may go, as far as this process is concerned. Waits for nobody."""
        self._count({entry.sha256 for entry in entries}, -1)

    def close(self) -> None:
        """Let go of everything."""
        self._list.unlink(missing_ok=True)
        self._alive.release()

    def _is_here(self, entry: ShardEntry) -> bool:
        try:
            return self.path(entry).stat().st_size == entry.bytes
        except FileNotFoundError:
            return False

    def _count(self, names: Iterable[str], change: int) -> None:
        """Hold these once more, or once less, and let other processes know."""
        with self._counting:
            for sha256 in names:
                self._held[sha256] += change
            self._held = +self._held
            partial = self._list.with_suffix(PARTIAL_SUFFIX)
            partial.write_text("\n".join(self._held))
            partial.replace(self._list)

    def _make_room(self, needed: int, keep: set[str]) -> None:
        for half in self.folder.glob(f".*{PARTIAL_SUFFIX}"):  # a killed process's: nobody else writes now
            half.unlink()
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in files) + needed - self.limit_bytes
        if excess <= 0:
            return
        in_use = keep | self._in_use()
        for _, size, path in sorted(files):
            if excess > 0 and path.stem not in in_use:
                path.unlink()
                excess -= size
        if excess > 0:
            held = sum(size for _, size, path in files if path.stem in in_use)
            raise ShardError(
                f"{self.folder}: {needed / 1e9:.3g} GB more are needed beside {held / 1e9:.3g} GB in use, "
                f"the limit is {self.limit_bytes / 1e9:.3g} GB; allow more, or read in smaller windows"
            )

    def _in_use(self) -> set[str]:
        """What living processes hold, this one among them; the lists of dead ones are removed."""
        held = set(self._held)
        for lock_file in self._list.parent.glob("*.lock"):
            listed = lock_file.with_suffix("")
            if listed == self._list:
                continue
            try:
                with FileLock(lock_file, timeout=0):
                    listed.unlink(missing_ok=True)
                lock_file.unlink(missing_ok=True)
            except Timeout:
                with contextlib.suppress(FileNotFoundError):
                    held |= set(listed.read_text().split())
        return held
