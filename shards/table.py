"""Rows in columns, and the Parquet files of them: the index and the ledger."""

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
PARTS_AT_ONCE = 2**10  # as tables of their own
ROWS_AT_ONCE = 2**14  # as Python's objects; a million of them would take gigabytes


class Rows(Sequence[Row]):
    """Rows kept in columns: each is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def table(self) -> pa.Table:
        return self._table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Rows:
        """Rows taken up one by one; what a row does not name is null."""
        todo, tables = iter(rows), [schema.empty_table()]
        while part := list(islice(todo, ROWS_AT_ONCE)):
            made = pa.Table.from_pylist(part, schema)  # with room for up to twice as many
            tables.append(PackedRows(made).table)
        return cls(pa.concat_tables(tables))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from batch.to_pylist()

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        if isinstance(place, slice):
            return Rows(self.table[place])
        return {name: self.table[name][place].as_py() for name in self.table.column_names}

    @classmethod
    def concatenate(cls, parts: Iterable[Rows], schema: pa.Schema) -> Rows:
        """One after the other."""
        return cls(pa.concat_tables([schema.empty_table(), *group_tables(parts)]))

    def select_columns(self, *names: str) -> Rows:
        """The same rows with some of their columns: faster to look through."""
        return Rows(self.table.select(names))


class PackedRows(Rows):
    """A few rows in one piece of memory. A table lies in hundreds; where there are thousands, that tells."""

    def __init__(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        self._data = sink.getvalue().to_pybytes()

    @property
    def table(self) -> pa.Table:
        return pa.ipc.open_stream(self._data).read_all()


def group_tables(parts: Iterable[Rows]) -> Iterator[pa.Table]:
    """The same rows in tables of a thousand parts each."""
    todo = iter(parts)
    while some := [part.table for part in islice(todo, PARTS_AT_ONCE)]:
        yield pa.concat_tables(some).combine_chunks()


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write tables one after the other, each a row group. Same rows, same bytes, however a table was made."""
    with write_atomically(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.combine_chunks())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows; what a row does not name is null."""
    write_tables(path, [Rows.from_rows(rows, schema).table], schema)


def read_rows(path: Path, schema: pa.Schema, what: str) -> Rows:
    """Raises ShardError when the file is not ``what``: no table, or one that lacks columns."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as err:
        raise ShardError(f"{path}: no {what} here") from err
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    return parse_rows(data, schema, f"{path}", what)


def parse_rows(data: bytes, schema: pa.Schema, path: str, what: str) -> Rows:
    """As ``read_rows``, of a file that is in memory; ``path`` is its name in messages."""
    return Rows(parse_table(data, schema, path, what))


def parse_table(
    data: bytes, schema: pa.Schema, path: str, what: str, *, repetitive: Sequence[str] = ()
) -> pa.Table:
    """The same in columns; ``repetitive`` ones take the memory of their distinct values."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(repetitive))
        missing = set(schema.names) - set(file.schema_arrow.names)
        if missing:
            raise ShardError(f"{path}: {what} lacks the columns {sorted(missing)}")
        # One after the other: all at once would take twice the memory, and keep it. From the last, since wide
        # columns stand there, and reading one takes its size again.
        names = schema.names[::-1]
        columns = [file.read(columns=[name], use_threads=False).column(0) for name in names]
    except (pa.ArrowInvalid, OSError) as err:
        raise ShardError(f"{path}: not a whole {what} ({err})") from err
    pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(columns, names).select(schema.names)
