"""The ledger: one row for every file of the raw folder, with its status and the reason for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from shards.table import Row, Rows, read_rows, write_tables

Status = Literal["ok", "dropped", "failed"]
OK: Status = "ok"
DROPPED: Status = "dropped"  # the input breaks a rule of a stage
FAILED: Status = "failed"  # the work on it crashed, hung or ran out of memory, twice

FIELDS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "corpus": pa.string(),
    "speaker": pa.string(),
    "sentence": pa.string(),
    "emotion": pa.string(),
    "level": pa.string(),
    "split": pa.string(),
    "path": pa.string(),  # below the raw folder, with forward slashes
    "bytes": pa.int64(),
    "sha256": pa.string(),
    "video_codec": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_frames": pa.int32(),
    "fps": pa.float64(),  # mean rate of the source, from its time stamps
    "video_start": pa.float64(),  # seconds, on the container's clock
    "video_seconds": pa.float64(),
    "frames": pa.int32(),  # T, on the 25 fps clock
    "audio_codec": pa.string(),
    "audio_rate": pa.int32(),
    "audio_channels": pa.int32(),
    "audio_start": pa.float64(),
    "audio_seconds": pa.float64(),
    "expected": pa.string(),  # a defect that the corpus itself documents
    "notes": pa.list_(pa.string()),  # repairs and observations in a clip that is not dropped
    "stage": pa.string(),  # the last stage that processed the clip
    "status": pa.string(),
    "code": pa.string(),  # the reason as one word, for counting
    "reason": pa.string(),  # one sentence: the value and what was expected
}
SCHEMA = pa.schema([pa.field(name, kind) for name, kind in FIELDS.items()])


def build_ledger(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows in the ledger's columns. An unknown key is a programming error and raises AssertionError."""

    def check_rows() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            unknown = set(row) - set(FIELDS)
            assert not unknown, f"{row['path']}: ledger has no column {sorted(unknown)}"
            yield row

    return rows if isinstance(rows, Rows) else Rows.from_rows(check_rows(), SCHEMA)


def write_ledger(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows sorted by path."""
    write_tables(path, [build_ledger(rows).table.sort_by("path")], SCHEMA)


def read_ledger(path: Path) -> Rows:
    """Read a ledger. Raises ShardError if the file is not one."""
    return read_rows(path, SCHEMA, "ledger")


def select_unusable(ledger: Rows) -> Rows:
    """The rows of files that were dropped or failed."""
    return Rows(ledger.table.filter(pc.not_equal(ledger.table["status"], OK)))


def count_by_code(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count rows by code; ``ok`` comes first, then the most frequent code."""
    rows = rows.select_columns("code", "status") if isinstance(rows, Rows) else rows
    counts = Counter(row["code"] or row["status"] for row in rows)
    n_ok = counts.pop(OK, 0)
    return {OK: n_ok, **dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))}


def find_rows(rows: Sequence[Row], clip: str) -> list[Row]:
    """The rows of a clip, given its id, its path or its file name."""
    exact = [row for row in rows if clip in (row["clip_id"], row["path"])]
    return exact or [row for row in rows if Path(row["path"]).name == clip]
