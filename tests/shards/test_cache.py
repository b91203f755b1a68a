"""A cache of shards: each is downloaded once; those in use stay, others are removed when room is needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from shards.atomic import _identify_machine, write_atomically
from shards.cache import ShardCache
from shards.index import ShardEntry
from shards.schema import ShardError

SIZE = 1000


def entry(name: str, size: int = SIZE) -> ShardEntry:
    return ShardEntry(name, "train", size, hashlib.sha256(name.encode()).hexdigest(), 1, 1)


A, B, C, D = (entry(name) for name in "abcd")


def download(log: Path, shard: ShardEntry, path: Path) -> None:
    """Make a shard, and add its name to the log."""
    with log.open("a") as file:
        file.write(shard.name)
    with write_atomically(path) as partial:
        partial.write_bytes(shard.name.encode() * shard.bytes)


@contextlib.contextmanager
def cache(folder: Path, limit: int = 10 * SIZE) -> Iterator[ShardCache]:
    with contextlib.closing(
        ShardCache(folder / "cache", limit, functools.partial(download, folder / "log"))
    ) as shards:
        yield shards


def read_log(folder: Path) -> str:
    return (folder / "log").read_text()


def list_cached(folder: Path) -> set[str]:
    """Names of the shards in the cache."""
    names = {entry.sha256: entry.name for entry in (A, B, C, D)}
    return {names[path.stem] for path in (folder / "cache").glob("*.tar")}


def hold_in_process(folder: Path, _number: int) -> int:
    with cache(folder) as shards:
        shards.hold([A, B, C])
        return sum(shards.path(shard).stat().st_size for shard in (A, B, C))


def test_processes_that_need_the_same_shards_download_each_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        sizes = list(pool.map(functools.partial(hold_in_process, tmp_path), range(6)))
    assert sizes == [3 * SIZE] * 6
    assert sorted(read_log(tmp_path)) == ["a", "b", "c"]


def test_a_long_wait_for_another_process_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cache(tmp_path) as shards:
        shards.hold([A])
        assert not caplog.messages, "nobody else downloads"
        monkeypatch.setattr("shards.cache.SILENT_WAIT_SECONDS", 0.1)
        lock_file = tmp_path / "cache" / ".lock"
        is_locked = threading.Event()

        def lock_for_a_second() -> None:
            with FileLock(lock_file):
                is_locked.set()
                time.sleep(1)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(lock_for_a_second)
            assert is_locked.wait(60)
            shards.hold([B])
        assert list_cached(tmp_path) == {"a", "b"}
    assert caplog.messages == [
        f"{lock_file.parent}: waiting for another process that downloads shards to it; "
        f"it has locked {lock_file}"
    ]


def test_the_least_recently_used_shard_is_removed_when_room_is_needed(tmp_path: Path) -> None:
    with cache(tmp_path, 3 * SIZE) as shards:
        for age, shard in enumerate((A, B, C)):
            shards.hold([shard])
            shards.release([shard])
            os.utime(shards.path(shard), (age, age))
        shards.hold([A])  # used again
        shards.release([A])
        shards.hold([D])
        assert list_cached(tmp_path) == {"a", "c", "d"}
        assert read_log(tmp_path) == "abcd"


def test_shards_of_a_living_process_stay_and_those_of_a_dead_one_may_be_removed(tmp_path: Path) -> None:
    with cache(tmp_path, 3 * SIZE) as other:
        other.hold([A, B])
        with cache(tmp_path, 3 * SIZE) as shards:
            shards.hold([C])
            with pytest.raises(
                ShardError, match=r"1e-06 GB more are needed beside 3e-06 GB in use, the limit is"
            ):
                shards.hold([D])
            assert list_cached(tmp_path) == {"a", "b", "c"}
            other.release([A])
            shards.hold([D])
            assert list_cached(tmp_path) == {"b", "c", "d"}
    with cache(tmp_path, 3 * SIZE) as shards:
        shards.hold([A])  # no process holds B, C and D now
        assert "a" in list_cached(tmp_path) and len(list_cached(tmp_path)) == 3
    lists = [path for path in (tmp_path / "cache" / "users").iterdir() if path.suffix != ".lock"]
    assert not lists


def test_a_shard_held_twice_stays_until_it_is_released_twice(tmp_path: Path) -> None:
    with cache(tmp_path, 2 * SIZE) as shards:
        shards.hold([A])
        shards.hold([A, B])
        shards.release([A])
        shards.release([B])
        shards.hold([C])
        assert list_cached(tmp_path) == {"a", "c"}


def test_a_file_of_another_size_is_replaced(tmp_path: Path) -> None:
    with cache(tmp_path) as shards:
        shards.path(A).write_bytes(b"a")
        shards.hold([A])
        assert shards.path(A).stat().st_size == SIZE


def test_only_files_of_the_cache_are_removed_to_make_room(tmp_path: Path) -> None:
    users = ["backup.tar", "film.mp4.partial", ".x.0.partial", "users/keys.lock", "users/notes.txt"]
    with cache(tmp_path, 2 * SIZE) as shards:
        for name in users:
            (tmp_path / "cache" / name).write_bytes(bytes(5 * SIZE))
        abandoned = shards.path(A).with_name(f".redub-{_identify_machine()}-{os.getpid()}-{'0' * 12}.partial")
        abandoned.write_bytes(b"x")
        for shard in (A, B, C):
            shards.hold([shard])
            shards.release([shard])
        assert not abandoned.exists() and not shards.path(A).exists() and shards.path(C).exists()
        assert all((tmp_path / "cache" / name).is_file() for name in users)


def test_a_shard_that_cannot_be_downloaded_is_not_held(tmp_path: Path) -> None:
    def fail(shard: ShardEntry, path: Path) -> None:
        raise ShardError(f"{shard.name}: no")

    with contextlib.closing(ShardCache(tmp_path / "cache", 2 * SIZE, fail)) as shards:
        with pytest.raises(ShardError, match="a: no"):
            shards.hold([A])
        with cache(tmp_path, SIZE) as other:
            other.hold([A])
            other.release([A])
            other.hold([B])
            assert list_cached(tmp_path) == {"b"}, "no process holds a"
