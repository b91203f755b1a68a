"""What two datasets differ in, clip by clip and param by param."""

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
    """Clips by what happened to them from the first dataset to the second."""

    added: list[str] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)  # clip id -> why, by the second ledger
    changed: dict[str, list[str]] = field(default_factory=dict)  # clip id -> members that differ
    moved: dict[str, str] = field(default_factory=dict)  # clip id -> "train -> test"
    reasons: dict[str, str] = field(default_factory=dict)  # file dropped in both -> "reason -> reason"
    params: dict[str, str] = field(default_factory=dict)  # "mels.n_mels" -> "256 -> 80"

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.moved, self.reasons, self.params))


def diff(first: Path | Storage, second: Path | Storage) -> Difference:
    """Compare two datasets by their indexes and ledgers; no shard is opened."""
    left, right = open_dataset(first), open_dataset(second)
    found = Difference(added=sorted(set(right.clips) - set(left.clips)))
    left_rows, right_rows = _by_path(left), _by_path(right)
    ended = {row["clip_id"]: f"{row['stage']}: {row['reason']}" for row in right_rows.values()}
    for clip_id in sorted(set(left.clips) - set(right.clips)):
        found.removed[clip_id] = ended.get(clip_id, "its file is gone")
    for clip_id in sorted(set(left.clips) & set(right.clips)):
        _compare_clip(found, clip_id, left.clips[clip_id], right.clips[clip_id])
    for path in sorted(set(left_rows) & set(right_rows)):
        before, after = left_rows[path], right_rows[path]
        if OK not in (before["status"], after["status"]) and before["reason"] != after["reason"]:
            found.reasons[path] = f"{before['reason']} -> {after['reason']}"
    found.params = _param_changes(left, right)
    return found


def _by_path(dataset: Dataset) -> dict[str, Row]:
    return {row["path"]: row for row in dataset.ledger()}


def _compare_clip(
    found: Difference, clip_id: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    names = [
        name
        for name in MEMBERS
        if any(before[f"{name}_{column}"] != after[f"{name}_{column}"] for column in ("size", "crc32"))
    ]
    if before["sha256"] != after["sha256"]:
        found.changed[clip_id] = names
    if before["split"] != after["split"]:
        found.moved[clip_id] = f"{before['split']} -> {after['split']}"


def _param_changes(left: Dataset, right: Dataset) -> dict[str, str]:
    before, after = (_flat(side.manifest.get("params", {})) for side in (left, right))
    tools = [_flat({"tools": side.manifest.get("tools", {})}) for side in (left, right)]
    before, after = before | tools[0], after | tools[1]
    return {
        name: f"{before.get(name)} -> {after.get(name)}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
