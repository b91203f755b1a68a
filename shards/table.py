"""Rows stored in columns, and Parquet files of them: the index and the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import write_atomically
from shards.schema import ShardError

Row = dict[str, Any]
PARTS_AT_ONCE = 2**10  # tables that are concatenated at once
ROWS_AT_ONCE = 2**14  # rows that are Python objects at the same time; a million would take gigabytes


class Rows(Sequence[Row]):
    """Rows stored in columns. A row becomes a dict when it is read."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def table(self) -> pa.Table:
        return self._table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Rows:
        """Convert rows one by one. A column that a row lacks is null."""
        remaining, tables = iter(rows), [schema.empty_table()]
        while chunk := list(islice(remaining, ROWS_AT_ONCE)):
            # from_pylist allocates up to twice the memory that is needed; PackedRows copies what is
            tables.append(PackedRows(pa.Table.from_pylist(chunk, schema)).table)
        return cls(pa.concat_tables(tables))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from batch.to_pylist()

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self.table[index])
        return {name: self.table[name][index].as_py() for name in self.table.column_names}

    @classmethod
    def concatenate(cls, parts: Iterable[Rows], schema: pa.Schema) -> Rows:
        """The rows of all parts, one part after the other."""
        return cls(pa.concat_tables([schema.empty_table(), *group_tables(parts)]))

    def select_columns(self, *names: str) -> Rows:
        """The same rows with some of their columns: faster to iterate over."""
        return Rows(self.table.select(names))


class PackedRows(Rows):
    """A few rows in one block of memory. A table has hundreds of blocks, too many for thousands of tables."""

    def __init__(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        self._data = sink.getvalue().to_pybytes()

    @property
    def table(self) -> pa.Table:
        return pa.ipc.open_stream(self._data).read_all()


def group_tables(parts: Iterable[Rows]) -> Iterator[pa.Table]:
    """Concatenate parts to tables of ``PARTS_AT_ONCE`` parts each."""
    remaining = iter(parts)
    while tables := [part.table for part in islice(remaining, PARTS_AT_ONCE)]:
        yield pa.concat_tables(tables).combine_chunks()


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write each table as a row group. Equal rows give equal bytes, however their tables are chunked."""
    with write_atomically(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.combine_chunks())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows. A column that a row lacks is null."""
    write_tables(path, [Rows.from_rows(rows, schema).table], schema)


def read_rows(path: Path, schema: pa.Schema, what: str) -> Rows:
    """Read ``what``, a Parquet file. Raises ShardError if it is not one or lacks columns."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as err:
        raise ShardError(f"{path}: no {what} here") from err
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    return parse_rows(data, schema, f"{path}", what)


def parse_rows(data: bytes, schema: pa.Schema, path: str, what: str) -> Rows:
    """As ``read_rows``, for a file in memory; ``path`` is its name in messages."""
    return Rows(parse_table(data, schema, path, what))


def parse_table(
    data: bytes, schema: pa.Schema, path: str, what: str, *, repetitive: Sequence[str] = ()
) -> pa.Table:
    """As ``parse_rows``, as a table. ``repetitive`` columns take the memory of their distinct values."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(repetitive))
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise ShardError(f"{path}: {what} lacks the columns {sorted(missing)}")
        # One column after the other: reading all at once takes twice the memory. The last column first, since
        # the wide columns are last, and reading a column takes its size once more.
        names = schema.names[::-1]
        columns = [file.read(columns=[name], use_threads=False).column(0) for name in names]
    except (pa.ArrowInvalid, OSError) as err:
        raise ShardError(f"{path}: not a complete {what} ({err})") from err
    pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(columns, names).select(schema.names)
