"""The index in columns equals the mapping of its rows; a file that is no index raises an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import table
from shards.frames import BoxMargins, NetworkInput
from shards.index import (
    HASHES,
    INDEX_NAME,
    INDEX_SCHEMA,
    MEMBERS,
    Clips,
    make_shard_rows,
    read_index,
    write_index,
)
from shards.schema import ShardError
from shards.table import Rows

IDS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), unique=True
)


def make_row(clip_id: str, number: int) -> dict[str, Any]:
    columns = {f"{name}_{column}": number for name in MEMBERS for column in ("offset", "size", "crc32")}
    return columns | {
        "clip_id": clip_id, "split": ("test", "train")[number % 2], "speaker": f"s{number % 3}",
        "frames": number + 1, "shard": f"{number % 4}.tar", "sha256": f"{number:064x}", "source_sha256": "00",
    }  # fmt: skip


@given(ids=IDS)
def test_columns_equal_the_mapping_of_the_rows(ids: list[str]) -> None:
    rows = {clip_id: make_row(clip_id, number) for number, clip_id in enumerate(ids)}
    # in several tables with different dictionaries, as in a file's row groups
    tables = [pa.Table.from_pylist([row], INDEX_SCHEMA) for row in rows.values()]
    table = pa.concat_tables(tables or [INDEX_SCHEMA.empty_table()])
    place = table.column_names.index("shard")
    clips = Clips(table.set_column(place, "shard", table["shard"].dictionary_encode()))
    assert dict(clips) == dict(clips.items()) == rows
    assert list(clips) == ids and list(clips.values()) == list(rows.values()) and len(clips) == len(ids)
    assert "none such" not in clips and clips.get("none such") is None
    assert clips.ids_in_split("train") == [clip_id for clip_id in ids if rows[clip_id]["split"] == "train"]
    assert {shard: clips.take_rows(numbers) for shard, numbers in clips.group_by_shard().items()} == {
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


def test_equal_rows_give_an_equal_index_file_however_they_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [make_row(f"clip{number}", number) for number in range(20)]
    shards = [make_shard_rows(f"{number}.tar", rows[number::4]) for number in range(4)]
    write_index(tmp_path / INDEX_NAME, iter(shards))
    write_index(tmp_path / "again", [Rows.concatenate(shards, INDEX_SCHEMA)])
    assert (tmp_path / INDEX_NAME).read_bytes() == (tmp_path / "again").read_bytes()
    expected = sorted(rows, key=lambda row: (row["shard"], row["frames_offset"]))
    assert list(read_index(tmp_path, {}).values()) == expected
    monkeypatch.setattr(table, "PARTS_AT_ONCE", 3)
    write_index(tmp_path / INDEX_NAME, shards)
    assert list(read_index(tmp_path, {}).values()) == expected
    lean = read_index(tmp_path, {}, hashes=False)
    assert list(lean) == [row["clip_id"] for row in expected]
    assert lean["clip7"] == {name: value for name, value in rows[7].items() if name not in HASHES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_id": "clip0"}, "holds clip0 twice"),
        ({"clip_id": "x" * 101}, "expected 1 to 100 bytes"),
        ({"mels_crc32": None}, "row 1 has no mels_crc32"),
    ],
)
def test_an_index_with_gaps_or_wrong_ids_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = [make_row("clip0", 0), make_row("clip1", 1) | change]
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), tmp_path / INDEX_NAME)
    with pytest.raises(ShardError, match=message):
        read_index(tmp_path, {})


@pytest.mark.parametrize(
    "params",
    [None, {}, {"align": None, "mels": None}, {"align": {"below_nose": None}, "mels": {"n_mels": None}}],
)
def test_params_of_null_are_params_that_a_manifest_does_not_state(params: Any) -> None:
    manifest = {"params": params}
    assert BoxMargins.from_manifest(manifest) == BoxMargins()
    NetworkInput(16, 8, -80.0).check_dataset(manifest, "made")
