"""What a stage writes of its clips is what the next stage reads, however long and however many they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.ledger import FAILED
from shards.schema import VIDEO_FPS
from shards.table import Row
from stages.engine import parts
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.parts import OUTCOME_SCHEMA, list_columns, read_part, read_part_key, write_part
from stages.landmarks import COLUMNS
from stages.media.faces import N_POINTS

BLOBS = list_columns(COLUMNS)


def make_rows(n_clips: int, n_frames: int) -> list[tuple[str, Outcome, Row]]:
    """Landmarks of clips, no two equal."""
    rows = []
    for number in range(n_clips):
        points = np.zeros((n_frames, N_POINTS, 2), COLUMNS["points"])
        points[0] = number
        values = {"points": points.tobytes(), "found": bytes(n_frames), "jumps": bytes(n_frames)}
        rows.append((f"s1_{number}", Outcome(notes=("2 faces seen",)), values))
    return rows


def write_with_dictionaries(path: Path, rows: list[tuple[str, Outcome, Row]]) -> None:
    """A part as versions wrote it that gave every column a dictionary."""
    schema = pa.schema([*OUTCOME_SCHEMA, *BLOBS], metadata={parts.KEY: b"key"})
    records = [
        {"clip_id": clip_id, "status": outcome.status, "notes": list(outcome.notes), **values}
        for clip_id, outcome, values in rows
    ]
    pq.write_table(pa.Table.from_pylist(records, schema), path, compression="zstd")


@pytest.mark.parametrize(("n_clips", "n_frames"), [(64, 30 * VIDEO_FPS), (256, 75)])
def test_a_part_is_read_back_however_long_and_many_its_clips_are(
    n_clips: int, n_frames: int, tmp_path: Path
) -> None:
    path, rows = tmp_path / "train-00000.parquet", make_rows(n_clips, n_frames)
    write_part(path, "key", BLOBS, rows)
    assert read_part_key(path) == "key"
    part = read_part(path, BLOBS)
    assert list(part) == [clip_id for clip_id, _, _ in rows]
    for clip_id, outcome, values in rows:
        assert {name: part[clip_id][name] for name in COLUMNS} == values
        assert part[clip_id]["notes"] == list(outcome.notes)


def test_no_array_of_a_part_is_in_a_dictionary_and_every_text_is(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.parquet"
    write_part(path, "key", BLOBS, make_rows(4, 10))
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    assert {column.path_in_schema for column in columns if column.has_dictionary_page} == {
        "clip_id", "status", "code", "reason", "notes.list.element",
    }  # fmt: skip


def test_a_part_whose_arrays_are_in_a_dictionary_is_read_too(tmp_path: Path) -> None:
    path, rows = tmp_path / "train-00000.parquet", make_rows(64, 30 * VIDEO_FPS)
    write_with_dictionaries(path, rows)
    part = read_part(path, BLOBS)
    assert all(part[clip_id]["points"] == values["points"] for clip_id, _, values in rows)


def test_a_small_part_that_says_that_an_array_repeats_is_refused(tmp_path: Path) -> None:
    path, n_rows = tmp_path / "train-00000.parquet", 20_000
    write_with_dictionaries(path, make_rows(1, 1))
    first = pq.read_table(path)
    repeated = [
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([bytes(2**20)]))
        if name == "points"
        else first[name].combine_chunks().take(pa.array(np.zeros(n_rows, np.int64)))
        for name in first.column_names
    ]
    pq.write_table(pa.table(repeated, first.column_names), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 2**20
    with pytest.raises(StageError, match=r"its columns take more than 17\.2 GB"):
        read_part(path, BLOBS)


def test_a_clip_with_endless_notes_and_reasons_stops_no_build(tmp_path: Path) -> None:
    path, endless = tmp_path / "train-00000.parquet", "ü" * 40_000  # 80,000 bytes
    outcomes = {
        "s1_a": Outcome(notes=("short", endless)),
        "s1_b": Outcome(FAILED, "crash", f"ValueError: {endless} (tried 2 times)"),
        "s1_c": Outcome.from_json(Outcome().to_json() | {"notes": [endless]}),
        "s1_d": Outcome.from_drop(Drop("odd", endless[:30_000])),
    }
    write_part(path, "key", [], [(clip_id, outcome, {}) for clip_id, outcome in outcomes.items()])
    part = read_part(path)
    assert part["s1_a"]["notes"][0] == "short" and len(part["s1_a"]["notes"][1]) < 400
    assert part["s1_b"]["reason"].endswith("üü (tried 2 times)") and len(part["s1_b"]["reason"]) < 400
    assert part["s1_c"]["notes"] == [part["s1_a"]["notes"][1]]
    assert part["s1_d"]["reason"] == endless[:30_000]


def test_a_part_that_no_stage_could_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = tmp_path / "train-00000.parquet", make_rows(4, 10)
    monkeypatch.setattr(parts, "MAX_PART_BYTES", 100_000)
    with pytest.raises(StageError, match=r"its 4 clips take 0\.00015\d GB, .* smaller parts.clips_per_part"):
        write_part(path, "key", BLOBS, rows)
    assert not path.exists()
    write_part(path, "key", BLOBS, rows[:2])
    assert len(read_part(path, BLOBS)) == 2
