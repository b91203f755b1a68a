"""Runs a stage whose cost is the work on single clips: landmarks, mels and speech.

Each clip's result is a cache entry, written by a worker in the sandbox. Parts are then assembled from
entries, which is cheap. So a run that is killed at any moment loses at most one clip per worker, and a part
that gains a clip costs that one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shards.ledger import FAILED, OK, find_decoded_seconds, find_sound_start, is_span
from shards.table import Row
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, read_entry, save_entry
from stages.engine.outcome import Outcome, StageError
from stages.engine.parts import (
    Part,
    PartTask,
    has_planned_key,
    list_columns,
    read_outcomes,
    read_part,
    read_part_key,
    update_parts,
    write_part,
)
from stages.engine.sandbox import ClipJob, LimitParams
from stages.engine.stage import Context, Report, Work

Columns = Mapping[str, DTypeLike]  # arrays of a cache entry, and so of a part, by name


@dataclass(frozen=True, slots=True)
class ClipTask:
    """One clip whose result is not in the cache."""

    clip_id: str
    entry: Path  # that the job writes
    job: ClipJob
    limits: LimitParams
    video_seconds: float


@dataclass(frozen=True, slots=True)
class PartInputs:
    """What a part is assembled from: each clip's cache entry, and outcomes that left no entry."""

    entries: tuple[tuple[str, Path], ...]
    failures: dict[str, Outcome]
    columns: tuple[str, ...]


def run_clip(task: ClipTask) -> tuple[str, Outcome]:
    """Run one clip's job in the sandbox. Every outcome but a failure stays in the cache."""
    outcome = sandbox.run(task.job, task.limits, video_seconds=task.video_seconds)
    if outcome.status not in (OK, FAILED):  # an ok job has written its entry itself
        save_entry(task.entry, outcome)
    return task.clip_id, outcome


def assemble_part(task: PartTask) -> None:
    """Write a part from its clips' cache entries."""
    inputs: PartInputs = task.inputs
    rows: list[tuple[str, Outcome, Row]] = []
    for clip_id, path in inputs.entries:
        if clip_id in inputs.failures:
            rows.append((clip_id, inputs.failures[clip_id], {}))
            continue
        outcome, arrays = read_entry(path)
        values = {name: arrays[name].tobytes() for name in inputs.columns if name in arrays}
        rows.append((clip_id, outcome, values))
    write_part(task.path, task.key, list_columns(inputs.columns), rows)


def run_per_clip(
    stage: str,
    work: Work,
    parts: Sequence[Part],
    context: Context,
    *,
    params_digest: str,
    make_job: Callable[[Row, Path], ClipJob],
    columns: Columns,
    hash_source: Callable[[Row], str] | None = None,
) -> Report:
    """Bring a stage's parts up to date, clip by clip.

    ``params_digest`` covers everything that decides a result besides the clip itself. ``make_job`` returns
    the job that writes a clip's cache entry, from the clip's ledger row and the entry's path. ``hash_source``
    is the hash of what else a span's result is made from, if that is not the raw file alone.
    """
    keys = {
        row["clip_id"]: _make_clip_key(params_digest, row, hash_source) for part in parts for row in part.rows
    }
    entries = {clip_id: entry_path(work.cache, stage, key, ".npz") for clip_id, key in keys.items()}

    def plan_tasks(failures: Mapping[str, Outcome]) -> list[PartTask]:
        return [_plan_part(part, work, stage, keys, entries, failures, columns) for part in parts]

    # A part with failures has another key than the one planned here, so its clips are tried again.
    stale = [task for task in plan_tasks({}) if not has_planned_key(task)]
    missing = [
        ClipTask(row["clip_id"], entry, make_job(row, entry), context.limits, find_decoded_seconds(row))
        for task in stale
        for row in task.part.rows
        if not (entry := entries[row["clip_id"]]).is_file()
    ]
    n_frames = {row["clip_id"]: row["frames"] for part in parts for row in part.rows}
    sizes = [n_frames[task.clip_id] for task in missing]
    outcomes = context.map_tasks(run_clip, missing, label=f"{stage}: clips", sizes=sizes)
    failures = {clip_id: outcome for clip_id, outcome in outcomes if outcome.status == FAILED}

    report = Report(stage, clips_computed=len(missing))
    update_parts(
        work.stage_folder(stage),
        plan_tasks(failures),
        assemble_part,
        context.map_tasks,
        report,
        is_current=_is_current,
    )
    count_outcomes(report, work, parts)
    return report


def count_outcomes(report: Report, work: Work, parts: Sequence[Part]) -> None:
    """Fill in a report's clips, codes and frames from the parts that its stage has written."""
    n_frames = {row["clip_id"]: row["frames"] for part in parts for row in part.rows}
    outcomes = read_outcomes(work.stage_folder(report.stage), parts)
    report.count_rows(outcomes)
    report.frames = sum(n_frames[row["clip_id"]] for row in outcomes if row["status"] == OK)


def _make_clip_key(params_digest: str, row: Row, hash_source: Callable[[Row], str] | None) -> str:
    """The cache key of a clip's result: its source, its place on the container's clock, and the params."""
    span: list[Any] = []
    if is_span(row):
        span = [find_sound_start(row), *([hash_source(row)] if hash_source else [])]
    return digest(params_digest, row["sha256"], row["video_start"], row["frames"], *span)


def _plan_part(
    part: Part,
    work: Work,
    stage: str,
    keys: Mapping[str, str],
    entries: Mapping[str, Path],
    failures: Mapping[str, Outcome],
    columns: Columns,
) -> PartTask:
    clip_ids = [row["clip_id"] for row in part.rows]
    own_failures = {clip_id: failures[clip_id] for clip_id in clip_ids if clip_id in failures}
    key = _make_part_key(stage, [(clip_id, keys[clip_id]) for clip_id in clip_ids], own_failures)
    inputs = PartInputs(
        tuple((clip_id, entries[clip_id]) for clip_id in clip_ids), own_failures, tuple(columns)
    )
    return PartTask(part, work.part_path(stage, part.name), key, inputs)


def _make_part_key(stage: str, clip_keys: Sequence[tuple[str, str]], failures: Iterable[str]) -> str:
    """The key of a part of (clip id, key of its result), of which the clips ``failures`` have no result."""
    return digest(stage, clip_keys, sorted(failures))


def read_current_key(
    stage: str,
    work: Work,
    part: Part,
    *,
    params_digest: str,
    hash_source: Callable[[Row], str] | None = None,
) -> str:
    """The key of a stage's part that is made of these clips, and with these params, as in ``run_per_clip``.

    Raises StageError when the part on disk is not there or another one.
    """
    key, path = read_stage_key(stage, work, part), work.part_path(stage, part.name)
    clip_keys = [(row["clip_id"], _make_clip_key(params_digest, row, hash_source)) for row in part.rows]
    if key != _make_part_key(stage, clip_keys, ()):
        failures = [clip_id for clip_id, row in read_part(path).items() if row["status"] == FAILED]
        if key != _make_part_key(stage, clip_keys, failures):
            raise StageError(
                f"{path}: was made of other clips, with other params or by other versions of what makes it; "
                f"run `pipeline {stage} --dataset {work.corpus}` with the same options first"
            )
    return key


def read_stage_key(stage: str, work: Work, part: Part) -> str:
    """The key of a stage's part. Raises StageError when the part is not there."""
    path = work.part_path(stage, part.name)
    key = read_part_key(path)
    if key is None:
        raise StageError(f"{path}: not there; run `pipeline {stage} --dataset {work.corpus}` first")
    return key


def _is_current(task: PartTask) -> bool:
    """Whether a part is the planned one, and tells of each failure what the last try said.

    The key names the clips that failed, not why: it is in the keys of later stages, and "used 1403 MB" is
    another number in every run.
    """
    inputs: PartInputs = task.inputs
    if not has_planned_key(task):
        return False
    if not inputs.failures:
        return True
    try:
        rows = read_part(task.path)
    except StageError:
        return False
    return all(
        (rows[clip_id]["code"], rows[clip_id]["reason"]) == (outcome.code, outcome.reason)
        for clip_id, outcome in inputs.failures.items()
    )


def read_array(row: Row, name: str, columns: Columns, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array from a part's row; one length may be -1. Raises StageError for bytes of another shape."""
    try:
        return np.frombuffer(row[name], columns[name]).reshape(shape)
    except (ValueError, TypeError) as err:
        n_bytes = len(row[name] or b"")
        raise StageError(
            f"{row['clip_id']}: its part has {name} of {n_bytes} bytes, expected {columns[name]} {shape}; "
            "run the stage again"
        ) from err
