"""A cache of shards: each is brought once, what is in use stays, the rest goes when room is needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from shards.atomic import write_atomically
from shards.cache import ShardCache
from shards.index import ShardEntry
from shards.schema import ShardError

SIZE = 1000


def entry(name: str, size: int = SIZE) -> ShardEntry:
    return ShardEntry(name, "train", size, hashlib.sha256(name.encode()).hexdigest(), 1, 1)


A, B, C, D = (entry(name) for name in "abcd")


def bring(log: Path, wanted: ShardEntry, path: Path) -> None:
    """A shard from elsewhere; the log tells of each that was asked for."""
    with log.open("a") as file:
        file.write(wanted.name)
    with write_atomically(path) as partial:
        partial.write_bytes(wanted.name.encode() * wanted.bytes)


@contextlib.contextmanager
def cache(folder: Path, limit: int = 10 * SIZE) -> Iterator[ShardCache]:
    with contextlib.closing(
        ShardCache(folder / "cache", limit, functools.partial(bring, folder / "log"))
    ) as opened:
        yield opened


def brought(folder: Path) -> str:
    return (folder / "log").read_text()


def here(folder: Path) -> set[str]:
    """Names of the shards in the cache."""
    names = {shard.sha256: shard.name for shard in (A, B, C, D)}
    return {names[path.stem] for path in (folder / "cache").glob("*.tar")}


def held_by_a_process(folder: Path, _number: int) -> int:
    with cache(folder) as opened:
        opened.hold([A, B, C])
        return sum(opened.path(shard).stat().st_size for shard in (A, B, C))


def test_processes_that_want_the_same_shards_bring_each_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        sizes = list(pool.map(functools.partial(held_by_a_process, tmp_path), range(6)))
    assert sizes == [3 * SIZE] * 6
    assert sorted(brought(tmp_path)) == ["a", "b", "c"]


def test_what_was_not_used_for_longest_goes_when_room_is_needed(tmp_path: Path) -> None:
    with cache(tmp_path, 3 * SIZE) as opened:
        for age, shard in enumerate((A, B, C)):
            opened.hold([shard])
            opened.release([shard])
            os.utime(opened.path(shard), (age, age))
        opened.hold([A])  # used again
        opened.release([A])
        opened.hold([D])
        assert here(tmp_path) == {"a", "c", "d"}
        assert brought(tmp_path) == "abcd"


def test_what_a_living_process_holds_stays_and_what_a_dead_one_held_may_go(tmp_path: Path) -> None:
    with cache(tmp_path, 3 * SIZE) as other:
        other.hold([A, B])
        with cache(tmp_path, 3 * SIZE) as opened:
            opened.hold([C])
            with pytest.raises(
                ShardError, match=r"1e-06 GB more are needed beside 3e-06 GB in use, the limit is"
            ):
                opened.hold([D])
            assert here(tmp_path) == {"a", "b", "c"}
            other.release([A])
            opened.hold([D])
            assert here(tmp_path) == {"b", "c", "d"}
    with cache(tmp_path, 3 * SIZE) as opened:
        opened.hold([A])  # B, C and D are nobody's now
        assert "a" in here(tmp_path) and len(here(tmp_path)) == 3
    left = [path for path in (tmp_path / "cache" / "users").iterdir() if path.suffix != ".lock"]
    assert not left


def test_a_shard_held_twice_stays_until_it_is_let_go_twice(tmp_path: Path) -> None:
    with cache(tmp_path, 2 * SIZE) as opened:
        opened.hold([A])
        opened.hold([A, B])
        opened.release([A])
        opened.release([B])
        opened.hold([C])
        assert here(tmp_path) == {"a", "c"}


def test_a_file_of_another_size_and_halves_of_killed_processes_do_not_count(tmp_path: Path) -> None:
    with cache(tmp_path) as opened:
        opened.path(A).write_bytes(b"a")
        half = tmp_path / "cache" / ".x.0.partial"
        half.write_bytes(b"x")
        opened.hold([A])
        assert opened.path(A).stat().st_size == SIZE
        assert not half.exists()


def test_a_shard_that_cannot_be_brought_is_not_held(tmp_path: Path) -> None:
    def fails(wanted: ShardEntry, path: Path) -> None:
        raise ShardError(f"{wanted.name}: no")

    with contextlib.closing(ShardCache(tmp_path / "cache", 2 * SIZE, fails)) as opened:
        with pytest.raises(ShardError, match="a: no"):
            opened.hold([A])
        with cache(tmp_path, SIZE) as other:
            other.hold([A])
            other.release([A])
            other.hold([B])
            assert here(tmp_path) == {"b"}, "nobody holds a"
