"""Parquet tables in and out: the index and the ledger."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import written_whole
from shards.schema import ShardError

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Write rows; what a row does not name is null. Same rows, same bytes."""
    with written_whole(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), partial, compression="zstd")


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
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as err:
        raise ShardError(f"{path}: not a whole {what} ({err})") from err
    missing = set(schema.names) - set(table.column_names)
    if missing:
        raise ShardError(f"{path}: {what} lacks the columns {sorted(missing)}")
    rows: list[Row] = table.select(schema.names).to_pylist()
    return rows
