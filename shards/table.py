"""Parquet tables in and out: the index and the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import written_whole
from shards.schema import ShardError

Row = dict[str, Any]


def write_table(path: Path, table: pa.Table) -> None:
    """Same table, same bytes, however it was put together."""
    with written_whole(path) as partial:
        pq.write_table(table.combine_chunks(), partial, compression="zstd")


def write_rows(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write rows; what a row does not name is null. Same rows, same bytes."""
    write_table(path, pa.Table.from_pylist(list(rows), schema))


def read_rows(path: Path, schema: pa.Schema, what: str) -> list[Row]:
    """Rows as dicts. Raises ShardError when the file is not ``what``: no table, or one that lacks columns."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as err:
        raise ShardError(f"{path}: no {what} here") from err
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    return parse_rows(data, schema, f"{path}", what)


def parse_rows(data: bytes, schema: pa.Schema, path: str, what: str) -> list[Row]:
    """As ``read_rows``, of a file that is in memory; ``path`` is its name in messages."""
    rows: list[Row] = parse_table(data, schema, path, what).to_pylist()
    return rows


def parse_table(
    data: bytes, schema: pa.Schema, path: str, what: str, *, repetitive: Sequence[str] = ()
) -> pa.Table:
    """The same in columns; ``repetitive`` ones take the memory of their distinct values."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(repetitive))
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise ShardError(f"{path}: {what} lacks the columns {sorted(missing)}")
        # one after the other: all at once would take twice the memory, and keep it
        columns = [file.read(columns=[name], use_threads=False).column(0) for name in schema.names]
    except (pa.ArrowInvalid, OSError) as err:
        raise ShardError(f"{path}: not a whole {what} ({err})") from err
    pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(columns, schema.names)
