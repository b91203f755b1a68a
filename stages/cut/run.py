"""Beside stage 1, optional: cut files of any length into clips of one speaking face each, in sync.

Every file becomes spans that follow each other from its first frame to its last. Each has a row in the
ledger: as a clip, or with the reason why it is none. A file is worked on in chunks of a minute, by many
workers. What is seen and heard in them is measured once; spans, and the thresholds on them, are computed from
that.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.ledger import (
    DROPPED,
    FAILED,
    OK,
    SPAN_FIELDS,
    STAGE_RULES,
    SYNCNET_FIELDS,
    build_ledger,
    check_clips,
    read_ledger,
    write_ledger,
)
from shards.names import MAX_ID_BYTES
from shards.schema import VIDEO_FPS
from shards.table import Row, Rows
from stages import clips, landmarks, speech
from stages.cut.blends import add_same_pictures, find_stills
from stages.cut.near_duplicates import find_near_duplicates
from stages.cut.params import CutParams
from stages.cut.pictures import MeshReader, read_seen_frames, see_chunk
from stages.cut.second_opinion import LIBRARIES, score_span
from stages.cut.shots import find_shots
from stages.cut.sound import hear_chunk
from stages.cut.spans import Sound, Span, find_spans, find_unreadable
from stages.cut.speaker import pool_lags, score_curve
from stages.cut.thresholds import judge_clip
from stages.engine.cache import digest, entry_path, link_or_copy, load_entry, read_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.per_clip import ClipTask, run_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work
from stages.landmarks import LandmarksParams
from stages.media import weights
from stages.media.faces import ENGINE_PACKAGES, check_engine, interpolate_gaps
from stages.metrics import sync
from stages.speech import SpeechParams

STAGE = "cut"
# Of the rules by which spans are found, too. 2: dissolves and stills; 3: what changes slowly is none
VERSION = 3
HASH_LETTERS = 8
# Part of the format: what is heard in a frame depends a little on where its chunk begins.
CHUNK_FRAMES = 60 * VIDEO_FPS


@dataclass(frozen=True, slots=True)
class CutSettings:
    """The sections of params.yaml that decide how files are cut."""

    cut: CutParams
    landmarks: LandmarksParams
    speech: SpeechParams


@dataclass(frozen=True, slots=True)
class Chunk:
    """Successive frames of a file that are worked on at once, and the cache entries of what is measured."""

    first: int
    n_frames: int
    pictures: Path
    sound: Path


@dataclass(frozen=True, slots=True)
class FileTask:
    """A file whose spans are not in the cache."""

    path: str  # below the raw folder
    n_frames: int
    chunks: tuple[Chunk, ...]
    failures: Mapping[Path, Outcome]  # of entries that could not be made
    entry: Path
    cache: Path
    cut: CutParams
    max_gap_frames: int


def run(work: Work, parts: tuple[()], params: CutSettings, context: Context) -> Report:
    """Write ``cut/ledger.parquet``: a row for every span of every file. ``parts`` are planned from it."""
    report = Report(STAGE)
    rows = clips.read_clips(work)
    if not params.cut.enabled:
        remove_spans(work)
        write_ledger(work.ledger, rows)
        work.stage_folder(STAGE).mkdir(parents=True, exist_ok=True)  # an out of dvc.yaml
        report.count_rows(rows)
        return report
    # Looked for now: not after hours of work.
    syncnet = weights.find_local(weights.NETWORKS["syncnet"]) if params.cut.with_syncnet else None
    files = [row for row in rows if row["status"] == OK]
    chunks = {row["path"]: _plan_chunks(work, row, params) for row in files}
    failures = _measure_chunks(work, files, chunks, params, context, report)
    tasks = [_plan_file(work, row, chunks[row["path"]], failures, params) for row in files]
    missing = list({task.entry: task for task in tasks if not _is_complete(task)}.values())
    for _ in context.map_tasks(
        cut_file, missing, label=f"{STAGE}: files", sizes=[task.n_frames for task in missing]
    ):
        pass
    opinions = {} if syncnet is None else _ask_syncnet(work, files, tasks, syncnet, context, report)
    ledger = _make_ledger(rows, {task.path: task for task in tasks}, opinions, params.cut)
    _find_source(work).unlink(missing_ok=True)  # until all is there
    write_ledger(find_ledger(work), ledger)
    write_ledger(work.ledger, ledger)
    _link_points(work, ledger, {task.path: task for task in tasks})
    with write_atomically(_find_source(work)) as partial:
        partial.write_text(_describe_source(work, params) + "\n")
    report.count_rows(ledger)
    report.n_left_out = count_left_out(ledger)
    report.frames = sum(row["frames"] for row in ledger if row["status"] == OK)
    return report


def count_left_out(ledger: Rows) -> int:
    """The number of spans that are no clips by the rules of this stage; what failed is lost."""
    return sum(
        row["stage"] == STAGE and row["status"] == DROPPED for row in ledger.select_columns("stage", "status")
    )


def find_ledger(work: Work) -> Path:
    """Where the rows of the spans are."""
    return work.stage_folder(STAGE) / clips.LEDGER_NAME


def check_uncut(work: Work) -> None:
    """Raise StageError when the files were cut."""
    if (path := find_ledger(work)).is_file():
        raise StageError(
            f"{path}: the files were cut, so every later stage needs --cut; or run `pipeline clips` again"
        )


def remove_spans(work: Work) -> None:
    """Forget that the files were cut."""
    for path in (_find_source(work), find_ledger(work)):
        path.unlink(missing_ok=True)
    shutil.rmtree(work.stage_folder(STAGE) / landmarks.SPAN_FOLDER, ignore_errors=True)


def read_spans(work: Work, params: CutSettings) -> Rows:
    """The rows that this stage wrote. Raises StageError unless it ran on these files and with ``params``."""
    path, again = find_ledger(work), f"`pipeline cut --dataset {work.corpus} --cut`"
    if not path.is_file():
        raise StageError(f"{path}: not there; run {again} first")
    source = _find_source(work)
    is_known = source.is_file() and clips.find_ledger(work).is_file()
    if not is_known or source.read_text().strip() != _describe_source(work, params):
        raise StageError(f"{path}: was made from other files or with other params; run {again} again")
    return check_clips(read_ledger(path), f"{path}", STAGE_RULES)


def _describe_source(work: Work, params: CutSettings) -> str:
    """A digest of what the rows of the spans are made from: the rows of the files, and params."""
    faces = params.landmarks
    return digest(
        STAGE,
        VERSION,
        file_sha256(clips.find_ledger(work)),
        params.cut.describe_dataset(),
        [faces.max_faces, faces.max_gap_frames, faces.engine],
    )


def _find_source(work: Work) -> Path:
    """Where the digest of what the rows are made from is."""
    return work.stage_folder(STAGE) / "source.txt"


def _plan_chunks(work: Work, row: Row, params: CutSettings) -> tuple[Chunk, ...]:
    """The chunks of a file. Their keys cover all that decides what is measured."""
    pictures_key = digest(
        STAGE,
        VERSION,
        row["sha256"],
        row["video_start"],
        [params.landmarks.max_faces, params.landmarks.engine, weights.LANDMARKER.sha256],
        versions(ENGINE_PACKAGES[params.landmarks.engine], "opencv-python", "av", "scenedetect"),
    )
    sound_key = digest(
        STAGE,
        VERSION,
        row["sha256"],
        row["video_start"],
        [weights.SPEECH_ENCODER.sha256, weights.VOICE_DETECTOR.sha256, file_sha256(sync.WEIGHTS)],
        versions(*speech.LIBRARIES),
    )
    return tuple(
        Chunk(
            first,
            n_frames := min(CHUNK_FRAMES, row["frames"] - first),
            entry_path(work.cache, f"{STAGE}-pictures", digest(pictures_key, first, n_frames), ".npz"),
            entry_path(work.cache, f"{STAGE}-sound", digest(sound_key, first, n_frames), ".npz"),
        )
        for first in range(0, row["frames"], CHUNK_FRAMES)
    )


def _measure_chunks(
    work: Work,
    files: Sequence[Row],
    chunks: Mapping[str, tuple[Chunk, ...]],
    params: CutSettings,
    context: Context,
    report: Report,
) -> dict[Path, Outcome]:
    """Make the entries that are missing. Returns what failed, by entry."""
    places = [(row, chunk) for row in files for chunk in chunks[row["path"]]]
    # By entry: files of equal bytes share them.
    unseen = {chunk.pictures: (row, chunk) for row, chunk in places if not chunk.pictures.is_file()}
    unheard = {chunk.sound: (row, chunk) for row, chunk in places if not chunk.sound.is_file()}
    failures: dict[Path, Outcome] = {}

    def measure(
        what: str,
        missing: Mapping[Path, tuple[Row, Chunk]],
        function: Callable[..., Outcome],
        **arguments: Any,
    ) -> None:
        tasks = []
        for entry, (row, chunk) in missing.items():
            job = ClipJob(
                function,
                path=work.raw.resolve() / row["path"],
                start=row["video_start"],
                first=chunk.first,
                n_frames=chunk.n_frames,
                entry=entry,
                **arguments,
            )
            # All before it may have to be decoded, where nothing can be sought.
            seconds = (chunk.first + chunk.n_frames) / VIDEO_FPS
            tasks.append(ClipTask(f"{entry}", entry, job, context.limits, seconds))
        sizes = [chunk.n_frames for _, chunk in missing.values()]
        failures.update(_run_tasks(tasks, sizes, what, context))

    if unseen:
        check_engine(params.landmarks.engine)
        model = weights.find(weights.LANDMARKER, params.landmarks.model)
        measure("pictures", unseen, see_chunk, params=params.landmarks, model=model)
    if unheard:
        encoder = weights.find(weights.SPEECH_ENCODER, params.speech.model)
        voice = weights.find(weights.VOICE_DETECTOR, params.cut.voice_model)
        measure("sound", unheard, hear_chunk, encoder=encoder, voice=voice)
    report.clips_computed = len(unseen) + len(unheard)
    return failures


def _run_tasks(
    tasks: Sequence[ClipTask], sizes: Sequence[int], what: str, context: Context
) -> dict[Path, Outcome]:
    """Make the entries of the tasks, which have ``sizes`` frames. Returns what failed, by entry."""
    outcomes = context.map_tasks(run_clip, tasks, label=f"{STAGE}: {what}", sizes=sizes)
    return {Path(entry): outcome for entry, outcome in outcomes if outcome.status == FAILED}


def _ask_syncnet(
    work: Work,
    files: Sequence[Row],
    tasks: Sequence[FileTask],
    model: Path,
    context: Context,
    report: Report,
) -> dict[tuple[str, int], Outcome]:
    """What SyncNet says of each span that may be a clip, by its file's path and its first frame.

    No threshold is asked first, so that another one measures nothing again.
    """
    settings = digest(STAGE, VERSION, weights.NETWORKS["syncnet"].sha256, versions(*LIBRARIES))
    entries: dict[tuple[str, int], Path] = {}
    missing: dict[Path, tuple[ClipTask, int]] = {}  # by entry: files of equal bytes share them
    for row, task in zip(files, tasks, strict=True):
        for span in read_entry(task.entry)[0].facts["spans"]:
            if "code" in span or not span["has_points"]:
                continue
            first, n_frames = span["first"], span["last"] - span["first"]
            points = _find_points(task, first)
            key = digest(settings, row["sha256"], row["video_start"], first, n_frames, file_sha256(points))
            entry = entry_path(work.cache, f"{STAGE}-syncnet", key, ".npz")
            entries[row["path"], first] = entry
            if entry not in missing and load_entry(entry) is None:
                job = ClipJob(
                    score_span,
                    path=work.raw.resolve() / row["path"],
                    start=row["video_start"],
                    first=first,
                    n_frames=n_frames,
                    points=points,
                    model=model,
                    entry=entry,
                )
                seconds = span["last"] / VIDEO_FPS
                missing[entry] = ClipTask(f"{entry}", entry, job, context.limits, seconds), n_frames
    failures = _run_tasks(
        [task for task, _ in missing.values()], [n for _, n in missing.values()], "SyncNet", context
    )
    report.clips_computed += len(missing)
    return {
        place: failures[entry] if entry in failures else read_entry(entry)[0]
        for place, entry in entries.items()
    }


def _plan_file(
    work: Work,
    row: Row,
    chunks: tuple[Chunk, ...],
    failures: Mapping[Path, Outcome],
    params: CutSettings,
) -> FileTask:
    """The task that finds the spans of a file; what failed is tried again in the next run."""
    own = {
        entry: failures[entry]
        for chunk in chunks
        for entry in (chunk.pictures, chunk.sound)
        if entry in failures
    }
    key = digest(
        STAGE,
        VERSION,
        [[chunk.pictures.stem, chunk.sound.stem] for chunk in chunks],
        params.cut.describe_spans(),
        params.landmarks.max_gap_frames,
        sorted(f"{entry.stem}" for entry in own),
        versions("numpy"),
    )
    return FileTask(
        row["path"],
        row["frames"],
        chunks,
        own,
        entry_path(work.cache, STAGE, key, ".npz"),
        work.cache,
        params.cut,
        params.landmarks.max_gap_frames,
    )


def _is_complete(task: FileTask) -> bool:
    """Whether the spans of a file and the points of all its clips are in the cache."""
    loaded = load_entry(task.entry)
    return loaded is not None and all(
        _find_points(task, span["first"]).is_file() for span in loaded[0].facts["spans"] if span["has_points"]
    )


def cut_file(task: FileTask) -> str:
    """Find the spans of a file from what its chunks' entries say; save them, and the points of its clips."""
    unreadable: dict[int, tuple[int, Outcome]] = {}
    sound = Sound.make_silent(task.n_frames)
    contents = np.zeros(task.n_frames, np.float32)
    same_since = np.arange(task.n_frames)  # which frame shows this frame's picture first
    blends: list[tuple[int, int]] = []
    entries: list[Path | None] = []
    for chunk in task.chunks:
        end = chunk.first + chunk.n_frames
        loaded = [_load_measured(task, entry) for entry in (chunk.pictures, chunk.sound)]
        failure = next((outcome for outcome, _ in loaded if outcome.status != OK), None)
        if failure is not None:
            unreadable[chunk.first] = end, failure
            entries.append(None)
            continue
        (_, seen), (_, heard) = loaded
        contents[chunk.first : end] = seen["contents"]
        add_same_pictures(same_since, chunk.first, seen["same"])
        blends += [(int(begin) + chunk.first, int(last) + chunk.first) for begin, last in seen["blends"]]
        sound.add_chunk(chunk.first, heard)
        entries.append(chunk.pictures)
    stills = find_stills(same_since, task.cut.max_still_seconds)
    codes = [""] * task.n_frames  # why the picture of a frame is in no clip
    for code, stretches in (("too_short", blends), ("still", stills)):
        for begin, last in stretches:
            stretch = range(task.n_frames)[max(begin, 0) : last]
            codes[stretch.start : stretch.stop] = [code] * len(stretch)
    shots = [first for first in find_shots(contents) if find_unreadable(unreadable, first) is None]
    changes = [k for k in range(1, task.n_frames) if codes[k] != codes[k - 1]]
    ends = [last for last, _ in unreadable.values()]
    shots = sorted({*shots, *changes, *unreadable, *ends} - {task.n_frames})
    unusable = {first: codes[first] for first in shots if codes[first]}
    frames = read_seen_frames(entries, [chunk.n_frames for chunk in task.chunks])
    spans = list(find_spans(frames, shots, sound, task.cut, task.max_gap_frames, unreadable, unusable))
    meshes = MeshReader(entries)
    for span in spans:
        if span.faces:
            points = interpolate_gaps([None if place is None else meshes[place] for place in span.faces])
            is_found = np.array([place is not None for place in span.faces])
            arrays = {"points": points, "found": is_found, "jumps": np.zeros(len(span), bool)}
            outcome = Outcome(notes=tuple(landmarks.describe_gaps(is_found)))
            save_entry(_find_points(task, span.first), outcome, arrays)
    facts = {"spans": list(_describe_spans(spans))}
    save_entry(task.entry, Outcome(facts=facts), {"prints": sound.prints})
    return task.path


def _load_measured(task: FileTask, entry: Path) -> tuple[Outcome, dict[str, NDArray[Any]]]:
    """What was measured in a chunk, or why it was not. Raises StageError when its entry is gone."""
    failure = task.failures.get(entry)
    return read_entry(entry) if failure is None else (failure, {})


def _find_points(task: FileTask, first: int) -> Path:
    """The entry of the points of the clip that begins at frame ``first``."""
    return entry_path(task.cache, f"{STAGE}-points", digest(task.entry.stem, first), ".npz")


def _describe_spans(spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """Spans as JSON, with the columns of the ledger that thresholds judge by."""
    pooled = iter(pool_lags([span.curve for span in spans if span.curve is not None]))
    for span in spans:
        row: dict[str, Any] = {"first": span.first, "last": span.last, "track": span.track, **span.scores}
        row["has_points"] = bool(span.faces)
        if span.curve is not None:
            score = score_curve(span.curve, next(pooled))
            row |= {"sync_confidence": round(float(score.confidence), 3), "lag_frames": score.lag}
        if span.code:
            row |= {"code": span.code, "reason": span.reason, "status": span.status}
        yield row


def _make_ledger(
    rows: Rows,
    tasks: Mapping[str, FileTask],
    opinions: Mapping[tuple[str, int], Outcome],
    params: CutParams,
) -> Rows:
    """A row for every span of the files that were cut, and one for every other file."""
    ledger: list[Row] = []
    prints: dict[str, NDArray[np.uint32]] = {}
    for row in rows:
        task = tasks.get(row["path"])
        if task is None:
            ledger.append(row | dict.fromkeys(_list_columns(params)) | _describe_whole(row))
            continue
        outcome, arrays = read_entry(task.entry)
        for span in outcome.facts["spans"]:
            opinion = opinions.get((row["path"], span["first"]), Outcome())
            clip = make_span_row(row, span | opinion.facts, params)
            ledger.append(clip)
            if clip["status"] == OK and opinion.status == FAILED:
                _leave_out(clip, opinion)
            elif opinion.status == DROPPED:
                clip["notes"].append(f"SyncNet has no opinion: {opinion.reason}")
            if clip["status"] == OK and clip["clip_id"] in prints:  # of ids that were shortened
                drop = Drop("duplicate", f"{clip['clip_id']!r} is another clip")
                _leave_out(clip, Outcome.from_drop(drop))
            if clip["status"] == OK:
                prints[clip["clip_id"]] = arrays["prints"][span["first"] : span["last"]]
    copies = find_near_duplicates(prints)
    for clip in ledger:
        if clip["status"] == OK and clip["clip_id"] in copies:
            clip["near_duplicate"] = copies[clip["clip_id"]]
            if (judged := judge_clip(clip, params)) is not None:
                _leave_out(clip, Outcome.from_drop(judged))
    return build_ledger(ledger)


def _leave_out(clip: Row, outcome: Outcome) -> None:
    """Say why a span is no clip after all."""
    clip |= outcome.to_columns() | {"sound_shift": None}


def _list_columns(params: CutParams) -> list[str]:
    """The columns that the ledger has beside those of the first stage."""
    return [*SPAN_FIELDS, *(SYNCNET_FIELDS if params.with_syncnet else ())]


def _describe_whole(row: Row) -> Row:
    """The columns of spans of a file that was not cut."""
    length = row["video_seconds"]
    return {"start_seconds": None if length is None else 0.0, "end_seconds": length, "stage": row["stage"]}


def make_span_row(row: Row, span: Mapping[str, Any], params: CutParams) -> Row:
    """The ledger row of a span, from its file's row and what ``cut_file`` and SyncNet say of it."""
    first, last = span["first"], span["last"]
    start, length = first / VIDEO_FPS, (last - first) / VIDEO_FPS
    clip = row | {name: span.get(name) for name in _list_columns(params)}
    clip |= {
        "stage": STAGE,
        "clip_id": make_clip_id(row["clip_id"], first, last),
        "start_seconds": start,
        "end_seconds": last / VIDEO_FPS,
        "video_start": row["video_start"] + start,
        "video_seconds": length,
        **_find_audio_span(row, start, length),
        "frames": last - first,
        "notes": list(row["notes"]),
    }
    if "code" in span:
        return clip | {name: span[name] for name in ("status", "code", "reason")}
    drop = judge_clip(clip, params)
    if drop is not None:
        return clip | clips.make_drop_columns(drop)
    lag = span["lag_frames"] if params.correct_lag else 0
    clip["sound_shift"] = -lag / VIDEO_FPS
    if lag:
        frames = "frame" if abs(lag) == 1 else "frames"
        clip["notes"].append(f"its sound is read {abs(lag)} {frames} {'earlier' if lag > 0 else 'later'}")
    return clip


def _find_audio_span(row: Row, start: float, length: float) -> Row:
    """Where the sound of a span begins and how long it is: what the file has of it."""
    begin = max(row["video_start"] + start, row["audio_start"])
    end = min(row["video_start"] + start + length, row["audio_start"] + row["audio_seconds"])
    return {"audio_start": begin, "audio_seconds": max(0.0, end - begin)}


def make_clip_id(file_id: str, first: int, last: int) -> str:
    """``film_000310-000395``: the id of the frames 310 to 394 of a file."""
    frames = f"_{first:06d}-{last:06d}"
    if len(file_id.encode()) + len(frames) > MAX_ID_BYTES:
        name = hashlib.sha256(file_id.encode()).hexdigest()[:HASH_LETTERS]
        room = MAX_ID_BYTES - len(frames) - len(name) - 1
        file_id = f"{file_id.encode()[:room].decode(errors='ignore')}-{name}"
    return file_id + frames


def _link_points(work: Work, ledger: Rows, tasks: Mapping[str, FileTask]) -> None:
    """Put the points of every clip where the stage of landmarks finds them; remove those of other clips."""
    kept = set()
    for row in ledger:
        if row["status"] == OK:
            path = landmarks.find_span_points(work, row["clip_id"])
            source = _find_points(tasks[row["path"]], round(row["start_seconds"] * VIDEO_FPS))
            if not (path.exists() and path.samefile(source)):
                link_or_copy(source, path)
            kept.add(path.name)
    for path in (work.stage_folder(STAGE) / landmarks.SPAN_FOLDER).glob("*.npz"):
        if path.name not in kept:
            path.unlink()
