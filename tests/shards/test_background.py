"""Reading ahead and writing behind: in order, bounded, and an error reaches the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from shards.background import BackgroundWriter, map_ahead, prefetch
from tests.waiting import wait_until


def count_to(n: int, read: list[int]) -> Iterator[int]:
    for number in range(n):
        read.append(number)
        yield number


def test_items_are_read_ahead_in_order_and_no_further_than_asked() -> None:
    threads = set(threading.enumerate())
    read: list[int] = []
    items = prefetch(count_to(9, read), 3)
    assert next(items) == 0
    assert wait_until(lambda: read == [0, 1, 2, 3])
    assert list(items) == list(range(1, 9))
    unfinished = prefetch(count_to(9, read := []), 3)
    next(unfinished)
    unfinished.close()
    assert len(read) <= 4 and set(threading.enumerate()) <= threads


def test_an_error_of_what_is_read_ahead_comes_in_its_place() -> None:
    items = prefetch((1 // number for number in (1, 2, 0, 3)), 4)
    assert [next(items), next(items)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert list(items) == []


def test_results_are_computed_ahead_in_order_and_no_further_than_the_threads_need() -> None:
    threads = set(threading.enumerate())
    second_done = threading.Event()

    def negate(number: int) -> int:
        if number == 1:
            second_done.set()
        elif number == 0:
            assert second_done.wait(60)  # so the second is done first
        return -number

    results = map_ahead(negate, count_to(9, read := []), 2)
    assert next(results) == 0 and read == [0, 1, 2, 3, 4]
    assert list(results) == [-number for number in range(1, 9)]
    unfinished = map_ahead(negate, count_to(9, []), 2)
    next(unfinished)
    unfinished.close()
    assert set(threading.enumerate()) <= threads


def test_an_error_comes_in_the_place_of_its_result() -> None:
    results = map_ahead(lambda number: 1 // number, (1, 2, 0, 3), 2)
    assert [next(results), next(results)] == [1, 0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_are_written_in_order_and_no_more_wait_than_allowed() -> None:
    gate, written, given = threading.Event(), list[int](), list[int]()

    def write(number: int) -> None:
        gate.wait()
        written.append(number)

    with BackgroundWriter(write, n_waiting=2) as writer:

        def give() -> None:
            for number in range(9):
                writer.put(number)
                given.append(number)

        caller = threading.Thread(target=give)
        caller.start()
        assert wait_until(lambda: given == [0, 1, 2]), "one is being written, two wait"
        gate.set()
        caller.join()
    assert written == list(range(9))


def test_an_error_in_one_writer_ends_all_before_it_with_the_same_error() -> None:
    threads = set(threading.enumerate())
    encoded, pasted = list[int](), list[int]()

    def encode(number: int) -> None:
        if number == 3:
            raise OSError("the disk is full")
        encoded.append(number)

    def paste(number: int) -> None:
        pasted.append(number)
        encoder.put(number)

    encoder, paster = BackgroundWriter(encode, n_waiting=1), BackgroundWriter(paste, n_waiting=1)

    def give() -> None:
        with encoder, paster:
            for number in range(1000):
                paster.put(number)

    with pytest.raises(OSError, match="the disk is full"):
        give()
    assert encoded == [0, 1, 2] and len(pasted) < 10 and set(threading.enumerate()) <= threads


def test_an_error_of_the_last_item_is_raised_at_the_end() -> None:
    with pytest.raises(ZeroDivisionError), BackgroundWriter(lambda n: 1 // n, n_waiting=1) as writer:
        writer.put(0)


@pytest.mark.parametrize(("error", "expected"), [(RuntimeError, [0, 1, 2]), (KeyboardInterrupt, [0])])
def test_what_waits_is_written_after_an_error_of_the_caller_and_dropped_after_ctrl_c(
    error: type[BaseException], expected: list[int]
) -> None:
    gate, has_begun, written = threading.Event(), threading.Event(), list[int]()

    def write(number: int) -> None:
        has_begun.set()
        gate.wait()
        written.append(number)

    def give_and_fail() -> None:
        with BackgroundWriter(write, n_waiting=2) as writer:
            for number in range(3):
                writer.put(number)
            has_begun.wait()
            threading.Timer(0.2, gate.set).start()
            raise error

    with pytest.raises(error):
        give_and_fail()
    assert written == expected
