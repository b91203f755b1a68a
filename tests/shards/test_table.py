"""Rows in columns equal the rows they were made of, however they are stored."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import table
from shards.parquet_pages import MAX_PAGES, sum_pages
from shards.schema import ShardError
from shards.table import PackedRows, Rows, Rule, parse_table, read_rows, write_rows
from tests.alterations import lie_about_size, repeat_row

SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64()), ("notes", pa.list_(pa.string()))])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
            "number": st.none() | st.integers(-(2**63), 2**63 - 1),
            "notes": st.lists(st.sampled_from(["a", "", "é"]), max_size=3),
        }
    ),
    max_size=12,
)


@given(rows=ROWS, cut=st.integers(0, 12), at_once=st.integers(1, 5))
def test_rows_in_columns_equal_the_rows(rows: list[dict[str, Any]], cut: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS_AT_ONCE", at_once)
        patch.setattr(table, "PARTS_AT_ONCE", at_once)
        plain = Rows.from_rows(rows, SCHEMA)
        concatenated = Rows.concatenate((PackedRows.from_rows([row], SCHEMA) for row in rows), SCHEMA)
        pickled = pickle.loads(pickle.dumps(PackedRows.from_rows(rows, SCHEMA)))
        for rows_read in (plain, concatenated, pickled):
            assert list(rows_read) == rows and len(rows_read) == len(rows)
            assert list(rows_read[cut:]) == rows[cut:] and list(rows_read[:cut]) == rows[:cut]
            assert [rows_read[index] for index in range(len(rows))] == rows
            assert list(rows_read.select_columns("number")) == [{"number": row["number"]} for row in rows]


def test_a_slice_is_pickled_without_the_other_rows() -> None:
    rows = Rows.from_rows(({"name": "x" * 100, "number": number} for number in range(10_000)), SCHEMA)
    assert len(pickle.dumps(PackedRows(rows[:10].table))) < 5_000


@given(rows=ROWS, version=st.sampled_from(["1.0", "2.0"]), dictionary=st.booleans(), group=st.integers(1, 5))
def test_a_table_is_read_back_however_parquet_stores_it(
    rows: list[dict[str, Any]], version: str, dictionary: bool, group: int
) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(Rows.from_rows(rows, SCHEMA).table, sink, data_page_version=version,
                   use_dictionary=dictionary, row_group_size=group)  # fmt: skip
    data = sink.getvalue().to_pybytes()
    assert parse_table(data, SCHEMA, "x.parquet", "table").to_pylist() == rows
    values = [totals.values for _, totals in sum_pages(data, pq.read_metadata(pa.BufferReader(data)))]
    assert sum(values) >= len(rows) * 3


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(required=True), "x.parquet: row 1 has no name"),
        (Rule(choices=("a", "b")), "x.parquet: name is 'long', expected one of a, b"),
        (Rule(pattern=r"\A[a-z]\z", expected="a letter"), "x.parquet: name is 'long', expected a letter"),
    ],
)
def test_a_rule_names_column_and_value(rule: Rule, message: str, tmp_path: Path) -> None:
    rows = [{"name": "a", "notes": []}, {"name": None, "notes": []}, {"name": "long", "notes": []}]
    write_rows(tmp_path / "x.parquet", rows, SCHEMA)
    assert len(read_rows(tmp_path / "x.parquet", SCHEMA, "table")) == 3
    with pytest.raises(ShardError, match=re.escape(message)):
        read_rows(tmp_path / "x.parquet", SCHEMA, "table", {"name": rule})


def test_a_small_file_of_many_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_rows(path, [{"name": "z" * 1000, "number": 1, "notes": ["z" * 1000]}], SCHEMA)
    repeat_row(path, 3_000_000)
    assert path.stat().st_size < 2**20
    with pytest.raises(ShardError, match=r"take more than 2\.15 GB"):
        read_rows(path, SCHEMA, "table")
    repeat_row(path, 5_000_000)
    with pytest.raises(ShardError, match="table of 5000000 rows, expected at most 4194304"):
        read_rows(path, SCHEMA, "table")


def test_a_page_that_declares_gigabytes_is_refused_whatever_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_rows(path, [{"name": f"{number}", "notes": []} for number in range(50)], SCHEMA)
    lie_about_size(path)
    with pytest.raises(ShardError, match=r"table of \d+ values in name and .* GB, expected"):
        read_rows(path, SCHEMA, "table")


def test_a_file_of_countless_pages_is_refused(tmp_path: Path) -> None:
    """Each page costs time and a header, whatever it holds."""
    n_rows = MAX_PAGES + 1
    columns = [
        pa.array(["a"] * n_rows),
        pa.array(range(n_rows)),
        pa.array([[]] * n_rows, SCHEMA.field("notes").type),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), tmp_path / "x.parquet", data_page_size=1,
                   write_batch_size=1, use_dictionary=False)  # fmt: skip
    with pytest.raises(ShardError, match=f"more than {MAX_PAGES} pages"):
        read_rows(tmp_path / "x.parquet", SCHEMA, "table")


def test_a_page_header_of_countless_structs_is_refused() -> None:
    data = io.BytesIO()
    pq.write_table(pa.table({"number": [1]}), data, use_dictionary=False)
    metadata = pq.read_metadata(data)
    start = metadata.row_group(0).column(0).data_page_offset
    nested = b"\x1c" * 100_000  # a struct in field 1 of a struct in field 1 ...
    with pytest.raises(ValueError, match="nested too deeply"):
        list(sum_pages(b"\0" * start + nested, metadata))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    columns = [bad, pa.array([1]), pa.array([["a"]])]
    pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), tmp_path / "x.parquet")
    with pytest.raises(ShardError, match="UTF8"):
        read_rows(tmp_path / "x.parquet", SCHEMA, "table")
