"""Differences between two datasets, clip by clip and param by param."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shards.index import MEMBERS, SPEECH
from shards.ledger import OK
from shards.params import iterate_values
from shards.reader import Dataset, open_dataset
from shards.storage import Storage
from shards.table import Row

MEMBER_COLUMNS = {f"{name}_{column}": name for name in (*MEMBERS, SPEECH) for column in ("size", "crc32")}
PLACES = ("shard", *(f"{name}_offset" for name in (*MEMBERS, SPEECH)))


@dataclass(slots=True)
class Difference:
    """Clips by how they differ between the first dataset and the second."""

    added: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)  # clip id -> why, by the second ledger
    changed: dict[str, list[str]] = field(default_factory=dict)  # clip id -> members and columns that differ
    moved: dict[str, str] = field(default_factory=dict)  # clip id -> "train -> test"
    places: dict[str, str] = field(default_factory=dict)  # clip id -> "shard at byte -> shard at byte"
    # By path; of datasets whose files were cut, by path and times of a span.
    reasons: dict[str, str] = field(default_factory=dict)  # file dropped in both -> "reason -> reason"
    files: dict[str, list[str]] = field(default_factory=dict)  # columns of the ledger that differ
    params: dict[str, str] = field(default_factory=dict)  # "mels.n_mels" -> "256 -> 80"
    manifest: dict[str, str] = field(default_factory=dict)  # other keys of dataset.json -> "before -> after"

    def __bool__(self) -> bool:
        return any(getattr(self, item.name) for item in fields(self))


def diff(first: Path | Storage, second: Path | Storage) -> Difference:
    """Compare two datasets by their manifests, indexes and ledgers, without opening shards."""
    before, after = open_dataset(first), open_dataset(second)
    difference = Difference(added=sorted(set(after.clips) - set(before.clips)))
    rows_before, rows_after = _map_rows(before), _map_rows(after)
    spans = {row["clip_id"]: row["path"] for row in rows_before.values() if row.get("track") is not None}
    paths_after = {row["path"] for row in rows_after.values()}
    reasons = {row["clip_id"]: f"{row['stage']}: {row['reason']}" for row in rows_after.values()}
    for clip_id in sorted(set(before.clips) - set(after.clips)):
        gone = "its file is cut at other places" if spans.get(clip_id) in paths_after else "its file is gone"
        difference.removed[clip_id] = reasons.get(clip_id, gone)
    for clip_id in sorted(set(before.clips) & set(after.clips)):
        _compare_clip(difference, clip_id, before.clips[clip_id], after.clips[clip_id])
    if before.shards.keys() != after.shards.keys():
        difference.places.clear()  # where clips are follows from the contents of their shards
    for path in sorted(set(rows_before) | set(rows_after)):
        _compare_files(difference, path, rows_before.get(path), rows_after.get(path))
    difference.params = _compare_values(_list_params(before), _list_params(after))
    difference.manifest = _compare_values(_list_fields(before), _list_fields(after))
    return difference


def _map_rows(dataset: Dataset) -> dict[str, Row]:
    """The ledger's rows by the path of the raw file; those of a span by its times, too."""
    return {_name_row(row): row for row in dataset.ledger()}


def _name_row(row: Row) -> str:
    start, end = row.get("start_seconds"), row.get("end_seconds")
    return row["path"] if start is None or end is None else f"{row['path']} {start:.2f}-{end:.2f} s"


def _compare_clip(difference: Difference, clip_id: str, before: Row, after: Row) -> None:
    columns = [name for name in before | after if before.get(name) != after.get(name)]
    names = [MEMBER_COLUMNS.get(name, name) for name in columns if name not in ("split", *PLACES)]
    if names:
        difference.changed[clip_id] = list(dict.fromkeys(names))
    if "split" in columns:
        difference.moved[clip_id] = f"{before['split']} -> {after['split']}"
    if place := next((name for name in PLACES if name in columns), None):
        name = "frames_offset" if place == "shard" else place
        difference.places[clip_id] = " -> ".join(
            f"{row['shard']} {name} {row.get(name)}" for row in (before, after)
        )


def _compare_files(difference: Difference, path: str, before: Row | None, after: Row | None) -> None:
    """Compare the rows of a file in the two ledgers. A file that is a clip of one dataset alone is listed."""
    if before is None or after is None:
        row = before or after
        if row is not None and row["status"] != OK:
            difference.files[path] = ["removed" if after is None else "added"]
        return
    if OK not in (before["status"], after["status"]) and before["reason"] != after["reason"]:
        difference.reasons[path] = f"{before['reason']} -> {after['reason']}"
    columns = [name for name in before | after if before.get(name) != after.get(name)]
    if before["status"] == after["status"] and columns:
        difference.files[path] = columns


def _list_params(dataset: Dataset) -> dict[str, Any]:
    params, tools = (dataset.manifest.get(name) or {} for name in ("params", "tools"))
    return dict(iterate_values(params)) | dict(iterate_values({"tools": tools}))


def _list_fields(dataset: Dataset) -> dict[str, Any]:
    """What the manifest says besides params, counts and what follows from the clips."""
    return {
        name: value
        for name, value in dataset.manifest.items()
        if name
        not in ("params", "tools", "tables", "shards", "splits", "files_found", "clips_kept", "dropped")
    }


def _compare_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{before.get(name)} -> {after.get(name)}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }
