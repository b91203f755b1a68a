"""The index in columns is the mapping that its rows are; what is no index is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import table
from shards.index import (
    HASHES,
    INDEX_NAME,
    INDEX_SCHEMA,
    MEMBERS,
    Clips,
    read_index,
    make_shard_rows,
    write_index,
)
from shards.schema import ShardError
from shards.table import Rows

IDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), unique=True
)


def row_of(clip_id: str, number: int) -> dict[str, Any]:
    places = {f"{name}_{column}": number for name in MEMBERS for column in ("offset", "size", "crc32")}
    return places | {
        "clip_id": clip_id, "split": ("test", "train")[number % 2], "speaker": f"s{number % 3}",
        "frames": number + 1, "shard": f"{number % 4}.tar", "sha256": f"{number:064x}", "source_sha256": "00",
    }  # fmt: skip


@given(ids=IDS)
def test_columns_are_the_mapping_that_the_rows_are(ids: list[str]) -> None:
    rows = {clip_id: row_of(clip_id, number) for number, clip_id in enumerate(ids)}
    # in pieces, whose dictionaries differ, as a file's row groups
    tables = [pa.Table.from_pylist([row], INDEX_SCHEMA) for row in rows.values()]
    table = pa.concat_tables(tables or [INDEX_SCHEMA.empty_table()])
    place = table.column_names.index("shard")
    clips = Clips(table.set_column(place, "shard", table["shard"].dictionary_encode()))
    assert dict(clips) == dict(clips.items()) == rows
    assert list(clips) == ids and list(clips.values()) == list(rows.values()) and len(clips) == len(ids)
    assert "none such" not in clips and clips.get("none such") is None
    assert clips.ids_in_split("train") == [clip_id for clip_id in ids if rows[clip_id]["split"] == "train"]
    assert {shard: clips.take_rows(places) for shard, places in clips.group_by_shard().items()} == {
        shard: [row for row in rows.values() if row["shard"] == shard]
        for shard in {row["shard"] for row in rows.values()}
    }
    if ids:
        some = sorted(ids)[:5]
        assert clips.column("frames", some) == [rows[clip_id]["frames"] for clip_id in some]
        names, which = clips.locate_shards(some)
        assert names == sorted({rows[clip_id]["shard"] for clip_id in some})
        assert [names[shard] for shard in which] == [rows[clip_id]["shard"] for clip_id in some]
        with pytest.raises(KeyError, match="none such"):
            clips.column("frames", [ids[0], "none such"])


def test_shards_however_they_are_held_are_one_index_and_the_same_rows_are_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row_of(f"clip{number}", number) for number in range(20)]
    shards = [make_shard_rows(f"{number}.tar", rows[number::4]) for number in range(4)]
    write_index(tmp_path / INDEX_NAME, iter(shards))
    write_index(tmp_path / "again", [Rows.concatenate(shards, INDEX_SCHEMA)])
    assert (tmp_path / INDEX_NAME).read_bytes() == (tmp_path / "again").read_bytes()
    listed = sorted(rows, key=lambda row: (row["shard"], row["frames_offset"]))
    assert list(read_index(tmp_path, {}).values()) == listed
    monkeypatch.setattr(table, "PARTS_AT_ONCE", 3)
    write_index(tmp_path / INDEX_NAME, shards)
    assert list(read_index(tmp_path, {}).values()) == listed
    lean = read_index(tmp_path, {}, hashes=False)
    assert list(lean) == [row["clip_id"] for row in listed]
    assert lean["clip7"] == {name: value for name, value in rows[7].items() if name not in HASHES}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"clip_id": "clip0"}, "holds clip0 twice"),
        ({"clip_id": "x" * 256}, "a clip id of 256 bytes, expected 255 at most"),
        ({"mels_crc32": None}, "the row of 'clip1' has no mels_crc32"),
    ],
)
def test_an_index_with_gaps_or_wrong_ids_is_refused(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    rows = [row_of("clip0", 0), row_of("clip1", 1) | change]
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), tmp_path / INDEX_NAME)
    with pytest.raises(ShardError, match=told):
        read_index(tmp_path, {})
