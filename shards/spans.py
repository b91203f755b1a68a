"""Spans of files: what became of every second of a dataset whose files were cut into clips.

Each row of such a ledger is a span of a file. A file's spans follow each other on the 25 fps clock from its
first frame to its last, so that their seconds add up to those of the file. A file that was not cut, because
it was dropped before, has one row; where its length is not known, that row has no times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import MappingProxyType

import pyarrow.compute as pc

from shards.ledger import OK, get_code, has_spans
from shards.schema import VIDEO_FPS
from shards.table import Row, Rows

FRAME_TOLERANCE = 1e-3  # of times, which are k / 25 s
SPAN_TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "start_seconds": "from the first frame of the file's picture",
        "end_seconds": "from the first frame of the file's picture; a file's spans follow each other",
        "track": "number of the face in its file",
        "sync_confidence": "how surely the mouth follows the voice",
        "lag_frames": "by which the mouth is late in the file; negative: the sound is",
        "sound_shift": "seconds; the clip's sound is read so much after its picture",
        "face_width": "pixels of the source, median",
        "sharpness": "of the mouth",
        "yaw": "degrees, the greatest that lasts; positive: turned to the person's own left",
        "pitch": "degrees; positive: looking up",
        "brightness": "of the face, 0 to 255, mean",
        "speech_level": "dB below full scale, while something is said",
        "speech_to_noise": "dB above the pauses around",
        "near_duplicate": "id of an earlier clip with the same sound",
        "syncnet_confidence": "SyncNet's LSE-C: how surely the mouth follows the voice",
        "syncnet_lag": "by which the mouth is late in the file, by SyncNet; negative: the sound is",
    }
)


@dataclass(frozen=True, slots=True)
class FileSpans:
    """The rows of a file, in the order of time."""

    path: str
    rows: Sequence[Row]

    @property
    def is_whole(self) -> bool:
        """Whether it is one row, of no clip: so one span, or a file that was dropped before it was cut."""
        return len(self.rows) == 1 and self.rows[0]["status"] != OK

    @property
    def seconds(self) -> float:
        """Of all rows that have times."""
        return math.fsum(sum_seconds(self.rows).values())


def count_files(ledger: Rows) -> int:
    """The number of files, of which each may have several rows."""
    return int(pc.count_distinct(ledger.table["path"]).as_py()) if has_spans(ledger) else len(ledger)


def group_spans(ledger: Rows) -> Iterator[FileSpans]:
    """The files of a ledger with spans, by path."""
    table = ledger.table.sort_by([("path", "ascending"), ("start_seconds", "ascending")])
    for path, rows in groupby(Rows(table), key=lambda row: row["path"]):
        yield FileSpans(path, list(rows))


def measure_seconds(row: Row) -> float | None:
    """The length of a span; None for a file of unknown length."""
    start, end = row["start_seconds"], row["end_seconds"]
    return None if start is None or end is None else max(0.0, end - start)


def sum_seconds(rows: Iterable[Row]) -> dict[str, float]:
    """Seconds by code; ``ok`` comes first, then the code with the most. Rows without times are left out."""
    if isinstance(rows, Rows):
        rows = rows.select_columns("code", "status", "start_seconds", "end_seconds")
    lengths: dict[str, list[float]] = {OK: []}
    for row in rows:
        seconds = measure_seconds(row)
        if seconds is not None:
            lengths.setdefault(get_code(row), []).append(seconds)
    sums = {code: math.fsum(values) for code, values in lengths.items()}
    n_ok = sums.pop(OK)
    return {OK: n_ok, **dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))}


def list_unknown(ledger: Rows) -> Rows:
    """The rows without times: of files whose length nobody could measure."""
    table = ledger.table
    return Rows(table.filter(pc.or_(pc.is_null(table["start_seconds"]), pc.is_null(table["end_seconds"]))))


def check_spans(ledger: Rows) -> Iterator[str]:
    """A line for each file whose spans do not follow each other from its first frame to its last."""
    columns = ("path", "clip_id", "status", "source_frames", "fps", "frames", "start_seconds", "end_seconds")
    for file in group_spans(ledger.select_columns(*columns)):
        if problem := find_problem(file):
            yield f"{file.path}: {problem}"


def find_problem(file: FileSpans) -> str:
    """What is wrong with the spans of a file; an empty string where nothing is."""
    rows = file.rows
    if any(measure_seconds(row) is None for row in rows):
        return "" if file.is_whole else f"one of its {len(rows)} spans has no times"
    if rows[0]["start_seconds"]:
        return f"its first span begins at {rows[0]['start_seconds']:.2f} s, expected 0"
    for before, after in pairwise(rows):
        end, start = before["end_seconds"], after["start_seconds"]
        if abs(end - start) * VIDEO_FPS > FRAME_TOLERANCE:
            number = "no span" if start > end else "two spans"
            return f"{number} from {min(start, end):.2f} s to {max(start, end):.2f} s"
    if not file.is_whole:
        for row in rows:
            length = (row["end_seconds"] - row["start_seconds"]) * VIDEO_FPS
            if row["frames"] is None or row["frames"] < 1 or abs(length - row["frames"]) > FRAME_TOLERANCE:
                return (
                    f"{row['clip_id']} has {row['frames']} frames from {row['start_seconds']:.2f} s to "
                    f"{row['end_seconds']:.2f} s, expected {length:.0f} and at least 1"
                )
    if rows[0]["source_frames"] and rows[0]["fps"]:
        end, length = rows[-1]["end_seconds"], rows[0]["source_frames"] / rows[0]["fps"]
        if abs(end - length) * VIDEO_FPS > 1 + FRAME_TOLERANCE:
            return f"its spans end at {end:.2f} s, its picture at {length:.2f} s"
    return ""
