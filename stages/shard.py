"""Stage 5: pack clips into shards, each part into one, and make them a dataset."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.atomic import PARTIAL_SUFFIX, write_atomically
from shards.checksum import file_sha256
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    ShardEntry,
    read_dataset,
    rows_of_shard,
    shard_entries,
    write_dataset,
    write_index,
)
from shards.ledger import OK, count_by_code, write_ledger
from shards.schema import SCHEMA_VERSION, ShardError
from shards.table import Rows
from shards.writer import PackedClip, shard_name, write_tar
from stages import align, landmarks, mels
from stages.clips import carry_ledger
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, link_or_copy, versions
from stages.engine.outcome import Mapper, Outcome, Report, StageError, Work
from stages.engine.parts import (
    Part,
    PartTask,
    build,
    part_key,
    read_part,
    write_part,
)
from stages.engine.per_clip import read_array
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.crops import ShardParams

STAGE = "shard"
VERSION = 1
STAGES = (landmarks.STAGE, align.STAGE, mels.STAGE, STAGE)  # that may end a clip after it was found
COLUMNS = [
    pa.field("entry", pa.string()),  # JSON of the part's ShardEntry, the same in every row
    pa.field("index", pa.string()),  # JSON of the clip's row of index.parquet
]
LIBRARIES = ("av", "librosa", "mediapipe", "numpy", "opencv-python", "pillow")


@dataclass(frozen=True, slots=True)
class PackInputs:
    """What a worker needs to write one shard."""

    work: Work
    size: int
    params: ShardParams
    limits: LimitParams
    tools: dict[str, str]


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A shard that is written, and its clips' rows of the index."""

    entry: ShardEntry
    index: Rows


def pack_part(task: PartTask) -> None:
    """Write one part's shard, or find it in the cache."""
    inputs: PackInputs = task.inputs
    cached_tar = entry_path(inputs.work.cache, STAGE, task.key, ".tar")
    cached_part = entry_path(inputs.work.cache, STAGE, task.key, ".parquet")
    entry = _entry_of(cached_part)
    # The tar shares its bytes with the one in --out, which somebody may have damaged since.
    whole = part_key(cached_part) == task.key and (
        entry is None or (cached_tar.is_file() and file_sha256(cached_tar) == entry.sha256)
    )
    if not whole:
        entry = _compute(task, inputs, cached_tar, cached_part)
    if entry is not None:
        link_or_copy(cached_tar, inputs.work.out / entry.name)
    link_or_copy(cached_part, task.path)


def _compute(task: PartTask, inputs: PackInputs, cached_tar: Path, cached_part: Path) -> ShardEntry | None:
    """Code the clips of a part and write its tar and its rows to the cache."""
    outcomes: dict[str, Outcome] = {}
    with (
        write_atomically(cached_tar) as partial,
        tempfile.TemporaryDirectory(dir=inputs.work.cache, suffix=PARTIAL_SUFFIX) as scratch,
    ):
        packed = _packed_clips(task, inputs, Path(scratch), outcomes)
        index_rows = write_tar(partial, packed)
        sha256, size = file_sha256(partial), partial.stat().st_size
    entry = None
    if index_rows:
        name = shard_name(task.part.split, task.part.number, sha256)
        n_frames = sum(row["frames"] for row in index_rows)
        entry = ShardEntry(name, task.part.split, size, sha256, len(index_rows), n_frames)
    failed = sorted(clip_id for clip_id, outcome in outcomes.items() if outcome.status != OK)
    by_id = {row["clip_id"]: row for row in index_rows}
    write_part(
        cached_part,
        # With failures the key differs from the one planned, so that the next run tries them again.
        digest(task.key, failed) if failed else task.key,
        COLUMNS,
        [
            (
                clip_id,
                outcome,
                {
                    "entry": json.dumps(asdict(entry)) if entry else None,
                    "index": json.dumps(by_id[clip_id]) if clip_id in by_id else None,
                },
            )
            for clip_id, outcome in outcomes.items()
        ],
    )
    return entry


def _packed_clips(
    task: PartTask, inputs: PackInputs, scratch: Path, outcomes: dict[str, Outcome]
) -> Iterator[PackedClip]:
    """The usable clips of a part, in its order, one at a time; fills ``outcomes`` as it goes."""
    name = f"{task.part.name}.parquet"
    align_path = inputs.work.stage(align.STAGE) / name
    aligned, heard = read_part(align_path), read_part(inputs.work.stage(mels.STAGE) / name)
    found = read_part(inputs.work.stage(landmarks.STAGE) / name, ["clip_id", "found", "notes"])
    blob = scratch / "frames"
    for row in task.part.rows:
        clip_id = row["clip_id"]
        if any(part.get(clip_id, {}).get("status") != OK for part in (aligned, heard)):
            continue  # ended in an earlier stage, which has said why
        job = ClipJob(
            "stages.media.crops:code_file",
            {
                "path": os.fspath(inputs.work.raw.resolve() / row["path"]),
                "start": row["video_start"],
                "align_part": os.fspath(align_path),
                "clip_id": clip_id,
                "size": inputs.size,
                "params": asdict(inputs.params),
                "blob": os.fspath(blob),
            },
            row["video_seconds"],
            inputs.limits,
        )
        outcome = sandbox.run(job)
        outcomes[clip_id] = Outcome(outcome.status, outcome.code, outcome.reason, outcome.notes)
        if outcome.status != OK:
            continue
        notes = [*row["notes"], *found[clip_id]["notes"], *heard[clip_id]["notes"]]
        bridged = ~read_array(found[clip_id], "found", landmarks.COLUMNS, (-1,))
        info = {
            "schema_version": SCHEMA_VERSION,
            **{name: row[name] for name in IDENTITY},
            "source": row["path"],
            "source_sha256": row["sha256"],
            "source_fps": round(row["fps"], 6),
            "source_size": [row["width"], row["height"]],
            "source_start": row["video_start"],
            "size": inputs.size,
            "codec": inputs.params.codec,
            "interpolated_frames": np.flatnonzero(bridged).tolist(),
            "notes": notes,
            "tools": inputs.tools,
            **outcome.facts,
        }
        yield PackedClip(
            clip_id,
            blob.read_bytes(),
            read_array(aligned[clip_id], "boxes", align.COLUMNS, (-1, 4)),
            read_array(heard[clip_id], "mels", mels.COLUMNS, (2 * row["frames"], -1)),
            read_array(aligned[clip_id], "affine", align.COLUMNS, (-1, 2, 3)),
            info,
        )


IDENTITY = ("clip_id", "corpus", "speaker", "sentence", "emotion", "level", "split", "frames")


def _entry_of(part: Path) -> ShardEntry | None:
    """The shard that a part's rows speak of, or None when there is no part or it has no shard."""
    if part_key(part) is None:
        return None
    row = next((row for row in read_part(part, ["clip_id", "entry"]).values() if row["entry"]), None)
    return None if row is None else ShardEntry(**json.loads(row["entry"]))


def _in_place(task: PartTask) -> bool:
    """Whether a part and its shard are there as planned."""
    if part_key(task.path) != task.key:
        return False
    entry = _entry_of(task.path)
    inputs: PackInputs = task.inputs
    if entry is None:
        return True
    path = inputs.work.out / entry.name
    return path.is_file() and path.stat().st_size == entry.bytes


def plan_tasks(
    work: Work, parts: Sequence[Part], size: int, params: ShardParams, limits: LimitParams
) -> list[PartTask]:
    """One task per shard, with the key of all that goes into it."""
    tools = versions(*LIBRARIES)
    inputs = PackInputs(work, size, params, limits, tools)
    tasks = []
    for part in parts:
        keys = [_stage_key(work, stage, part) for stage in (landmarks.STAGE, align.STAGE, mels.STAGE)]
        meta = [[row[name] for name in (*IDENTITY, "path", "sha256", "notes")] for row in part.rows]
        key = digest(STAGE, VERSION, SCHEMA_VERSION, params, size, tools, keys, meta)
        tasks.append(PartTask(part, work.stage(STAGE) / f"{part.name}.parquet", key, inputs))
    return tasks


def _stage_key(work: Work, stage: str, part: Part) -> str:
    path = work.stage(stage) / f"{part.name}.parquet"
    key = part_key(path)
    if key is None:
        raise StageError(f"{path}: not there; run `pipeline {stage} --dataset {work.corpus}` first")
    return key


def run(
    work: Work,
    params: ShardParams,
    size: int,
    parts: Sequence[Part],
    limits: LimitParams,
    described: dict[str, Any],
    mapper: Mapper,
) -> Report:
    """Write the dataset to ``work.out``: shards, index, ledger and last ``dataset.json``.

    ``described`` are the params of every stage, for ``dataset.json``.
    """
    report = Report(STAGE)
    packed = pack(work, params, size, parts, limits, mapper, report)
    ledger = carry_ledger(work, STAGES, parts)
    report.clips = len(ledger)
    report.counts = count_by_code(ledger)
    report.frames = sum(one.entry.frames for one in packed)
    if packed:
        publish(work, params, size, described, packed, ledger)
    return report


def pack(
    work: Work,
    params: ShardParams,
    size: int,
    parts: Sequence[Part],
    limits: LimitParams,
    mapper: Mapper,
    report: Report,
) -> list[PackedShard]:
    """Write the shards of ``parts`` to ``work.out``. A part of which no clip is left has none."""
    tasks = plan_tasks(work, parts, size, params, limits)
    build(work.stage(STAGE), tasks, pack_part, mapper, report, in_place=_in_place)
    packed = []
    for task in tasks:
        rows = [row for row in read_part(task.path, ["clip_id", "entry", "index"]).values() if row["index"]]
        if rows:
            entry = ShardEntry(**json.loads(rows[0]["entry"]))
            index = rows_of_shard(entry.name, (json.loads(row["index"]) for row in rows))
            packed.append(PackedShard(entry, index))
    return packed


def publish(
    work: Work,
    params: ShardParams,
    size: int,
    described: dict[str, Any],
    packed: Sequence[PackedShard],
    ledger: Rows,
) -> None:
    """Make the shards a dataset; only then remove what an older one left."""
    before = _old_shards(work.out)
    packed = sorted(packed, key=lambda one: one.entry.name)
    entries = [one.entry for one in packed]
    write_index(work.out / INDEX_NAME, (one.index for one in packed))
    write_ledger(work.out / LEDGER_NAME, ledger)
    splits: dict[str, dict[str, int]] = {}
    for entry in entries:
        split = splits.setdefault(entry.split, {"shards": 0, "clips": 0, "frames": 0})
        split["shards"] += 1
        split["clips"] += entry.clips
        split["frames"] += entry.frames
    counts = count_by_code(ledger)
    write_dataset(
        work.out / DATASET_NAME,
        entries,
        dataset=work.corpus,
        codec=params.codec,
        size=size,
        n_mels=described["mels"]["n_mels"],
        splits=splits,
        files_found=len(ledger),
        clips_kept=counts.pop(OK),
        dropped=counts,
        params=described,
        tools=versions(*LIBRARIES),
    )
    for name in before - {entry.name for entry in entries}:
        (work.out / name).unlink(missing_ok=True)


def _old_shards(out: Path) -> set[str]:
    """Shards of the dataset that is there now; other files in the folder are none of our business."""
    try:
        return {entry.name for entry in shard_entries(read_dataset(out), out / DATASET_NAME)}
    except ShardError:
        return set()
