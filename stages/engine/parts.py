"""Parts: clips fall into them by a hash of their id, and each is written whole or not at all.

Every stage uses the same parts, one shard holds one part, and a part's key names all that went into
it. So one new clip touches one part of each stage, and a part whose key has not changed is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.atomic import write_atomically
from shards.ledger import OK
from shards.table import PackedRows, Row, Rows
from stages.engine.outcome import Item, Mapper, Outcome, Report, StageError

KEY = b"redub_key"


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PartParams:
    """How clips are dealt to parts, and so to shards."""

    clips_per_part: int = Field(default=64, ge=1)  # at most, on average; between half of it and it
    seed: int = Field(default=0, ge=0)  # of the shuffle


@dataclass(frozen=True, slots=True)
class Part:
    """The clips that are written together, in their shuffled order."""

    split: str
    number: int
    rows: Rows  # of the ledger

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    @property
    def n_frames(self) -> int:
        return int(pc.sum(self.rows.table["frames"]).as_py())


def plan(ledger: Rows, params: PartParams) -> list[Part]:
    """Deal the usable clips of each split to 1, 2, 4, 8 ... parts by a hash of seed and clip id.

    A power of two, so that the number of parts rarely changes when clips are added (and shards divide
    evenly among ranks). Within a part clips are in order of the hash: shuffled, whatever their names.
    """
    table = ledger.table.combine_chunks()  # of which rows are taken fast
    ids = table["clip_id"].to_pylist()
    by_split: dict[str, list[int]] = {}
    for place, row in enumerate(ledger.only("status", "split")):
        if row["status"] == OK:
            by_split.setdefault(row["split"], []).append(place)
    return [
        Part(split, number, PackedRows(table.take(hand)))
        for split, places in sorted(by_split.items())
        for number, hand in deal(places, ids.__getitem__, params)
    ]


def deal(
    items: Sequence[Item], name_of: Callable[[Item], str], params: PartParams
) -> Iterator[tuple[int, tuple[Item, ...]]]:
    """Numbered hands of items, each in the order of its hash; empty ones are left out."""
    n_hands = 1
    while n_hands * params.clips_per_part < len(items):
        n_hands *= 2
    hands: list[list[tuple[bytes, Item]]] = [[] for _ in range(n_hands)]
    for item in items:
        place = hashlib.sha256(f"{params.seed}/{name_of(item)}".encode()).digest()
        hands[int.from_bytes(place[:8], "big") % n_hands].append((place[8:], item))
    for number, hand in enumerate(hands):
        if hand:
            yield number, tuple(item for _, item in sorted(hand, key=lambda pair: pair[0]))


@dataclass(frozen=True, slots=True)
class PartTask:
    """One part to be written by a worker. ``inputs`` is whatever the stage's builder needs."""

    part: Part
    path: Path
    key: str
    inputs: Any


def build(
    folder: Path,
    tasks: Sequence[PartTask],
    builder: Callable[[PartTask], Any],
    mapper: Mapper,
    report: Report,
    in_place: Callable[[PartTask], bool] | None = None,
) -> list[PartTask]:
    """Bring a stage's folder up to date: write stale parts, remove those that are no longer planned.

    ``in_place`` says whether a part needs no work; without it the part's key does. Returns the stale ones.
    """
    in_place = in_place or is_current
    stale = [task for task in tasks if not in_place(task)]
    sizes = [task.part.n_frames for task in stale]
    for _ in mapper(builder, stale, label=f"{report.stage}: parts", sizes=sizes):
        pass
    planned = {task.path for task in tasks}
    for path in folder.glob("*.parquet"):
        if path not in planned:
            path.unlink()
    report.parts = {"total": len(tasks), "kept": len(tasks) - len(stale), "built": len(stale)}
    return stale


def is_current(task: PartTask) -> bool:
    """Whether a part is there with the key that is planned for it."""
    return part_key(task.path) == task.key


def part_key(path: Path) -> str | None:
    """The key a part was built with, or None when there is no whole part."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return None
    key = metadata.get(KEY)
    return key.decode() if key else None


OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("status", pa.string()),
        pa.field("code", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("notes", pa.list_(pa.string())),
    ]
)


def write_part(
    path: Path, key: str, columns: Sequence[pa.Field], rows: Iterable[tuple[str, Outcome, Row]]
) -> None:
    """Write (clip id, outcome, values of the stage's own columns); null values where not ok."""
    schema = pa.schema([*OUTCOME_SCHEMA, *columns], metadata={KEY: key.encode()})
    listed = [
        {
            "clip_id": clip_id,
            "status": outcome.status,
            "code": outcome.code,
            "reason": outcome.reason,
            "notes": list(outcome.notes),
            **values,
        }
        for clip_id, outcome, values in rows
    ]
    with write_atomically(path) as partial:
        pq.write_table(pa.Table.from_pylist(listed, schema), partial, compression="zstd")


def read_part(path: Path, columns: Sequence[str] | None = None) -> dict[str, Row]:
    """Rows of a part by clip id. Raises StageError when the part is missing or damaged."""
    try:
        rows = pq.read_table(path, columns=None if columns is None else list(columns)).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as err:
        raise StageError(f"{path}: cannot be read ({err}); run the stage before this one again") from err
    return {row["clip_id"]: row for row in rows}


def read_outcomes(folder: Path, parts: Iterable[Part]) -> Rows:
    """What became of the clips of some parts, as far as the stage of this folder has seen them."""
    paths = [folder / f"{part.name}.parquet" for part in parts]
    told = (read_part(path, OUTCOME_SCHEMA.names).values() for path in paths if path.is_file())
    return Rows.of(chain.from_iterable(told), OUTCOME_SCHEMA)
