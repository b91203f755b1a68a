"""Stage 1: find every file in the raw folder, read its facts, and say which can be used and why not."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pyarrow.compute as pc
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.checksum import file_sha256
from shards.ledger import (
    DROPPED,
    FAILED,
    OK,
    build_ledger,
    count_by_code,
    read_ledger,
    unusable,
    write_ledger,
)
from shards.table import Row, Rows
from stages import corpora
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Mapper, Outcome, Report, StageError, Work
from stages.engine.parts import Part, read_outcomes
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media import audio, video

STAGE = "clips"
VERSION = 1
LEDGER_NAME = "ledger.parquet"

# Files that lie beside clips in the corpora as they are published, and what computers leave behind.
SIDE_CARS = frozenset(
    ".align .csv .tsv .txt .md .json .yaml .yml .html .pdf .rst .bib .r .rmd .ipynb .py .sh .m .mat "  # noqa: SIM905
    ".wav .mp3 .flac .jpg .jpeg .png .gif .sha256 .md5 .srt .vtt .lab .textgrid .dvc .log".split()
)
SIDE_CAR_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", "license", "readme", "makefile"})
SIDE_CAR_PREFIXES = (".git", "._")
SKIPPED_FOLDERS = frozenset({".git", ".dvc", corpora.FETCH_FOLDER})

LFS_HEAD = b"version https://git-lfs.github.com/spec/"


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ClipsParams:
    """Which files are usable clips."""

    test_share: float = Field(default=0.05, ge=0, le=1)  # GRID 50 of 1000 (paper 3.3.1); not CREMA-D
    min_seconds: float = Field(default=0.4, gt=0)
    max_seconds: dict[str, float] = Field(
        # GRID's clips last 3 s, CREMA-D's 1.3 to 5.0 s.
        default_factory=lambda: {"grid": 10.0, "crema-d": 10.0, "folder": 600.0}
    )
    max_pixels: int = Field(default=4096 * 2304, gt=0)  # of a frame
    max_missing_seconds: float = Field(default=0.05, ge=0)  # of what the header declares
    max_av_gap_seconds: float = Field(default=0.5, ge=0)  # between the ends of sound and picture
    follow_links: bool = False  # accept symbolic links to files outside the raw folder


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of the raw folder. ``problem`` says why it was not even opened."""

    path: PurePosixPath  # below the raw folder
    problem: Drop | None = None


def find_files(raw: Path, params: ClipsParams) -> Iterator[RawFile]:
    """Every file below ``raw`` but known side-cars, links and special files too, sorted by path."""

    def stop(err: OSError) -> None:
        raise StageError(f"--raw {raw}: {err.filename} cannot be listed ({err.strerror})") from err

    if not raw.is_dir():
        raise StageError(f"--raw {raw}: no such folder")
    found = []
    for folder, folders, files in os.walk(raw, onerror=stop):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*files, *linked]:
            path = PurePosixPath(Path(folder, name).relative_to(raw).as_posix())
            if not is_side_car(path):
                found.append(RawFile(path, _problem(raw, path, params)))
    return iter(sorted(found, key=lambda item: item.path))


def is_side_car(path: PurePosixPath) -> bool:
    """Whether a file lies beside clips without being one; it gets no row in the ledger."""
    name = path.name.lower()
    return path.suffix.lower() in SIDE_CARS or name in SIDE_CAR_NAMES or name.startswith(SIDE_CAR_PREFIXES)


def _problem(raw: Path, path: PurePosixPath, params: ClipsParams) -> Drop | None:
    """Why a file is not to be opened, or None."""
    full = raw / path
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Drop("bad_name", "its name is not UTF-8")
    try:
        if full.is_symlink():
            target = Path(os.path.realpath(full))
            if not target.exists():
                return Drop(
                    "link", f"is a symbolic link to {os.fspath(full.readlink())!r}, which is not there"
                )
            if target.is_dir():
                return Drop("link", "is a symbolic link to a folder; links to folders are not followed")
            if _has_a_row(target, raw.resolve()):
                return Drop(
                    "link", f"is a symbolic link to {os.fspath(full.readlink())!r}, which has its own row"
                )
            if not params.follow_links:
                return Drop("link", f"is a symbolic link that leaves the raw clips, to {str(target)!r}; "
                            "clips.follow_links accepts such")  # fmt: skip
        status = full.stat()
        if not stat.S_ISREG(status.st_mode):
            return Drop("not_regular", "is not a regular file (a pipe, socket or device)")
        if status.st_size == 0:
            return Drop("empty", "is empty (0 bytes)")
        with full.open("rb") as file:
            head = file.read(len(LFS_HEAD))
    except OSError as err:
        return Drop("unreadable", f"cannot be read ({err.strerror})")
    if head == LFS_HEAD:
        return Drop("lfs_pointer", "is a Git LFS pointer, not a video; run `git lfs pull` in the corpus")
    return None


def _has_a_row(target: Path, raw: Path) -> bool:
    """Whether a file is found by itself. Those that git-annex and DVC keep in their own folders are not."""
    if not target.is_relative_to(raw):
        return False
    return is_looked_at(PurePosixPath(target.relative_to(raw).as_posix()))


def is_looked_at(path: PurePosixPath) -> bool:
    """Whether a file gets a row in the ledger, by its path."""
    return SKIPPED_FOLDERS.isdisjoint(path.parts[:-1]) and not is_side_car(path)


def probe(path: str, corpus: str, params: dict[str, Any]) -> Outcome:
    """Facts of one media file. Runs in the sandbox; raises Drop when a rule says it is unusable."""
    rules = ClipsParams(**params)
    with video.open_media(Path(path)) as container:
        picture = video.video_stream(container)
        sound = audio.audio_stream(container)
        codec = picture.codec_context
        pixels = codec.width * codec.height
        if not 0 < pixels <= rules.max_pixels:
            raise Drop("too_large", f"frames are {codec.width}x{codec.height}, "
                       f"expected at most {rules.max_pixels} pixels")  # fmt: skip
        header_end = video.declared_end(container)
        seen, heard = video.packet_spans(container, picture, sound)
        width, height = video.shown_size(Path(path))
        facts = {
            "video_codec": codec.name,
            "width": width,
            "height": height,
            "source_frames": seen.packets,
            "fps": float(seen.packets / seen.seconds) if seen.seconds > 0 else 0.0,
            "video_start": float(seen.start),
            "video_seconds": float(seen.seconds),
            "frames": video.frames_on_clock(seen),
            "audio_codec": sound.codec_context.name,
            "audio_rate": sound.codec_context.sample_rate,
            "audio_channels": sound.codec_context.layout.nb_channels,
            "audio_start": float(heard.start),
            "audio_seconds": float(heard.seconds),
        }
    try:
        _check_times(facts, header_end, corpus, rules)
    except Drop as drop:  # with its facts, so that the ledger shows what was measured
        return Outcome(DROPPED, drop.code, drop.reason, facts=facts)
    return Outcome(facts=facts)


def _check_times(facts: dict[str, Any], declared_end: float | None, corpus: str, rules: ClipsParams) -> None:
    """Raise Drop where a clip's times break a rule."""
    seconds = facts["video_seconds"]
    video_end = facts["video_start"] + seconds
    audio_end = facts["audio_start"] + facts["audio_seconds"]
    missing = 0.0 if declared_end is None else declared_end - max(video_end, audio_end)
    if missing > rules.max_missing_seconds:
        raise Drop("truncated", f"ends at {max(video_end, audio_end):.3f} s, but its header says "
                   f"{declared_end:.3f} s: it is cut short")  # fmt: skip
    longest = rules.max_seconds.get(corpus, math.inf)
    if not rules.min_seconds <= seconds <= longest:
        raise Drop("too_long" if seconds > longest else "too_short", f"lasts {seconds:.2f} s, "
                   f"expected {rules.min_seconds:g} to {longest:g} s")  # fmt: skip
    if abs(video_end - audio_end) > rules.max_av_gap_seconds:
        raise Drop("av_mismatch", f"its picture ends at {video_end:.2f} s and its sound at "
                   f"{audio_end:.2f} s, expected at most {rules.max_av_gap_seconds:g} s between")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """A file whose contents the cache has not seen."""

    path: PurePosixPath
    entry: Path
    job: ClipJob


def probe_file(task: ProbeTask) -> tuple[PurePosixPath, Outcome]:
    """Probe a file in the sandbox; the cache keeps what came of it, unless it failed."""
    outcome = sandbox.run(task.job)
    if outcome.status != FAILED:
        save_entry(task.entry, outcome)
    return task.path, outcome


def fingerprint(path: Path) -> Row | Drop:
    """Size and sha256 of a file's bytes, or why they cannot be read."""
    try:
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    except OSError as err:
        return Drop("unreadable", f"cannot be read ({err.strerror})")


def run(work: Work, params: ClipsParams, limits: LimitParams, mapper: Mapper) -> Report:
    """Write ``clips/ledger.parquet``, and ``clips.parquet`` as it stands after this stage."""
    report = Report(STAGE)
    conclude(work, look(work, params, limits, mapper, report), report)
    return report


def conclude(work: Work, seen: Rows, report: Report) -> None:
    """Write what was seen of the files, and tell of it."""
    ledger = build_ledger(told_apart(seen))
    write_ledger(work.stage(STAGE) / LEDGER_NAME, ledger)
    write_ledger(work.ledger, ledger)
    report.clips = len(ledger)
    report.frames = sum(row["frames"] for row in ledger.only("frames", "status") if row["status"] == OK)
    report.counts = count_by_code(ledger)


def look(work: Work, params: ClipsParams, limits: LimitParams, mapper: Mapper, report: Report) -> Rows:
    """A row of the ledger for every file, each seen by itself."""
    corpus = corpora.load(work.corpus)
    found = list(find_files(work.raw, params))
    if not found:
        raise StageError(f"--raw {work.raw}: holds no file that could be a clip")
    openable = [item.path for item in found if item.problem is None]
    # Hashing lets the interpreter go, so threads do it at the disk's speed without a cluster.
    with ThreadPoolExecutor() as threads:
        prints = dict(
            zip(openable, threads.map(lambda path: fingerprint(work.raw / path), openable), strict=True)
        )
    outcomes: dict[PurePosixPath, Outcome] = {}
    unseen: list[ProbeTask] = []
    for path, known in prints.items():
        if isinstance(known, Drop):
            outcomes[path] = Outcome.dropped(known)
            continue
        key = digest(STAGE, VERSION, known["sha256"], work.corpus, params, versions("av"))
        entry = entry_path(work.cache, STAGE, key, ".npz")
        cached = load_entry(entry)
        if cached is not None:
            outcomes[path] = cached[0]
            continue
        args = {"path": os.fspath(work.raw / path), "corpus": work.corpus, "params": asdict(params)}
        unseen.append(ProbeTask(path, entry, ClipJob("stages.clips:probe", args, 0.0, limits)))
    outcomes.update(mapper(probe_file, unseen, label=f"{STAGE}: files"))
    report.clips_computed = len(unseen)

    def rows() -> Iterator[Row]:
        for item in found:
            known_print = prints.get(item.path)
            identity = known_print if isinstance(known_print, dict) else {}
            yield _row(item, identity, outcomes.get(item.path, Outcome()), corpus, work, params)

    return build_ledger(rows())


def told_apart(seen: Rows) -> Iterator[Row]:
    """The rows by their paths; of those that claim one clip id, the first alone has it."""
    by_part = pc.replace_substring(seen.table["path"], "/", "\0")  # so "a/b" is before "a b", as paths are
    ids = pc.value_counts(seen.table["clip_id"])
    claimed = set(ids.filter(pc.greater(ids.field("counts"), 1)).field("values").to_pylist())
    taken: dict[str, str] = {}
    for row in Rows(seen.table.take(pc.sort_indices(by_part))):
        if row["status"] == OK and row["clip_id"] in claimed:
            other = taken.setdefault(row["clip_id"], row["path"])
            if other != row["path"]:
                row |= _ended(Drop("duplicate", f"would be clip {row['clip_id']!r} like {other!r}"))
        yield row


def _row(
    item: RawFile, identity: Row, outcome: Outcome, corpus: ModuleType, work: Work, params: ClipsParams
) -> Row:
    """The ledger's row of one file."""
    shown = str(item.path).encode(errors="backslashreplace").decode()
    row: Row = {"path": shown, "corpus": work.corpus, "stage": STAGE, "notes": []} | identity
    row |= outcome.facts
    try:
        who = corpus.identify(PurePosixPath(shown), work.raw.resolve().name)
        row |= {
            "clip_id": who.clip_id,
            "speaker": who.speaker,
            "sentence": who.sentence,
            "emotion": who.emotion,
            "level": who.level,
            "split": corpus.split(who, params.test_share),
            "expected": corpus.EXPECTED.get(who.clip_id),
        }
        named: Drop | None = None
    except corpora.BadName as err:
        row["clip_id"] = shown  # so that ``explain`` finds it
        named = Drop("bad_name", str(err))
    if item.problem is not None:
        return row | _ended(item.problem)
    if outcome.status != OK:
        return row | {"status": outcome.status, "code": outcome.code, "reason": outcome.reason}
    if named is not None:
        return row | _ended(named)
    if corpus.NOMINAL_FRAMES not in (None, row["frames"]):
        row["notes"] = [f"{row['frames']} frames, {work.corpus} clips have {corpus.NOMINAL_FRAMES}"]
    return row | {"status": OK, "code": "", "reason": ""}


def _ended(drop: Drop) -> Row:
    return {"status": DROPPED, "code": drop.code, "reason": drop.reason}


def read_clips(work: Work) -> Rows:
    """What this stage found. Raises StageError when it has not run."""
    path = work.stage(STAGE) / LEDGER_NAME
    if not path.is_file():
        raise StageError(f"{path}: not there; run `pipeline clips --dataset {work.corpus}` first")
    return read_ledger(path)


def carry_ledger(work: Work, stages: Sequence[str], parts: Iterable[Part]) -> Rows:
    """Write ``clips.parquet``: this stage's rows, with what later ``stages`` made of each part's clips."""
    carried = (row for part in parts for row in _carried(work, stages, part))
    ledger = build_ledger(chain(carried, unusable(read_clips(work))))
    write_ledger(work.ledger, ledger)
    return ledger


def _carried(work: Work, stages: Sequence[str], part: Part) -> Iterable[Row]:
    by_id = {row["clip_id"]: row for row in part.rows}
    for stage in stages:
        for outcome in read_outcomes(work.stage(stage), [part]):
            row = by_id.get(outcome["clip_id"])
            if row is None or row["status"] != OK:
                continue  # ended earlier; the first reason stands
            row["notes"] = [*row["notes"], *outcome["notes"]]
            row |= {name: outcome[name] for name in ("status", "code", "reason")} | {"stage": stage}
    return by_id.values()
