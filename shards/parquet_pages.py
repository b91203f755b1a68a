"""How much memory a Parquet file takes when it is read, by the headers of its pages.

The footer repeats these numbers and can lie; Arrow allocates what the headers of the pages say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any

Buffer = bytes | mmap

MAX_PAGES = 2**16  # a table of a million clips has 1000
MAX_DEPTH = 8  # of structs in a page header: there are 3
MAX_VARINT_BYTES = 10

# Fields of a page header, in the compact protocol of Thrift.
UNCOMPRESSED_SIZE, COMPRESSED_SIZE = 2, 3
DATA_PAGES = (5, 8)  # versions 1 and 2; field 1 of either is the number of values
DICTIONARY_PAGE = 7
N_VALUES = 1


@dataclass(frozen=True, slots=True)
class PageTotals:
    """Sums over pages."""

    values: int = 0  # in data pages
    bytes: int = 0  # decompressed
    dictionary_bytes: int = 0  # of these, in dictionaries: each value may repeat any of them


def sum_pages(data: Buffer, metadata: Any) -> Iterator[tuple[str, PageTotals]]:
    """The totals of each column of each row group, by the column's path.

    ``metadata`` is the footer (``pyarrow.parquet.FileMetaData``). Raises ValueError for a page that is none.
    """
    n_pages = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if metadata.row_group(group).num_rows == 0:  # has no pages, and Arrow reads none
                continue
            start = column.data_page_offset
            if column.dictionary_page_offset is not None:
                start = min(start, column.dictionary_page_offset)
            stop = start + column.total_compressed_size
            if not 0 <= start <= stop <= len(data):
                raise ValueError(f"the pages of {column.path_in_schema} are not in the file")
            n_values = n_bytes = n_dictionary_bytes = 0
            while start < stop:
                n_pages += 1
                if n_pages > MAX_PAGES:
                    raise ValueError(f"it has more than {MAX_PAGES} pages")
                header, start = _read_struct(data, start)
                size, length = header.get(UNCOMPRESSED_SIZE), header.get(COMPRESSED_SIZE)
                if not isinstance(size, int) or not isinstance(length, int) or size < 0 or length < 0:
                    raise ValueError(f"a page of {column.path_in_schema} has no size")
                start += length
                n_bytes += size
                for field in (*DATA_PAGES, DICTIONARY_PAGE):
                    page = header.get(field)
                    count = page.get(N_VALUES, 0) if isinstance(page, dict) else 0
                    if not isinstance(count, int) or count < 0:
                        raise ValueError(f"a page of {column.path_in_schema} has no number of values")
                    if field != DICTIONARY_PAGE:
                        n_values += count
                if DICTIONARY_PAGE in header:
                    n_dictionary_bytes += size
            yield column.path_in_schema, PageTotals(n_values, n_bytes, n_dictionary_bytes)


def _read_struct(data: Buffer, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and where it ends. Only numbers and structs are kept."""
    if depth > MAX_DEPTH:
        raise ValueError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    try:
        while (head := data[place]) != 0:
            place += 1
            if head >> 4:
                number += head >> 4
            else:
                value, place = _read_varint(data, place)
                number = (value >> 1) ^ -(value & 1)
            fields[number], place = _read_value(data, place, head & 15, depth)
    except IndexError as err:
        raise ValueError("a page header is cut off") from err
    return fields, place + 1


def _read_value(data: Buffer, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true, false: the kind is the value
        return kind == 1, place
    if kind == 3:  # a byte
        return data[place], place + 1
    if kind in (4, 5, 6):  # numbers of 16, 32 and 64 bits
        value, place = _read_varint(data, place)
        return (value >> 1) ^ -(value & 1), place
    if kind == 7:  # a float of 64 bits
        return None, place + 8
    if kind == 8:  # bytes
        length, place = _read_varint(data, place)
        return None, place + length
    if kind == 12:
        return _read_struct(data, place, depth + 1)
    raise ValueError(f"a page header has a field of kind {kind}")


def _read_varint(data: Buffer, place: int) -> tuple[int, int]:
    value = 0
    for number in range(MAX_VARINT_BYTES):
        byte = data[place + number]
        value |= (byte & 127) << 7 * number
        if byte < 128:
            return value, place + number + 1
    raise ValueError("a number in a page header is too long")
