"""Rows stored in columns, and Parquet files of them: the index and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.atomic import write_atomically
from shards.errors import shorten
from shards.files import map_file
from shards.names import match_names
from shards.parquet_pages import Buffer, sum_pages
from shards.schema import ShardError

Row = dict[str, Any]
PARTS_AT_ONCE = 2**10  # tables that are concatenated at once
MAX_ROWS = 2**22  # four times the largest corpus that we have measured
MAX_TABLE_BYTES = 2**31  # in memory
MAX_TEXT_BYTES = 2**16  # of a value
VALUES_PER_ROW = 4  # of a list, on average
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


@dataclass(frozen=True, slots=True)
class Rule:
    """What the values of a column may be, besides their type. Floats are always finite."""

    required: bool = False  # no value is null
    low: float | None = None  # of a number
    high: float | None = None
    names: tuple[str, int] | None = None  # a pattern of ``shards.names`` and a number of bytes
    choices: tuple[str, ...] = ()
    pattern: str = ""  # RE2
    expected: str = ""  # in words, of ``names`` and ``pattern``


Rules = Mapping[str, Rule]  # by column; a column without one has Rule()


def read_rows(
    path: Path,
    schema: pa.Schema,
    what: str,
    rules: Rules = MappingProxyType({}),
    *,
    inside: Path | None = None,
    optional: Sequence[Sequence[pa.Field]] = (),
    max_bytes: int = MAX_TABLE_BYTES,
) -> Rows:
    """Read ``what``, a Parquet file of at most ``max_bytes`` in memory. Raises ShardError if it is not one.

    ``inside`` is a folder from someone else, which the file must be in; ``optional`` as in ``parse_table``.
    """
    try:
        data = map_file(path, max_bytes, inside=inside)
    except FileNotFoundError as err:
        raise ShardError(f"{path}: no {what} here") from err
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    return Rows(parse_table(data, schema, f"{path}", what, rules, optional=optional, max_bytes=max_bytes))


def parse_table(
    data: Buffer,
    schema: pa.Schema,
    path: str,
    what: str,
    rules: Rules = MappingProxyType({}),
    *,
    optional: Sequence[Sequence[pa.Field]] = (),
    repetitive: Sequence[str] = (),
    max_bytes: int = MAX_TABLE_BYTES,
) -> pa.Table:
    """As ``read_rows``, as a table of a file in memory; ``path`` is its name in messages.

    ``repetitive`` columns take the memory of their distinct values.
    Groups of ``optional`` columns are read where the file has them: all of a group and of those before it.
    Names and types of the columns and the sizes that the file declares are checked before a value is read.
    """
    try:
        buffer = pa.py_buffer(data)
        actual = pq.read_schema(pa.BufferReader(buffer))
        present = [
            n for n, group in enumerate(optional, 1) if any(field.name in actual.names for field in group)
        ]
        for group in optional[: max(present, default=0)]:
            schema = pa.schema([*schema, *group])
        _check_columns(actual, schema, path, what)
        metadata = pq.read_metadata(pa.BufferReader(buffer))
        with_dictionary = _check_sizes(data, metadata, path, what, max_bytes)
        # What may repeat is read as a dictionary: a few bytes can say that a long text repeats a million
        # times. Blobs without one are not: they may be more than the 2 GB that a dictionary holds.
        repeating = [
            name
            for name in _list_leaves(metadata)
            if _holds(_is_text, schema, name)
            or (name in with_dictionary and _holds(pa.types.is_binary, schema, name))
        ]
        file = pq.ParquetFile(pa.BufferReader(buffer), read_dictionary=repeating)
        # One column after the other: reading all at once takes twice the memory. The last column first, since
        # the wide columns are last, and reading a column takes its size once more.
        names = schema.names[::-1]
        columns, budget = [], max_bytes
        for name in names:
            column = _read_column(file, name)
            _check_column(column, name, rules.get(name, Rule()), path)
            budget -= _count_bytes(column)
            if budget < 0:
                raise ShardError(f"{path}: its columns take more than {max_bytes / 1e9:.3g} GB")
            if name not in repetitive:
                column = column.cast(schema.field(name).type)
            columns.append(column)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError) as err:
        raise ShardError(f"{path}: not a complete {what} ({err})") from err
    pa.default_memory_pool().release_unused()
    return pa.Table.from_arrays(columns, names).select(schema.names)


def _read_column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    """One column, a row group after the other: Arrow reads lists of a dictionary from one group only."""
    groups = [file.read_row_group(group, columns=[name], use_threads=False).column(0)
              for group in range(file.num_row_groups)]  # fmt: skip
    kind = groups[0].type if groups else file.schema_arrow.field(name).type
    return pa.chunked_array([chunk for column in groups for chunk in column.chunks], kind)


def convert_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: str) -> Rows:
    """Rows from JSON that someone else may have written. Raises ShardError for a value of another type."""
    try:
        return PackedRows.from_rows(rows, schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError) as err:
        raise ShardError(f"{path}: its rows do not have the types of {schema.names[0]}, ... ({err})") from err


def check_rows(rows: Rows, rules: Rules, path: str) -> Rows:
    """The rows, of a table that was made in memory of a stranger's values. Raises ShardError."""
    for name in rows.table.column_names:
        _check_column(rows.table[name], name, rules.get(name, Rule()), path)
    return rows


def _check_columns(actual: pa.Schema, schema: pa.Schema, path: str, what: str) -> None:
    """Raise ShardError unless each column of the schema is there once, with its type."""
    missing = [name for name in schema.names if name not in actual.names]
    if missing:
        raise ShardError(f"{path}: {what} lacks the columns {shorten(missing)}")
    for field in schema:
        if actual.names.count(field.name) > 1:
            raise ShardError(f"{path}: {what} has two columns {field.name}")
        kind = _simplify_type(actual.field(field.name).type)
        if kind != _simplify_type(field.type):
            raise ShardError(f"{path}: column {field.name} holds {kind}, expected {field.type}")


def _check_sizes(
    data: Buffer, metadata: pq.FileMetaData, path: str, what: str, max_bytes: int
) -> frozenset[str]:
    """Raise ShardError for more rows or values than MAX_ROWS allows, or for more than ``max_bytes``.

    Returns the paths of the columns that have a dictionary: what they take is known when they are read.
    """
    if not 0 <= metadata.num_rows <= MAX_ROWS:
        raise ShardError(f"{path}: {what} of {metadata.num_rows} rows, expected at most {MAX_ROWS}")
    with_dictionary = set()
    values: Counter[str] = Counter()
    n_bytes = 0
    for column, totals in sum_pages(data, metadata):
        values[column] += totals.values
        n_bytes += totals.bytes
        if values[column] > VALUES_PER_ROW * MAX_ROWS or n_bytes > max_bytes:
            raise ShardError(
                f"{path}: {what} of {values[column]} values in {column} and {n_bytes / 1e9:.3g} GB, "
                f"expected at most {VALUES_PER_ROW * MAX_ROWS} and {max_bytes / 1e9:.3g}"
            )
        if totals.dictionary_bytes:
            with_dictionary.add(column)
    return frozenset(with_dictionary)


def _check_column(column: pa.ChunkedArray, name: str, rule: Rule, path: str) -> None:
    """Raise ShardError for the first value of a column that its rule does not allow."""
    if rule.required and column.null_count:
        row = int(np.argmax(column.is_null()))
        raise ShardError(f"{path}: row {row} has no {name}")
    for values in _list_values(column):
        if _is_text(values.type):
            values.validate(full=True)  # UTF-8
            _refuse(values, pc.greater(pc.binary_length(values), MAX_TEXT_BYTES), name, path,
                    f"at most {MAX_TEXT_BYTES} bytes")  # fmt: skip
            if rule.names is not None:
                _refuse(values, pc.invert(match_names(values, *rule.names)), name, path, rule.expected)
            if rule.pattern:
                is_match = pc.match_substring_regex(values, rule.pattern)
                _refuse(values, pc.invert(is_match), name, path, rule.expected)
            if rule.choices:
                is_known = pc.is_in(values, pa.array([*rule.choices, None]))
                _refuse(values, pc.invert(is_known), name, path, f"one of {', '.join(rule.choices)}")
        elif pa.types.is_floating(values.type):
            _refuse(values, pc.invert(pc.is_finite(values)), name, path, "a finite number")
        if rule.low is not None:
            _refuse(values, pc.less(values, rule.low), name, path, f"{rule.low:.12g} or more")
        if rule.high is not None:
            _refuse(values, pc.greater(values, rule.high), name, path, f"{rule.high:.12g} or less")


def _refuse(values: pa.Array, is_wrong: pa.Array, name: str, path: str, expected: str) -> None:
    if pc.any(is_wrong).as_py():
        value = values[int(pc.index(is_wrong, True).as_py())].as_py()
        raise ShardError(f"{path}: {name} is {shorten(value)}, expected {expected}")


def _list_values(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The values of each chunk: of a dictionary, those in use or not; of lists, their elements."""
    for chunk in column.chunks:
        values = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
        yield values.dictionary if pa.types.is_dictionary(values.type) else values


def _count_bytes(column: pa.ChunkedArray) -> int:
    """The memory of a column when the values of its dictionary are written out; without one, of numbers."""
    n_bytes = 0
    for chunk in column.chunks:
        values = chunk.flatten() if pa.types.is_list(chunk.type) else chunk
        n_bytes += 8 * (len(chunk) + len(values))
        if pa.types.is_dictionary(values.type):
            lengths = pc.binary_length(values.dictionary)
            n_bytes += pc.sum(lengths.cast(pa.int64()).take(values.indices)).as_py() or 0
    return n_bytes


def _simplify_type(kind: pa.DataType) -> pa.DataType:
    """The type without how it is stored: other writers choose large strings, views or dictionaries."""
    if pa.types.is_dictionary(kind):
        return _simplify_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_simplify_type(kind.value_type))
    return pa.string() if _is_text(kind) else kind


def _list_leaves(metadata: pq.FileMetaData) -> list[str]:
    """The paths of the columns as Parquet stores them: "notes.list.element" of the lists ``notes``."""
    return [metadata.schema.column(number).path for number in range(metadata.num_columns)]


def _holds(is_kind: Callable[[pa.DataType], bool], schema: pa.Schema, path: str) -> bool:
    """Whether the column of the schema with this path holds values of a kind, or lists of them."""
    name = path.partition(".")[0]
    if name not in schema.names:
        return False
    kind = schema.field(name).type
    return is_kind(kind) or (pa.types.is_list(kind) and is_kind(kind.value_type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())
