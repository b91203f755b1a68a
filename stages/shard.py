"""Stage 5: pack clips into shards, one shard per part, and write the tables that make them a dataset."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.atomic import make_scratch_folder, write_atomically
from shards.checksum import file_sha256
from shards.codec import Codec, encode_frame, write_frames
from shards.documents import parse_object
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    ShardEntry,
    check_index_rows,
    parse_shard_entries,
    parse_shard_entry,
    read_manifest,
    write_index,
    write_manifest,
)
from shards.ledger import OK, count_by_code, find_decoded_seconds, is_span, write_ledger
from shards.params import describe_mismatch
from shards.publish import PUBLISHED
from shards.schema import MELS_PER_FRAME, SCHEMA_VERSION, SPEECH_PER_FRAME, ShardError
from shards.sources import NOT_STATED, DataSource
from shards.spans import count_files
from shards.table import Row, Rows
from shards.writer import PackedClip, describe_shard, make_shard_name, write_tar
from stages import align, landmarks, mels, speech
from stages.corpora import get_corpus
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, link_or_copy, read_version, versions
from stages.engine.outcome import Outcome, StageError
from stages.engine.parts import (
    Part,
    PartTask,
    list_columns,
    read_part,
    read_part_key,
    update_parts,
    write_part,
)
from stages.engine.per_clip import read_array, read_current_key, read_stage_key
from stages.engine.sandbox import ClipJob, LimitParams
from stages.engine.stage import Context, Report, Work
from stages.media.crops import MAX_SUPERSAMPLE, compute_supersample, crop_frames
from stages.media.faces import ENGINE_PACKAGES, Engine
from stages.media.video import ClockFrame, read_frames_at_25fps

STAGE = "shard"
VERSION = 2  # 2: square pixels, mirrored pictures
COLUMNS = [
    pa.field("entry", pa.string()),  # JSON of the part's ShardEntry, the same in every row
    pa.field("index", pa.string()),  # JSON of the clip's row of index.parquet
]
LIBRARIES = ("av", "librosa", "numpy", "opencv-python", "pillow")  # and that of the engine
# What a sample's json and the key of its part take from the ledger; and of a span of a file.
SPAN_INFO = ("start_seconds", "end_seconds", "track", "sync_confidence", "lag_frames", "sound_shift")
IDENTITY = ("clip_id", "corpus", "speaker", "sentence", "emotion", "level", "split", "frames")


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ShardParams:
    """How frames are encoded."""

    codec: Codec = "webp"  # webp (lossless), jpeg (q95 4:4:4), png or raw
    max_supersample: int = Field(default=MAX_SUPERSAMPLE, ge=1, le=32)


@dataclass(frozen=True, slots=True)
class PackInputs:
    """What a worker needs to write one shard."""

    work: Work
    size: int  # px of a crop's side
    params: ShardParams
    limits: LimitParams
    tools: dict[str, str]
    with_speech: bool = False  # whether clips have the member speech.npy


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A shard on disk, and its clips' rows of the index."""

    entry: ShardEntry
    index: Rows


def run(work: Work, parts: Sequence[Part], params: ShardParams, context: Context) -> Report:
    """Write ``work.out/*.tar``, one shard per part that has usable clips. ``finish_dataset`` comes after."""
    report = Report(STAGE)
    tasks = plan_tasks(work, parts, params, context)
    # Every shard is hashed, as every raw file is: a disk that fails changes no size and no time. Hashing
    # releases the GIL, so threads do it at the disk's speed.
    with ThreadPoolExecutor(context.workers) as pool:
        written = {
            task.path for task, is_there in zip(tasks, pool.map(_is_written, tasks), strict=True) if is_there
        }
    update_parts(
        work.stage_folder(STAGE),
        tasks,
        pack_part,
        context.map_tasks,
        report,
        is_current=lambda task: task.path in written,
    )
    report.frames = sum(shard.entry.frames for shard in read_packed(work, parts))
    return report


def plan_tasks(work: Work, parts: Sequence[Part], params: ShardParams, context: Context) -> list[PartTask]:
    """One task per shard, with the key of everything that goes into it."""
    tools = versions(*list_libraries(context.dataset_params["landmarks"]["engine"]))
    size: int = context.dataset_params["align"]["size"]
    with_speech = has_speech_encoder(context.dataset_params)
    inputs = PackInputs(work, size, params, context.limits, tools, with_speech)
    tasks = []
    for part in parts:
        keys = _read_stage_keys(work, part, context.dataset_params, with_speech=with_speech)
        if keys[1] != align.make_part_key(part, context.dataset_params["align"], keys[0]):
            raise StageError(  # its matrices with crops of another size would show a part of the face
                f"{work.part_path(align.STAGE, part.name)}: was made with another align.size than {size} or "
                f"other params; run `pipeline align --dataset {work.corpus}` with the same options first"
            )
        columns = (*IDENTITY, "path", "sha256", "notes")
        metadata = [[row[name] for name in columns] + describe_span(row) for row in part.rows]
        key = digest(STAGE, VERSION, SCHEMA_VERSION, params, size, tools, keys, metadata)
        tasks.append(PartTask(part, work.part_path(STAGE, part.name), key, inputs))
    return tasks


def list_libraries(engine: Engine) -> list[str]:
    """The packages whose versions decide a shard's bytes; ``engine`` found the faces."""
    return sorted([*LIBRARIES, ENGINE_PACKAGES[engine]])


def has_speech_encoder(dataset_params: Mapping[str, Any]) -> bool:
    """Whether the params of a dataset name an encoder of speech, so that its clips have speech features."""
    section: Mapping[str, Any] = dataset_params.get("speech") or {}
    return bool(section.get("encoder", speech.NO_ENCODER) != speech.NO_ENCODER)


def _read_stage_keys(
    work: Work, part: Part, dataset_params: Mapping[str, Any], *, with_speech: bool
) -> list[str]:
    """The keys of a part's landmarks, matrices, mels and speech features, which are as they are planned now.

    Those of the matrices may be of other params. Raises StageError, which says what to run.
    """
    read_key = functools.partial(read_current_key, work=work, part=part)
    faces = landmarks.LandmarksParams(**dataset_params["landmarks"])
    keys = [
        read_key(
            landmarks.STAGE,
            params_digest=landmarks.make_params_digest(faces),
            hash_source=landmarks.make_source_hasher(work),
        ),
        read_stage_key(align.STAGE, work, part),
        read_key(mels.STAGE, params_digest=mels.make_params_digest(dataset_params["mels"])),
    ]
    if with_speech:
        encoder = dataset_params["speech"]["encoder"]
        keys.append(read_key(speech.STAGE, params_digest=speech.make_params_digest(encoder)))
    return keys


def pack_part(task: PartTask) -> None:
    """Write one part's shard, or link it from the cache."""
    inputs: PackInputs = task.inputs
    cached_tar = entry_path(inputs.work.cache, STAGE, task.key, ".tar")
    cached_part = entry_path(inputs.work.cache, STAGE, task.key, ".parquet")
    is_planned, entry = _read_planned(cached_part, task)
    # The cached tar is a hard link of the one in --out, which may have been damaged since.
    is_intact = entry is None or (cached_tar.is_file() and file_sha256(cached_tar) == entry.sha256)
    if not (is_planned and is_intact):
        entry = _write_to_cache(task, inputs, cached_tar, cached_part)
    if entry is not None:
        link_or_copy(cached_tar, inputs.work.out / entry.name)
    link_or_copy(cached_part, task.path)


def describe_span(row: Row) -> list[Any]:
    """What a sample's json says of a span of a file; nothing for a file that is one clip."""
    return [row[name] for name in ("video_start", *SPAN_INFO)] if is_span(row) else []


def _write_to_cache(
    task: PartTask, inputs: PackInputs, cached_tar: Path, cached_part: Path
) -> ShardEntry | None:
    """Encode the clips of a part; write its tar and its rows to the cache."""
    outcomes: dict[str, Outcome] = {}
    with (
        write_atomically(cached_tar) as partial,
        make_scratch_folder(inputs.work.cache) as scratch,
    ):
        index_rows = write_tar(partial, _pack_clips(task.part, inputs, scratch / "frames", outcomes))
        entry = None
        if index_rows:
            entry = describe_shard(partial, task.part.split, task.part.number, index_rows)
    entry_json = json.dumps(asdict(entry)) if entry else None
    index_json = {row["clip_id"]: json.dumps(row) for row in index_rows}
    rows = [
        (clip_id, outcome, {"entry": entry_json, "index": index_json.get(clip_id)})
        for clip_id, outcome in outcomes.items()
    ]
    failures = sorted(clip_id for clip_id, outcome in outcomes.items() if outcome.status != OK)
    # With failures the key differs from the planned one, so that the next run tries them again.
    write_part(cached_part, digest(task.key, failures) if failures else task.key, COLUMNS, rows)
    return entry


def _pack_clips(
    part: Part, inputs: PackInputs, blob: Path, outcomes: dict[str, Outcome]
) -> Iterator[PackedClip]:
    """The usable clips of a part, in its order, one at a time. Fills ``outcomes`` as it proceeds.

    ``blob`` is a scratch file for the encoded frames of one clip.
    """
    work = inputs.work
    align_path = work.part_path(align.STAGE, part.name)
    align_rows = read_part(align_path, list_columns(align.COLUMNS))
    mels_rows = read_part(work.part_path(mels.STAGE, part.name), list_columns(mels.COLUMNS))
    landmarks_rows = read_part(work.part_path(landmarks.STAGE, part.name), list_columns(["found"]))
    earlier_rows = {landmarks.STAGE: landmarks_rows, align.STAGE: align_rows, mels.STAGE: mels_rows}
    speech_rows: dict[str, Row] = {}
    if inputs.with_speech:
        speech_rows = read_part(work.part_path(speech.STAGE, part.name), list_columns(speech.COLUMNS))
        earlier_rows[speech.STAGE] = speech_rows
    for row in part.rows:
        clip_id = row["clip_id"]
        if not _is_usable(clip_id, earlier_rows, part, work):
            continue  # an earlier stage has dropped it and given the reason
        job = ClipJob(
            encode_crops_of_file,
            path=work.raw.resolve() / row["path"],
            start=row["video_start"],
            align_part=align_path,
            clip_id=clip_id,
            size=inputs.size,
            params=inputs.params,
            blob=blob,
        )
        outcome = sandbox.run(job, inputs.limits, video_seconds=find_decoded_seconds(row))
        outcomes[clip_id] = Outcome(outcome.status, outcome.code, outcome.reason, outcome.notes)
        if outcome.status != OK:
            continue
        is_found = read_array(landmarks_rows[clip_id], "found", landmarks.COLUMNS, (-1,))
        notes = [*row["notes"], *landmarks_rows[clip_id]["notes"], *mels_rows[clip_id]["notes"]]
        features = None
        if inputs.with_speech:
            notes += [note for note in speech_rows[clip_id]["notes"] if note not in notes]
            shape = (SPEECH_PER_FRAME * row["frames"], -1)
            features = read_array(speech_rows[clip_id], "speech", speech.COLUMNS, shape)
        info = make_info(
            row,
            size=inputs.size,
            codec=inputs.params.codec,
            interpolated_frames=np.flatnonzero(~is_found).tolist(),
            notes=notes,
            tools=inputs.tools,
            frame_facts=outcome.facts,
        )
        yield PackedClip(
            clip_id,
            blob.read_bytes(),
            read_array(align_rows[clip_id], "boxes", align.COLUMNS, (-1, 4)),
            read_array(mels_rows[clip_id], "mels", mels.COLUMNS, (MELS_PER_FRAME * row["frames"], -1)),
            read_array(align_rows[clip_id], "affine", align.COLUMNS, (-1, 2, 3)),
            info,
            features,
        )


def _is_usable(clip_id: str, earlier_rows: Mapping[str, Mapping[str, Row]], part: Part, work: Work) -> bool:
    """Whether all earlier stages, in their order, accept a clip. Raises StageError when one has no row of it.

    The one after a stage that drops a clip need not have a row.
    """
    for stage, rows in earlier_rows.items():
        if clip_id not in rows:
            raise StageError(
                f"{work.part_path(stage, part.name)}: has no row of {clip_id}; remove the file and run "
                f"`pipeline {stage} --dataset {work.corpus}` again"
            )
        if rows[clip_id]["status"] != OK:
            return False
    return True


def make_info(
    row: Row,
    *,
    size: int,
    codec: Codec,
    interpolated_frames: list[int],
    notes: list[str],
    tools: dict[str, str],
    frame_facts: Mapping[str, Any],
) -> dict[str, Any]:
    """A sample's json member, from its ledger row and what the stages found out (docs/shards.md)."""
    return {
        "schema_version": SCHEMA_VERSION,
        **{name: row[name] for name in IDENTITY},
        "source": row["path"],
        "source_sha256": row["sha256"],
        "source_fps": round(row["fps"], 6),
        "source_size": [row["width"], row["height"]],
        "source_start": row["video_start"],
        **({name: row[name] for name in SPAN_INFO} if is_span(row) else {}),
        "size": size,
        "codec": codec,
        "interpolated_frames": interpolated_frames,
        "notes": notes,
        "tools": tools,
        **frame_facts,
    }


def encode_crops_of_file(
    path: Path, start: float, align_part: Path, clip_id: str, size: int, params: ShardParams, blob: Path
) -> Outcome:
    """Crop and encode a video's frames to the file ``blob``. Runs in the sandbox."""
    cv2.setNumThreads(1)
    affines = _read_affines(align_part, read_version(align_part))
    matrices = read_array(affines[clip_id], "affine", align.COLUMNS, (-1, 2, 3))
    supersample = compute_supersample(matrices, params.max_supersample)
    source_seconds: list[float] = []

    def note_times(frames: Iterator[ClockFrame]) -> Iterator[ClockFrame]:
        for frame in frames:
            source_seconds.append(round(frame.seconds, 6))
            yield frame

    frames = note_times(read_frames_at_25fps(path, start, len(matrices)))
    encoded = (encode_frame(crop, params.codec) for crop in crop_frames(frames, matrices, size, supersample))
    with blob.open("wb") as file:  # one by one: the frames of a long clip do not fit in memory
        offsets = write_frames(file, encoded)
    return Outcome(facts={"frame_offsets": offsets, "source_seconds": source_seconds})


@functools.lru_cache(maxsize=1)
def _read_affines(align_part: Path, _: tuple[int, ...]) -> dict[str, Row]:
    """Rows of a part of some version; its clips are encoded one after the other."""
    return read_part(align_part, list_columns(["affine"]))


def _read_planned(path: Path, task: PartTask) -> tuple[bool, ShardEntry | None]:
    """Whether a file is the planned one of a part and not damaged, and the shard that its rows describe."""
    if read_part_key(path) != task.key:
        return False, None
    try:
        row = next((row for row in read_part(path, COLUMNS).values() if row["entry"]), None)
        entry = None if row is None else parse_shard_entry(row["entry"], f"{path}")
    except (StageError, ShardError):
        return False, None
    return entry is None or _is_named_for(entry, task.part), entry


def _is_written(task: PartTask) -> bool:
    """Whether a part and its shard are on disk as planned, with the bytes that the part says."""
    is_planned, entry = _read_planned(task.path, task)
    if not is_planned or entry is None:
        return is_planned
    inputs: PackInputs = task.inputs
    path = inputs.work.out / entry.name
    return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256


def _is_named_for(entry: ShardEntry, part: Part) -> bool:
    name = make_shard_name(part.split, part.number, entry.sha256)
    return (entry.name, entry.split) == (name, part.split)


def check_packed(packed: PackedShard, part: Part, path: str) -> None:
    """Raise ShardError unless this can be the shard of a part; ``path`` is the file that says it is."""
    entry, frames = packed.entry, packed.index.table["frames"].to_pylist()
    ids = packed.index.table["clip_id"].to_pylist()
    if (
        not _is_named_for(entry, part)
        or not set(ids) <= set(part.rows.table["clip_id"].to_pylist())
        or (entry.clips, entry.frames) != (len(set(ids)), sum(frames))
        or len(set(ids)) < len(ids)
    ):
        raise ShardError(
            f"{path}: describes {entry.name} of {entry.clips} clips, which is not the shard of {part.name}; "
            "remove the file and run again"
        )


def read_packed(work: Work, parts: Sequence[Part]) -> list[PackedShard]:
    """The shards of ``parts`` in ``work.out``. A part without usable clips has none."""
    shards = []
    for part in parts:
        path = work.part_path(STAGE, part.name)
        rows = [row for row in read_part(path, COLUMNS).values() if row["index"]]
        if rows:
            entry = parse_shard_entry(rows[0]["entry"] or "", f"{path}")
            index = check_index_rows(
                [parse_object(row["index"], f"{path}") for row in rows], entry.name, f"{path}"
            )
            packed = PackedShard(entry, index)
            check_packed(packed, part, f"{path}")
            shards.append(packed)
    return shards


def finish_dataset(
    work: Work,
    params: ShardParams,
    dataset_params: Mapping[str, Any],
    shards: Sequence[PackedShard],
    ledger: Rows,
    *,
    licence: str = "",
) -> None:
    """Write index, ledger and last ``dataset.json``; then remove the shards of an older dataset.

    ``dataset_params`` are the params of every stage; ``licence`` is that of the clips of a corpus that does
    not know its own.
    """
    old_names = _list_old_shards(work.out)
    shards = sorted(shards, key=lambda shard: shard.entry.name)
    entries = [shard.entry for shard in shards]
    write_index(work.out / INDEX_NAME, (shard.index for shard in shards))
    write_ledger(work.out / LEDGER_NAME, ledger)
    splits: dict[str, dict[str, int]] = {}
    for entry in entries:
        split = splits.setdefault(entry.split, {"shards": 0, "clips": 0, "frames": 0})
        split["shards"] += 1
        split["clips"] += entry.clips
        split["frames"] += entry.frames
    counts = count_by_code(ledger)
    write_manifest(
        work.out / DATASET_NAME,
        entries,
        dataset=work.corpus,
        sources=[make_source(work.corpus, licence).model_dump(exclude_none=True)],
        codec=params.codec,
        size=dataset_params["align"]["size"],
        n_mels=dataset_params["mels"]["n_mels"],
        splits=splits,
        files_found=count_files(ledger),
        clips_kept=counts.pop(OK),
        dropped=counts,
        params=dict(dataset_params),
        tools=versions(*list_libraries(dataset_params["landmarks"]["engine"])),
    )
    for name in old_names - {entry.name for entry in entries}:
        if PUBLISHED.fullmatch(name):  # a name that redub gives, whatever else a manifest lists
            (work.out / name).unlink(missing_ok=True)


def make_source(corpus_name: str, licence: str) -> DataSource:
    """The source of a corpus's clips; ``licence`` is what the user says of a corpus that does not know it.

    Raises StageError for a licence that is no line of text, and for one of a corpus that has its own.
    """
    corpus = get_corpus(corpus_name)
    if corpus.LICENCE and licence:
        raise StageError(f"--licence: the clips of {corpus_name} are {corpus.LICENCE}")
    if corpus.LICENCE:
        return DataSource(name=corpus_name, licence=corpus.LICENCE, citation=corpus.CITATION)
    try:
        citation = None if corpus_name == "folder" else corpus.CITATION
        return DataSource(name=corpus_name, licence=licence or NOT_STATED, citation=citation)
    except pydantic.ValidationError as err:
        raise StageError(f"--{describe_mismatch(err)}") from err


def _list_old_shards(out: Path) -> set[str]:
    """Shards of the dataset that is in the folder now. Other files there are not touched."""
    try:
        return {entry.name for entry in parse_shard_entries(read_manifest(out))}
    except ShardError:
        return set()
