"""Rows in columns equal the rows they were made of, however they are stored."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import table
from shards.table import PackedRows, Rows

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
