"""The ledger: one row for every file of the raw folder, with its status and the reason for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from shards.names import ID_PATTERN, ID_RULE, MAX_ID_BYTES
from shards.schema import VIDEO_FPS
from shards.table import (
    Row,
    Rows,
    Rule,
    Rules,
    check_rows,
    convert_rows,
    parse_table,
    read_rows,
    write_tables,
)

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
# Of a dataset whose files were cut into clips (stages.cut): a row is a span of a file, and a file's spans
# follow each other from its first frame to its last. Other datasets lack these columns.
SPAN_FIELDS: dict[str, pa.DataType] = {
    "start_seconds": pa.float64(),  # from the first frame of the file's picture
    "end_seconds": pa.float64(),
    "track": pa.int32(),  # of the face, counted from 0 in a file
    "sync_confidence": pa.float64(),  # stages.cut.speaker
    "lag_frames": pa.int32(),  # by which the mouth is late in the file; negative: the sound is
    "sound_shift": pa.float64(),  # of a clip, seconds: its sound is read so much after its picture
    "face_width": pa.float64(),  # px of the source, median
    "sharpness": pa.float64(),  # of the mouth (stages.cut.quality)
    "yaw": pa.float64(),  # degrees, the greatest that lasts; positive: turned to the person's own left
    "pitch": pa.float64(),  # degrees; positive: looking up
    "brightness": pa.float64(),  # of the face, 0 to 255, mean
    "speech_level": pa.float64(),  # dB below full scale, while something is said
    "speech_to_noise": pa.float64(),  # dB above the pauses around
    "near_duplicate": pa.string(),  # id of an earlier clip with the same sound
}
# Of such a dataset whose spans SyncNet has scored, too.
SYNCNET_FIELDS: dict[str, pa.DataType] = {
    "syncnet_confidence": pa.float64(),  # LSE-C (stages.metrics.lse)
    "syncnet_lag": pa.int32(),  # as lag_frames
}
OPTIONAL = tuple(
    tuple(pa.field(name, kind) for name, kind in group.items()) for group in (SPAN_FIELDS, SYNCNET_FIELDS)
)
SPAN_SCHEMA = pa.schema([*SCHEMA, *OPTIONAL[0]])
SYNCNET_SCHEMA = pa.schema([*SPAN_SCHEMA, *OPTIONAL[1]])
_COUNT = Rule(low=0)
_SECONDS = Rule(low=-1e9, high=1e9)
RULES = MappingProxyType(
    {
        "path": Rule(required=True),
        "status": Rule(required=True, choices=get_args(Status)),
        "notes": Rule(required=True),
        "fps": Rule(low=0, high=1e6),
        "bytes": _COUNT,
        **dict.fromkeys(
            ("width", "height", "source_frames", "frames", "audio_rate", "audio_channels"), _COUNT
        ),
        **dict.fromkeys(
            (
                "video_start",
                "video_seconds",
                "audio_start",
                "audio_seconds",
                "start_seconds",
                "end_seconds",
                "sound_shift",
            ),
            _SECONDS,
        ),
        "track": _COUNT,
    }
)
# Of files that are clips of the dataset: these values become names of files and keys in tars. A file that was
# dropped for its name has its path as its id.
CLIP_RULES = MappingProxyType(
    {
        "clip_id": Rule(required=True, names=(ID_PATTERN, MAX_ID_BYTES), expected=ID_RULE),
        "split": Rule(names=(ID_PATTERN, MAX_ID_BYTES), expected=ID_RULE),
        "path": Rule(
            pattern=r"\A([^/\x00.]|\.[^/\x00.]|\.\.[^/\x00])[^/\x00]*"
            r"(/([^/\x00.]|\.[^/\x00.]|\.\.[^/\x00])[^/\x00]*)*\z",
            expected="a path below the raw folder",
        ),
    }
)
# What the stages after the first read of the files that it found usable.
STAGE_RULES = MappingProxyType(
    {
        name: Rule(required=True)
        for name in ("split", "sha256", "video_start", "video_seconds", "fps", "frames")
    }
)


def build_ledger(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows in the ledger's columns. An unknown key is a programming error and raises AssertionError."""

    if isinstance(rows, Rows):
        return rows
    remaining = iter(rows)
    first = next(remaining, None)
    schema = SCHEMA if first is None else _choose_schema(first)

    def check_names() -> Iterator[Mapping[str, Any]]:
        for row in remaining if first is None else chain([first], remaining):
            unknown = set(row) - set(schema.names)
            assert not unknown, f"{row['path']}: ledger has no column {sorted(unknown)}"
            yield row

    return Rows.from_rows(check_names(), schema)


def _choose_schema(row: Mapping[str, Any]) -> pa.Schema:
    """The columns of a dataset: all its rows have those of spans, or of SyncNet too, or none has."""
    if not SYNCNET_FIELDS.keys().isdisjoint(row):
        return SYNCNET_SCHEMA
    return SCHEMA if SPAN_FIELDS.keys().isdisjoint(row) else SPAN_SCHEMA


def write_ledger(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows sorted by path, and those of one file by time."""
    table = build_ledger(rows).table
    keys = [(name, "ascending") for name in ("path", "start_seconds") if name in table.column_names]
    write_tables(path, [table.sort_by(keys)], table.schema)


def is_span(row: Mapping[str, Any]) -> bool:
    """Whether a usable clip is a span of a file that was cut."""
    return row.get("track") is not None


def find_sound_start(row: Mapping[str, Any]) -> float:
    """Where a clip's sound begins, in seconds on the container's clock."""
    start: float = row["video_start"] + (row.get("sound_shift") or 0.0)
    return start


def find_decoded_seconds(row: Mapping[str, Any]) -> float:
    """How much of its file may have to be decoded for a clip: all before it, where nothing is sought.

    ``row`` is the clip's row or its json.
    """
    end: float | None = row.get("end_seconds")
    seconds: float = row["frames"] / VIDEO_FPS if end is None else end
    return seconds


def has_spans(ledger: Rows) -> bool:
    """Whether the rows are spans of files, which were cut into clips."""
    return "start_seconds" in ledger.table.column_names


def read_ledger(path: Path, *, inside: Path | None = None) -> Rows:
    """Read a ledger. Raises ShardError if the file is not one; ``inside`` as in ``read_rows``."""
    return check_clips(read_rows(path, SCHEMA, "ledger", RULES, inside=inside, optional=OPTIONAL), f"{path}")


def parse_ledger(data: bytes, path: str) -> Rows:
    """As ``read_ledger``, for a file in memory; ``path`` is its name in messages."""
    return check_clips(Rows(parse_table(data, SCHEMA, path, "ledger", RULES, optional=OPTIONAL)), path)


def check_ledger_rows(rows: Iterable[Mapping[str, Any]], path: str) -> Rows:
    """Ledger rows from JSON that someone else may have written. Raises ShardError."""
    ledger = check_rows(convert_rows(rows, SCHEMA, path), RULES, path)
    return check_clips(ledger, path, STAGE_RULES)


def check_clips(ledger: Rows, path: str, rules: Rules = MappingProxyType({})) -> Rows:
    """The ledger. Raises ShardError if a file that was not dropped breaks CLIP_RULES, or other rules."""
    usable = Rows(ledger.table.filter(pc.equal(ledger.table["status"], OK)))
    check_rows(usable, CLIP_RULES, path)
    check_rows(usable.select_columns(*rules), rules, path)
    return ledger


def select_unusable(ledger: Rows) -> Rows:
    """The rows of files that were dropped or failed."""
    return Rows(ledger.table.filter(pc.not_equal(ledger.table["status"], OK)))


def get_code(row: Mapping[str, Any]) -> str:
    """What became of a file or a span, as one word."""
    return OK if row["status"] == OK else str(row["code"] or row["status"])


def count_by_code(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count rows by code; ``ok`` comes first, then the most frequent code."""
    rows = rows.select_columns("code", "status") if isinstance(rows, Rows) else rows
    counts = Counter(row["code"] or row["status"] for row in rows)
    n_ok = counts.pop(OK, 0)
    return {OK: n_ok, **dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))}


def find_rows(rows: Sequence[Row], clip: str) -> list[Row]:
    """The rows of a clip, given its id, its path or its file name, with or without its ending."""
    exact = [row for row in rows if clip in (row["clip_id"], row["path"])]
    return exact or [row for row in rows if clip in (Path(row["path"]).name, Path(row["path"]).stem)]
