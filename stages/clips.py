"""Stage 1: list every file in the raw folder, read its facts, and decide which can be used and why not."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pyarrow.compute as pc
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.checksum import file_sha256
from shards.ledger import (
    DROPPED,
    FAILED,
    OK,
    STAGE_RULES,
    build_ledger,
    check_clips,
    read_ledger,
    write_ledger,
)
from shards.names import is_utf8
from shards.schema import MAX_FRAMES, VIDEO_FPS
from shards.storage import Storage, open_storage
from shards.table import Row, Rows
from stages.corpora import FETCH_FOLDER, get_corpus
from stages.corpora.corpus import UNLISTED, BadList, BadName, Identity, ListedCorpus, split_by_speaker
from stages.corpora.leftovers import check_pattern, judge_file, judge_folder
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import MACHINE_ERRORS, Drop, Outcome, StageError
from stages.engine.sandbox import DAY, MAX_PIXELS, ClipJob, LimitParams
from stages.engine.stage import Context, Report, Work
from stages.media.audio import check_audio
from stages.media.container import find_audio_stream, find_video_stream, open_media
from stages.media.presentation import DecodeReport, ShownVideo, decode_shown_video, read_timeline
from stages.media.video import count_frames_at_25fps

STAGE = "clips"
VERSION = 2  # 2: clocks, discarded packets, damage, still pictures
LEDGER_NAME = "ledger.parquet"
MAX_MISSING_SECONDS = 0.05  # of what a header declares: more drops a clip, or is said of a file to be cut

# Files beside clips in the corpora as they are published, and what operating systems leave behind.
SIDE_CARS = frozenset(
    ".align .csv .tsv .txt .md .json .yaml .yml .html .pdf .rst .bib .r .rmd .ipynb .py .sh .m .mat "  # noqa: SIM905
    ".wav .mp3 .flac .jpg .jpeg .png .gif .sha256 .md5 .srt .vtt .lab .textgrid .dvc .log".split()
)
SIDE_CAR_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", "license", "readme", "makefile"})
SIDE_CAR_PREFIXES = (".git", "._")
SKIPPED_FOLDERS = frozenset({".git", ".dvc", FETCH_FOLDER})

# Of a video: by it a file's size bounds its length before it is opened, and so the deadline of its probe.
LEAST_BYTES_PER_SECOND = 100_000

LFS_HEAD = b"version https://git-lfs.github.com/spec/"


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ClipsParams:
    """Which files are usable clips."""

    test_share: float = Field(default=0.05, ge=0, le=1)  # GRID 50 of 1000 (paper 3.3.1); not CREMA-D
    # Of a folder: a share of the clips is in the test split, or a share of the speakers with all their clips.
    folder_split: Literal["clip", "speaker"] = "clip"
    min_seconds: float = Field(default=0.4, gt=0, le=DAY)
    max_seconds: dict[str, Annotated[float, Field(gt=0, le=DAY)]] = Field(
        # GRID's clips last 3 s, CREMA-D's 1.3 to 5.0 s. A corpus that is not named has the bound of folder.
        default_factory=lambda: {"grid": 10.0, "crema-d": 10.0, "folder": 600.0}
    )
    max_pixels: int = Field(default=4096 * 2304, gt=0, le=MAX_PIXELS)  # of a frame
    max_missing_seconds: float = Field(default=MAX_MISSING_SECONDS, ge=0, le=DAY)
    max_av_gap_seconds: float = Field(default=0.5, ge=0, le=DAY)  # between the ends of sound and picture
    # For how long one picture may stand. In real clips of GRID, CREMA-D and the web none stands for longer
    # than 0.14 s: people and cameras always move a little.
    max_still_seconds: float = Field(default=1.0, gt=0, le=DAY)
    # Frames that a decoder repairs or loses, and packets of sound. Of 509 clips of GRID one has one.
    max_damaged_frames: int = Field(default=2, ge=0, le=MAX_FRAMES)
    follow_links: bool = False  # accept symbolic links to files outside the raw folder
    # Glob patterns of files and folders to leave out (stages.corpora.leftovers.match_pattern).
    exclude: list[Annotated[str, AfterValidator(check_pattern)]] = Field(default_factory=list)
    duplicates: Literal["keep", "drop"] = "keep"  # files with the same bytes as another: a note, or dropped

    def select_probe_params(self) -> dict[str, Any]:
        """The params that decide what one file's probe returns: the key of its cache entry, and of a receipt.

        A receipt holds rows of the ledger, whose splits ``choose_splits`` makes anew when it is read.
        """
        params = self.describe()
        for name in ("exclude", "duplicates", "folder_split"):
            params.pop(name, None)
        return params

    def relax(self) -> ClipsParams:
        """The same for files that will be cut into clips: the rules for a whole clip do not hold for them."""
        return replace(
            self,
            min_seconds=1 / VIDEO_FPS,
            max_seconds={},
            max_missing_seconds=DAY,
            max_still_seconds=DAY,
            max_av_gap_seconds=DAY,
            max_damaged_frames=MAX_FRAMES,
        )

    def describe(self) -> dict[str, Any]:
        """All params; without ``folder_split`` by clip, as in the datasets of versions without it."""
        params = asdict(self)
        if self.folder_split == "clip":
            del params["folder_split"]
        return params


def run(work: Work, parts: tuple[()], params: ClipsParams, context: Context) -> Report:
    """Write ``clips/ledger.parquet``: one row for every file. ``parts`` are planned from it afterwards."""
    report = Report(STAGE)
    splits: Mapping[str, str] = {}
    if isinstance(get_corpus(work.corpus), ListedCorpus):  # now, not after hours
        paths = (file.path for file in find_files(work.raw, params))
        splits = read_splits(work.corpus, paths, work.raw.resolve().name, open_storage(work.raw))
    write_clips(work, probe_files(work, params, context, report), params, report, splits)
    return report


def read_splits(
    corpus_name: str, paths: Iterable[PurePosixPath], raw_name: str, raw: Storage
) -> Mapping[str, str]:
    """Clip id -> split, from the lists of a corpus that has some. Raises StageError."""
    corpus = get_corpus(corpus_name)
    if not isinstance(corpus, ListedCorpus):
        return {}
    try:
        return corpus.read_splits(paths, raw_name, raw)
    except BadList as err:
        raise StageError(f"--raw {raw.address}: {err}") from err


def probe_files(work: Work, params: ClipsParams, context: Context, report: Report) -> Rows:
    """A ledger row for every file, each judged by itself."""
    files = list(find_files(work.raw, params))
    if not files:
        raise StageError(f"--raw {work.raw}: holds no file that could be a clip")
    readable = [file.path for file in files if file.problem is None]
    # Hashing releases the GIL, so threads do it at the disk's speed without a cluster.
    with ThreadPoolExecutor(context.workers) as pool:
        hashes = pool.map(lambda path: hash_file(work.raw / path), readable)
        fingerprints = dict(zip(readable, hashes, strict=True))
    probe_params = params.select_probe_params()
    outcomes: dict[PurePosixPath, Outcome] = {}
    tasks: list[ProbeTask] = []
    for path, fingerprint in fingerprints.items():
        if isinstance(fingerprint, Drop):
            outcomes[path] = Outcome.from_drop(fingerprint)
            continue
        key = digest(STAGE, VERSION, fingerprint["sha256"], work.corpus, probe_params, versions("av"))
        entry = entry_path(work.cache, STAGE, key, ".npz")
        cached = load_entry(entry)
        if cached is not None:
            outcomes[path] = cached[0]
            continue
        job = ClipJob(probe_file, path=work.raw / path, corpus=work.corpus, params=params)
        tasks.append(ProbeTask(path, entry, job, context.limits, fingerprint["bytes"]))
    outcomes.update(context.map_tasks(run_probe, tasks, label=f"{STAGE}: files"))
    report.clips_computed = len(tasks)

    def make_rows() -> Iterator[Row]:
        for file in files:
            fingerprint = fingerprints.get(file.path)
            outcome = outcomes.get(file.path, Outcome())
            yield make_row(file, fingerprint, outcome, work.corpus, work.raw.resolve().name, params)

    return build_ledger(make_rows())


def write_clips(
    work: Work, rows: Rows, params: ClipsParams, report: Report, splits: Mapping[str, str]
) -> None:
    """Write this stage's ledger, and the same as ``clips.parquet``; fill in the report.

    ``splits`` are what the corpus's own lists say, clip id -> split.
    """
    ledger = build_ledger(_set_splits(mark_duplicates(rows, params), splits))
    write_ledger(find_ledger(work), ledger)
    write_ledger(work.ledger, ledger)
    report.count_rows(ledger)
    lengths = ledger.select_columns("frames", "status")
    report.frames = sum(row["frames"] for row in lengths if row["status"] == OK)


def _set_splits(rows: Iterable[Row], splits: Mapping[str, str]) -> Iterator[Row]:
    """The rows, with the splits of the lists where the corpus leaves it to them."""
    for row in rows:
        if row["split"] == UNLISTED:
            row["split"] = splits.get(row["clip_id"], UNLISTED)
        yield row


def find_ledger(work: Work) -> Path:
    """Where the rows of the files are."""
    return work.stage_folder(STAGE) / LEDGER_NAME


def read_clips(work: Work) -> Rows:
    """The rows that this stage wrote. Raises StageError when it has not run."""
    path = find_ledger(work)
    if not path.is_file():
        raise StageError(f"{path}: not there; run `pipeline clips --dataset {work.corpus}` first")
    return check_clips(read_ledger(path), f"{path}", STAGE_RULES)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One file of the raw folder. ``problem`` says why it was not even opened.

    A folder that is left out or cannot be listed has one row, for all that is in it; its path ends in "/".
    """

    path: PurePosixPath  # below the raw folder
    problem: Drop | None = None
    is_folder: bool = False


def find_files(raw: Path, params: ClipsParams) -> Iterator[RawFile]:
    """Every file below ``raw``, links and special files too, except known side-cars; sorted by path.

    Folders are listed when they are left out or cannot be listed.
    """
    files = []

    def locate(folder: str, name: str) -> PurePosixPath:
        return PurePosixPath(Path(folder, name).relative_to(raw).as_posix())

    def add_unreadable(err: OSError) -> None:
        if Path(err.filename) == raw:
            raise StageError(f"--raw {raw}: cannot be listed ({err.strerror})") from err
        if err.errno in MACHINE_ERRORS:
            raise err
        drop = Drop("unreadable", f"is a folder that cannot be listed ({err.strerror})")
        files.append(RawFile(locate(err.filename, ""), drop, is_folder=True))

    if not raw.is_dir():
        raise StageError(f"--raw {raw}: no such folder")
    for folder, folder_names, file_names in os.walk(raw, onerror=add_unreadable):
        folder_names[:] = [name for name in folder_names if name not in SKIPPED_FOLDERS]
        linked = [name for name in folder_names if _is_link(Path(folder, name))]
        for path in (locate(folder, name) for name in [*file_names, *linked]):
            if not is_side_car(path):
                drop = judge_file(path, params.exclude) or _find_problem(raw, path, params)
                files.append(RawFile(path, drop))
        for name in set(folder_names) - set(linked):
            path = locate(folder, name)
            if (drop := judge_folder(path, params.exclude)) is not None:
                folder_names.remove(name)
                files.append(RawFile(path, drop, is_folder=True))
    return iter(sorted(files, key=lambda file: file.path))


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # in a folder that may be listed but not entered
        return False


def find_left_out(path: PurePosixPath, params: ClipsParams) -> RawFile | None:
    """What is left out by its name, if it is this file: the topmost folder around it, or itself."""
    for folder in reversed(path.parents[:-1]):
        if (drop := judge_folder(folder, params.exclude)) is not None:
            return RawFile(folder, drop, is_folder=True)
    drop = judge_file(path, params.exclude)
    return None if drop is None else RawFile(path, drop)


def is_side_car(path: PurePosixPath) -> bool:
    """Whether a file accompanies clips without being one; it gets no row in the ledger."""
    name = path.name.lower()
    return path.suffix.lower() in SIDE_CARS or name in SIDE_CAR_NAMES or name.startswith(SIDE_CAR_PREFIXES)


def gets_row(path: PurePosixPath) -> bool:
    """Whether a file gets a row in the ledger, by its path."""
    return SKIPPED_FOLDERS.isdisjoint(path.parts[:-1]) and not is_side_car(path)


def _find_problem(raw: Path, path: PurePosixPath, params: ClipsParams) -> Drop | None:
    """Why a file must not be opened, or None."""
    full = raw / path
    if not is_utf8(str(path)):
        return Drop("bad_name", "its name is not UTF-8")
    try:
        if full.is_symlink() and (drop := _check_link(raw, full, params)) is not None:
            return drop
        status = full.stat()
        if not stat.S_ISREG(status.st_mode):
            return Drop("not_regular", "is not a regular file (a pipe, socket or device)")
        if status.st_size == 0:
            return Drop("empty", "is empty (0 bytes)")
        with full.open("rb") as file:
            head = file.read(len(LFS_HEAD))
    except OSError as err:
        return _make_unreadable(err)
    if head == LFS_HEAD:
        return Drop("lfs_pointer", "is a Git LFS pointer, not a video; run `git lfs pull` in the corpus")
    return None


def _check_link(raw: Path, link: Path, params: ClipsParams) -> Drop | None:
    """Why a symbolic link must not be followed, or None."""
    target = Path(os.path.realpath(link))
    if not target.exists():
        return Drop("link", f"is a symbolic link to {os.fspath(link.readlink())!r}, which is not there")
    if target.is_dir():
        return Drop("link", "is a symbolic link to a folder; links to folders are not followed")
    if (own_row := _describe_own_row(target, raw.resolve(), params)) is not None:
        return Drop("link", f"is a symbolic link to {os.fspath(link.readlink())!r}, which {own_row}")
    if not params.follow_links:
        return Drop("link", f"is a symbolic link that leaves the raw clips, to {str(target)!r}; "
                    "clips.follow_links accepts such")  # fmt: skip
    return None


def _describe_own_row(target: Path, raw: Path, params: ClipsParams) -> str | None:
    """That a link's target is listed by itself, or None: files in git-annex's and DVC's folders are not."""
    if not target.is_relative_to(raw):
        return None
    path = PurePosixPath(target.relative_to(raw).as_posix())
    if not gets_row(path):
        return None
    return "has its own row" if find_left_out(path, params) is None else "is left out"


def hash_file(path: Path) -> Row | Drop:
    """Size and sha256 of a file, or why it cannot be read."""
    try:
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    except OSError as err:
        return _make_unreadable(err)


def _make_unreadable(err: OSError) -> Drop:
    if err.errno in MACHINE_ERRORS:
        raise err
    return Drop("unreadable", f"cannot be read ({err.strerror})")


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """A file whose facts are not in the cache."""

    path: PurePosixPath
    entry: Path
    job: ClipJob
    limits: LimitParams
    n_bytes: int


def run_probe(task: ProbeTask) -> tuple[PurePosixPath, Outcome]:
    """Probe a file in the sandbox. Every outcome but a failure is cached."""
    outcome = sandbox.run(task.job, task.limits, video_seconds=task.n_bytes / LEAST_BYTES_PER_SECOND)
    if outcome.status != FAILED:
        save_entry(task.entry, outcome)
    return task.path, outcome


def probe_file(path: Path, corpus: str, params: ClipsParams) -> Outcome:
    """Facts of one media file. Runs in the sandbox; raises Drop when a rule says it cannot be used."""
    with open_media(path) as container:
        picture = find_video_stream(container)
        sound = _find_sound(container, picture)
        codec = picture.codec_context
        _check_pixels(codec.width, codec.height, params)
        timeline = read_timeline(container, picture, sound)
        video_span, audio_span = timeline.spans
        shown = decode_shown_video(path, video_span)
        width, height = shown.form.size
        _check_pixels(width, height, params)
        span = shown.span
        facts = {
            "video_codec": codec.name,
            "width": width,
            "height": height,
            "source_frames": span.packets,
            "fps": float(span.packets / span.seconds) if span.seconds > 0 else 0.0,
            "video_start": float(span.start),
            "video_seconds": float(span.seconds),
            "frames": count_frames_at_25fps(span),
            "audio_codec": sound.codec_context.name,
            "audio_rate": sound.codec_context.sample_rate,
            "audio_channels": sound.codec_context.layout.nb_channels,
            "audio_start": float(audio_span.start),
            "audio_seconds": float(audio_span.seconds),
        }
    heard = check_audio(path)
    try:
        _check_times(facts, timeline.missing_seconds, corpus, params)
        _check_pictures(shown, params)
        _check_damage(shown.report, heard, params)
    except Drop as drop:  # with its facts, so that the ledger shows what was measured
        return Outcome(DROPPED, drop.code, drop.reason, facts=facts)
    damage = (("video", shown.report), ("audio", heard))
    notes = [report.describe(kind) for kind, report in damage if report.count]
    is_to_be_cut = params.max_missing_seconds == DAY  # as relax() makes it
    if is_to_be_cut and timeline.missing_seconds > MAX_MISSING_SECONDS:
        notes.append(_describe_missing(timeline.missing_seconds))
    return Outcome(facts=facts, notes=tuple(notes))


def _find_sound(container: InputContainer, picture: VideoStream) -> AudioStream:
    """The stream of sound. Raises Drop when there is none, or the file breaks off before it begins."""
    try:
        return find_audio_stream(container)
    except Drop:
        (span,) = read_timeline(container, picture).spans
        if span.packets < 2:
            raise Drop("damaged", f"breaks off after {span.packets} packet of video") from None
        raise


def _check_pixels(width: int, height: int, params: ClipsParams) -> None:
    """Raise Drop when a frame is too large to be decoded or shown."""
    if not 0 < width * height <= params.max_pixels:
        raise Drop("too_large", f"frames are {width}x{height}, expected at most {params.max_pixels} pixels")


def _check_times(facts: dict[str, Any], missing_seconds: float, corpus: str, params: ClipsParams) -> None:
    """Raise Drop when a clip's times break a rule."""
    seconds = facts["video_seconds"]
    video_end = facts["video_start"] + seconds
    audio_end = facts["audio_start"] + facts["audio_seconds"]
    if missing_seconds > params.max_missing_seconds:
        raise Drop("truncated", _describe_missing(missing_seconds))
    longest = params.max_seconds.get(corpus, params.max_seconds.get("folder", math.inf))
    if not params.min_seconds <= seconds <= longest:
        raise Drop("too_long" if seconds > longest else "too_short", f"lasts {seconds:.2f} s, "
                   f"expected {params.min_seconds:g} to {longest:g} s")  # fmt: skip
    if abs(video_end - audio_end) > params.max_av_gap_seconds:
        raise Drop("av_mismatch", f"its picture ends at {video_end:.2f} s and its sound at "
                   f"{audio_end:.2f} s, expected at most "
                   f"{params.max_av_gap_seconds:g} s between")  # fmt: skip


def _describe_missing(seconds: float) -> str:
    return f"lacks {seconds:.3f} s of what its header declares: it is cut short"


def _check_pictures(shown: ShownVideo, params: ClipsParams) -> None:
    """Raise Drop when one picture stands for too long: a hole in a recording, or a photo."""
    if shown.still_seconds > params.max_still_seconds:
        raise Drop("still", f"shows the same picture from {shown.still_start:.2f} s for "
                   f"{shown.still_seconds:.2f} s, expected at most "
                   f"{params.max_still_seconds:g} s")  # fmt: skip


def _check_damage(picture: DecodeReport, sound: DecodeReport, params: ClipsParams) -> None:
    """Raise Drop when the decoder had to repair or to leave out too much."""
    if picture.count > params.max_damaged_frames:
        raise Drop("damaged", f"{picture.describe('video')}, "
                   f"expected at most {params.max_damaged_frames}")  # fmt: skip
    if sound.count > params.max_damaged_frames:
        raise Drop("damaged_audio", f"{sound.describe('audio')}, "
                   f"expected at most {params.max_damaged_frames}")  # fmt: skip


def make_row(
    file: RawFile,
    fingerprint: Row | Drop | None,
    outcome: Outcome,
    corpus_name: str,
    raw_name: str,
    params: ClipsParams,
) -> Row:
    """The ledger row of one file, from what ``hash_file`` and ``probe_file`` returned for it.

    ``raw_name`` is the name of the raw folder, which some corpora read the speaker from.
    """
    corpus = get_corpus(corpus_name)
    path = str(file.path).encode(errors="backslashreplace").decode() + "/" * file.is_folder
    row: Row = {"path": path, "corpus": corpus_name, "stage": STAGE, "notes": []}
    row |= fingerprint if isinstance(fingerprint, dict) else {}
    row |= outcome.facts
    if file.is_folder:
        assert file.problem is not None, "other folders have no row"
        return row | {"clip_id": path} | make_drop_columns(file.problem)
    bad_name: Drop | None = None
    try:
        who = corpus.identify(PurePosixPath(path), raw_name)
        row |= {
            "clip_id": who.clip_id,
            "speaker": who.speaker,
            "sentence": who.sentence,
            "emotion": who.emotion,
            "level": who.level,
            "split": _choose_split(who, PurePosixPath(path), corpus_name, params),
            "expected": corpus.KNOWN_FAULTS.get(who.clip_id),
        }
    except BadName as err:
        row["clip_id"] = path  # so that ``explain`` finds it
        bad_name = Drop("bad_name", str(err))
    if file.problem is not None:
        return row | make_drop_columns(file.problem)
    if outcome.status != OK:
        return row | outcome.to_columns()
    if bad_name is not None:
        return row | make_drop_columns(bad_name)
    row["notes"] = list(outcome.notes)
    if corpus.NOMINAL_FRAMES not in (None, row["frames"]):
        row["notes"] += [f"{row['frames']} frames, {corpus_name} clips have {corpus.NOMINAL_FRAMES}"]
    return row | outcome.to_columns()


def choose_splits(rows: Iterable[Row], corpus_name: str, raw_name: str, params: ClipsParams) -> Rows:
    """Rows of files, each in the split that these params choose; they may have been made by others."""

    def replace_splits() -> Iterator[Row]:
        for row in rows:
            path = PurePosixPath(row["path"])
            try:
                who = get_corpus(corpus_name).identify(path, raw_name)
            except BadName:
                yield row  # it has no split
            else:
                yield row | {"split": _choose_split(who, path, corpus_name, params)}

    return build_ledger(replace_splits())


def _choose_split(who: Identity, path: PurePosixPath, corpus_name: str, params: ClipsParams) -> str:
    if corpus_name == "folder" and params.folder_split == "speaker":
        return split_by_speaker(who, params.test_share)
    return get_corpus(corpus_name).choose_split(who, path, params.test_share)


def make_drop_columns(drop: Drop) -> Row:
    """The columns of the ledger that say why a clip is not used."""
    return Outcome.from_drop(drop).to_columns()


def mark_duplicates(rows: Rows, params: ClipsParams) -> Iterator[Row]:
    """The rows by path. Of several usable files with one clip id, only the first keeps it.

    Of several with the same bytes, all but the first get a note, or are dropped by ``params.duplicates``.
    """
    sort_key = pc.replace_substring(rows.table["path"], "/", "\0")  # so "a/b" comes before "a b", like paths
    repeated_ids, repeated_hashes = (_find_repeated(rows, name) for name in ("clip_id", "sha256"))
    paths_by_id: dict[str, str] = {}
    paths_by_hash: dict[str, str] = {}
    for row in Rows(rows.table.take(pc.sort_indices(sort_key))):
        if row["status"] == OK and row["clip_id"] in repeated_ids:
            first = paths_by_id.setdefault(row["clip_id"], row["path"])
            if first != row["path"]:
                drop = Drop("duplicate", f"would be clip {row['clip_id']!r} like {first!r}")
                row |= make_drop_columns(drop)
        if row["status"] == OK and row["sha256"] in repeated_hashes:
            first = paths_by_hash.setdefault(row["sha256"], row["path"])
            if first != row["path"] and params.duplicates == "drop":
                row |= make_drop_columns(Drop("duplicate", f"has the same bytes as {first!r}"))
            elif first != row["path"]:
                row["notes"] = [*row["notes"], f"same bytes as {first}"]
        yield row


def _find_repeated(rows: Rows, column: str) -> set[str]:
    """The values of a column that several rows have."""
    values = pc.value_counts(rows.table[column])
    return set(values.filter(pc.greater(values.field("counts"), 1)).field("values").to_pylist()) - {None}
