"""Parts: groups of clips, by a hash of the clip id, that are written together, completely or not at all.

Every stage uses the same parts, and one shard holds one part. A part's key is a digest of everything that
went into it. So a new clip changes one part of each stage, and a part with the same key is not rebuilt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.atomic import write_atomically
from shards.files import open_file
from shards.ledger import OK, Status
from shards.names import ID_PATTERN, ID_RULE, MAX_ID_BYTES
from shards.params import MAX_SEED
from shards.schema import ShardError
from shards.table import PackedRows, Row, Rows, Rule, read_rows
from stages.engine.outcome import Outcome, StageError
from stages.engine.stage import Item, Mapper, Report

KEY = b"redub_key"
PART_NAME = re.compile(r".+-[0-9]{5,}")  # no other file is removed from a stage's folder


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PartParams:
    """How clips are assigned to parts, and so to shards."""

    # Average at most; at least half of it. 100,000 clips of GRID are a shard of 100 GB.
    clips_per_part: int = Field(default=64, ge=1, le=100_000)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)  # of the shuffle


@dataclass(frozen=True, slots=True)
class Part:
    """Clips that are written together, in shuffled order."""

    split: str
    number: int
    rows: Rows  # of the ledger

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    @property
    def n_frames(self) -> int:
        return int(pc.sum(self.rows.table["frames"]).as_py())


def plan_parts(ledger: Rows, params: PartParams) -> list[Part]:
    """Assign the usable clips of each split to 1, 2, 4, 8 ... parts by a hash of seed and clip id.

    A power of two, so that the number of parts rarely changes when clips are added (and shards divide
    evenly among ranks). Clips of a part are in the order of their hashes, so shuffled.
    """
    table = ledger.table.combine_chunks()  # so that ``take`` is fast
    ids = table["clip_id"].to_pylist()
    by_split: dict[str, list[int]] = {}
    for index, row in enumerate(ledger.select_columns("status", "split")):
        if row["status"] == OK:
            by_split.setdefault(row["split"], []).append(index)
    return [
        Part(split, number, PackedRows(table.take(group)))
        for split, indices in sorted(by_split.items())
        for number, group in group_by_hash(indices, ids.__getitem__, params)
    ]


def group_by_hash(
    items: Sequence[Item], get_name: Callable[[Item], str], params: PartParams
) -> Iterator[tuple[int, tuple[Item, ...]]]:
    """Numbered groups of items, each in the order of its hashes; empty groups are left out."""
    n_groups = 1
    while n_groups * params.clips_per_part < len(items):
        n_groups *= 2
    groups: list[list[tuple[bytes, Item]]] = [[] for _ in range(n_groups)]
    for item in items:
        name_hash = hashlib.sha256(f"{params.seed}/{get_name(item)}".encode()).digest()
        groups[int.from_bytes(name_hash[:8], "big") % n_groups].append((name_hash[8:], item))
    for number, group in enumerate(groups):
        if group:
            yield number, tuple(item for _, item in sorted(group, key=lambda pair: pair[0]))


@dataclass(frozen=True, slots=True)
class PartTask:
    """One part for a worker to write. ``inputs`` is whatever the stage's ``write`` function needs."""

    part: Part
    path: Path
    key: str
    inputs: Any


def update_parts(
    folder: Path,
    tasks: Sequence[PartTask],
    write: Callable[[PartTask], Any],
    map_tasks: Mapper,
    report: Report,
    is_current: Callable[[PartTask], bool] | None = None,
) -> list[PartTask]:
    """Write the stale parts of a stage's folder, remove those that are no longer planned.

    ``is_current`` says whether a part needs no work; by default, when its key is the planned one. Returns
    the tasks of stale parts.
    """
    is_current = is_current or has_planned_key
    stale = [task for task in tasks if not is_current(task)]
    sizes = [task.part.n_frames for task in stale]
    for _ in map_tasks(write, stale, label=f"{report.stage}: parts", sizes=sizes):
        pass
    planned = {task.path for task in tasks}
    for path in folder.glob("*.parquet"):
        if path not in planned and PART_NAME.fullmatch(path.stem):
            path.unlink()
    report.parts = {"total": len(tasks), "kept": len(tasks) - len(stale), "built": len(stale)}
    return stale


def has_planned_key(task: PartTask) -> bool:
    """Whether the part on disk has the key that is planned for it."""
    return read_part_key(task.path) == task.key


def read_part_key(path: Path) -> str | None:
    """The key that a part was built with, or None when there is no intact part."""
    try:
        with open_file(path) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (pa.ArrowException, OSError, ValueError):  # a name that is not UTF-8 is a ValueError
        return None
    key = metadata.get(KEY)
    return key.decode(errors="replace") if key else None


OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("status", pa.string()),
        pa.field("code", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("notes", pa.list_(pa.string())),
    ]
)


PART_RULES = MappingProxyType(
    {
        "clip_id": Rule(required=True, names=(ID_PATTERN, MAX_ID_BYTES), expected=ID_RULE),
        "status": Rule(required=True, choices=get_args(Status)),
        "notes": Rule(required=True),
    }
)
MAX_PART_BYTES = 2**34  # in memory: 64 clips of ten minutes with their landmarks are 3.7 GB
ROWS_PER_BATCH = 16  # after which a page may end: a page of 1024 arrays, pyarrow's default, may be too large


def list_columns(arrays: Iterable[str]) -> list[pa.Field]:
    """The columns of a part that hold arrays as bytes."""
    return [pa.field(name, pa.binary()) for name in arrays]


def write_part(
    path: Path, key: str, columns: Sequence[pa.Field], rows: Iterable[tuple[str, Outcome, Row]]
) -> None:
    """Write a part from (clip id, outcome, values of the stage's own columns); null where not ok.

    Raises StageError for more than ``read_part`` accepts.
    """
    schema = pa.schema([*OUTCOME_SCHEMA, *columns], metadata={KEY: key.encode()})
    records = [
        {"clip_id": clip_id, **outcome.to_columns(), "notes": list(outcome.notes), **values}
        for clip_id, outcome, values in rows
    ]
    table = pa.Table.from_pylist(records, schema)
    if table.nbytes > MAX_PART_BYTES:
        raise StageError(
            f"{path}: its {len(records)} clips take {table.nbytes / 1e9:.3g} GB, expected at most "
            f"{MAX_PART_BYTES / 1e9:.3g}; choose a smaller parts.clips_per_part"
        )
    # No two arrays are equal, and a dictionary would hold them all.
    texts = [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if not pa.types.is_binary(field.type)
    ]
    with write_atomically(path) as partial:
        pq.write_table(
            table, partial, compression="zstd", use_dictionary=texts, write_batch_size=ROWS_PER_BATCH
        )


def read_part(path: Path, columns: Iterable[pa.Field] = ()) -> dict[str, Row]:
    """Rows of a part by clip id: the outcomes, and some of the stage's own columns.

    Raises StageError when the part is missing, damaged or has columns of other types.
    """
    schema = pa.schema([*OUTCOME_SCHEMA, *columns])
    try:
        rows = read_rows(path, schema, "part", PART_RULES, max_bytes=MAX_PART_BYTES)
    except ShardError as err:
        raise StageError(f"{err}; run the stage before this one again") from err
    return {row["clip_id"]: row for row in rows}


def read_outcomes(folder: Path, parts: Iterable[Part]) -> Rows:
    """Outcomes of the clips of some parts, as far as the stage of this folder has processed them."""
    paths = [folder / f"{part.name}.parquet" for part in parts]
    outcomes = (read_part(path).values() for path in paths if path.is_file())
    return Rows.from_rows(chain.from_iterable(outcomes), OUTCOME_SCHEMA)
