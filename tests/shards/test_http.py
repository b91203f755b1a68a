"""A web server that sends its readers elsewhere, or more than they asked for."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shards.schema import ShardError
from shards.storage import open_storage
from stages.fetch.sources import GRID
from stages.media.download import RETRY_POLICY, DownloadError
from tests.publisher import Publisher, start_publisher

BOMB_BYTES = 2**26


@pytest.fixture
def server() -> Iterator[Publisher]:
    with start_publisher() as running:
        yield running


def test_the_body_of_a_redirect_is_neither_read_nor_unpacked(server: Publisher) -> None:
    server.files = {"/old/a.json": gzip.compress(bytes(BOMB_BYTES)), "/new.json": b"{}"}
    server.fail("/old/a.json", ["redirect /new.json"])
    tracemalloc.start()
    try:
        assert open_storage(f"{server.url}/old").read_all("a.json") == b"{}"
        assert tracemalloc.get_traced_memory()[1] < BOMB_BYTES / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "place", ["http://[::x/", "file:///etc/passwd", "ftp://127.0.0.1/a", "http://a:999999/"]
)
def test_a_redirect_to_no_web_address_is_one_line(place: str, server: Publisher) -> None:
    server.fail("/a/dataset.json", [f"redirect {place}"])
    with pytest.raises(ShardError, match="request failed"):
        open_storage(f"{server.url}/a").read_all("dataset.json")


def test_a_list_that_arrives_byte_by_byte_is_given_up(server: Publisher) -> None:
    server.add_record(1, {f"s{number}.zip": b"" for number in range(1, 35)})
    server.fail("/api/records/1", ["trickle"] * 9)
    policy = replace(
        RETRY_POLICY, silence_seconds=0.1, tries=2, first_pause_seconds=0.01, progress_bytes=10**6
    )
    record = replace(GRID, base_url=server.url, number=1)
    with pytest.raises(DownloadError, match="sends less than"):
        record.list_files(replace(policy, slowest_bytes_per_second=1e6))
