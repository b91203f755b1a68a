"""Differences between two datasets, clip by clip and param by param."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.index import MEMBERS
from shards.ledger import OK
from shards.reader import Dataset, open_dataset
from shards.storage import Storage
from shards.table import Row


@dataclass(slots=True)
class Difference:
    """Clips by how they differ between the first dataset and the second."""

    added: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)  # clip id -> why, by the second ledger
    changed: dict[str, list[str]] = field(default_factory=dict)  # clip id -> members that differ
    moved: dict[str, str] = field(default_factory=dict)  # clip id -> "train -> test"
    reasons: dict[str, str] = field(default_factory=dict)  # file dropped in both -> "reason -> reason"
    params: dict[str, str] = field(default_factory=dict)  # "mels.n_mels" -> "256 -> 80"

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.moved, self.reasons, self.params))


def diff(first: Path | Storage, second: Path | Storage) -> Difference:
    """Compare two datasets by their indexes and ledgers, without opening shards."""
    before, after = open_dataset(first), open_dataset(second)
    difference = Difference(added=sorted(set(after.clips) - set(before.clips)))
    rows_before, rows_after = _map_paths(before), _map_paths(after)
    reasons = {row["clip_id"]: f"{row['stage']}: {row['reason']}" for row in rows_after.values()}
    for clip_id in sorted(set(before.clips) - set(after.clips)):
        difference.removed[clip_id] = reasons.get(clip_id, "its file is gone")
    for clip_id in sorted(set(before.clips) & set(after.clips)):
        _compare_clip(difference, clip_id, before.clips[clip_id], after.clips[clip_id])
    for path in sorted(set(rows_before) & set(rows_after)):
        row, other = rows_before[path], rows_after[path]
        if OK not in (row["status"], other["status"]) and row["reason"] != other["reason"]:
            difference.reasons[path] = f"{row['reason']} -> {other['reason']}"
    difference.params = _compare_params(before, after)
    return difference


def _map_paths(dataset: Dataset) -> dict[str, Row]:
    """The ledger's rows by the path of the raw file."""
    return {row["path"]: row for row in dataset.ledger()}


def _compare_clip(
    difference: Difference, clip_id: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    names = [
        name
        for name in MEMBERS
        if any(before[f"{name}_{column}"] != after[f"{name}_{column}"] for column in ("size", "crc32"))
    ]
    if before["sha256"] != after["sha256"]:
        difference.changed[clip_id] = names
    if before["split"] != after["split"]:
        difference.moved[clip_id] = f"{before['split']} -> {after['split']}"


def _compare_params(first: Dataset, second: Dataset) -> dict[str, str]:
    before, after = (
        _flatten(dataset.manifest.get("params", {})) | _flatten({"tools": dataset.manifest.get("tools", {})})
        for dataset in (first, second)
    )
    return {
        name: f"{before.get(name)} -> {after.get(name)}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
