"""The work of a stage whose cost lies in single clips: landmarks and mels.

Each clip's result is an entry in the cache, made by a worker and found again for ever. Parts are then
put together from entries, which is cheap: so a run killed at any moment loses at most one clip a worker,
and a part that gets one clip more costs one clip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from shards.ledger import FAILED, OK, count_by_code
from shards.table import Row
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry
from stages.engine.outcome import Mapper, Outcome, Report, StageError, Work
from stages.engine.parts import Part, PartTask, build, part_key, read_outcomes, write_part
from stages.engine.sandbox import ClipJob

Columns = Mapping[str, DTypeLike]  # arrays of an entry, and so of a part, by name


@dataclass(frozen=True, slots=True)
class ClipTask:
    """One clip whose result the cache lacks."""

    clip_id: str
    entry: Path
    job: ClipJob


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a part is put together from: the entry of each clip, and outcomes that left no entry."""

    entries: tuple[tuple[str, Path], ...]
    failed: dict[str, Outcome]
    columns: tuple[str, ...]


def compute(task: ClipTask) -> tuple[str, Outcome]:
    """Do one clip's work in the sandbox; the cache keeps what came of it, unless it failed."""
    outcome = sandbox.run(task.job)
    if outcome.status not in (OK, FAILED):
        save_entry(task.entry, outcome)
    return task.clip_id, outcome


def assemble(task: PartTask) -> None:
    """Write a part from the cache's entries."""
    inputs: Assembly = task.inputs
    rows: list[tuple[str, Outcome, Row]] = []
    for clip_id, path in inputs.entries:
        if clip_id in inputs.failed:
            rows.append((clip_id, inputs.failed[clip_id], {}))
            continue
        entry = load_entry(path)
        if entry is None:
            raise StageError(f"{path}: the cache's entry of {clip_id} is gone or damaged; run again")
        outcome, arrays = entry
        rows.append(
            (clip_id, outcome, {name: arrays[name].tobytes() for name in inputs.columns if name in arrays})
        )
    write_part(task.path, task.key, [pa.field(name, pa.binary()) for name in inputs.columns], rows)


def run(
    stage: str,
    work: Work,
    parts: Sequence[Part],
    known: str,
    job: Callable[[Row, Path], ClipJob],
    columns: Columns,
    mapper: Mapper,
) -> Report:
    """Bring a clipwise stage up to date.

    ``known`` is a digest of all that decides a result besides the clip itself; ``job`` is the sandbox
    job that writes a clip's entry.
    """
    report = Report(stage)
    entries: dict[str, Path] = {}
    keys: dict[str, str] = {}
    for part in parts:
        for row in part.rows:
            key = digest(known, row["sha256"], row["video_start"], row["frames"])
            keys[row["clip_id"]] = key
            entries[row["clip_id"]] = entry_path(work.cache, stage, key, ".npz")
    # The key of a part names the clips that failed in it, so they are tried again in the next run.
    hoped_for = [_task(part, work, stage, keys, entries, {}, columns) for part in parts]
    stale = [task for task in hoped_for if part_key(task.path) != task.key]
    missing = [
        ClipTask(row["clip_id"], entries[row["clip_id"]], job(row, entries[row["clip_id"]]))
        for task in stale
        for row in task.part.rows
        if not entries[row["clip_id"]].is_file()
    ]
    frames = {row["clip_id"]: row["frames"] for part in parts for row in part.rows}
    failed: dict[str, Outcome] = {}
    sizes = [frames[task.clip_id] for task in missing]
    for clip_id, outcome in mapper(compute, missing, label=f"{stage}: clips", sizes=sizes):
        if outcome.status == FAILED:
            failed[clip_id] = outcome
    report.clips_computed = len(missing)
    tasks = [_task(part, work, stage, keys, entries, failed, columns) for part in parts]
    build(work.stage(stage), tasks, assemble, mapper, report)
    outcomes = read_outcomes(work.stage(stage), parts)
    report.clips = len(outcomes)
    report.counts = count_by_code(outcomes)
    report.frames = sum(frames[row["clip_id"]] for row in outcomes if row["status"] == OK)
    return report


def _task(
    part: Part,
    work: Work,
    stage: str,
    keys: Mapping[str, str],
    entries: Mapping[str, Path],
    failed: Mapping[str, Outcome],
    columns: Columns,
) -> PartTask:
    clip_ids = [row["clip_id"] for row in part.rows]
    here = {clip_id: failed[clip_id] for clip_id in clip_ids if clip_id in failed}
    key = digest(stage, [[clip_id, keys[clip_id]] for clip_id in clip_ids], sorted(here))
    inputs = Assembly(tuple((clip_id, entries[clip_id]) for clip_id in clip_ids), here, tuple(columns))
    return PartTask(part, work.stage(stage) / f"{part.name}.parquet", key, inputs)


def clip_args(work: Work, row: Row, entry: Path) -> dict[str, Any]:
    """What a sandbox job is told of a clip: where it lies, its clock, and where its result goes."""
    return {
        "path": os.fspath(work.raw.resolve() / row["path"]),
        "start": row["video_start"],
        "n_frames": row["frames"],
        "entry": os.fspath(entry),
    }


def read_array(row: Row, name: str, columns: Columns, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of a part's row; one length may be -1."""
    return np.frombuffer(row[name], columns[name]).reshape(shape)
