"""The whole road on machines that share nothing but buckets.

A worker brings what it needs from the bucket of raw clips to a scratch folder of its own, runs the stages
there as one machine does, and puts a finished shard into the other bucket. Beside it it leaves a receipt:
what became of the clips, under a key of all that went in. So a worker, the scheduler or the command may die
at any moment: the next run asks for receipts, and does what has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Generic

from shards.address import open_storage
from shards.index import INDEX_SCHEMA, ShardEntry
from shards.ledger import FAILED, count_by_code, unusable, write_ledger
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.schema import SCHEMA_VERSION, ShardError
from shards.storage import FileInfo, Storage
from shards.table import PackedRows, Row, Rows
from stages import align, clips, landmarks, mels, shard
from stages.align import AlignParams
from stages.clips import ClipsParams
from stages.engine.cache import digest, versions
from stages.engine.outcome import Item, Mapper, Report, Result, StageError, Work, one_by_one
from stages.engine.parts import Part, PartParams, deal
from stages.engine.sandbox import LimitParams
from stages.landmarks import LandmarksParams
from stages.media import weights
from stages.media.crops import ShardParams
from stages.mels import MelsParams
from stages.shard import PackedShard

RECEIPTS = "receipts"  # folder beside the shards
READERS = 16  # receipts read at once
KEY_LETTERS = 32
FILES_PER_TASK = PartParams(clips_per_part=64)


@dataclass(frozen=True, slots=True)
class BuildJob:
    """What every worker must know."""

    corpus: str
    raw: str  # address
    out: str  # address
    clips: ClipsParams
    landmarks: LandmarksParams
    align: AlignParams
    mels: MelsParams
    shard: ShardParams
    limits: LimitParams
    tools: dict[str, str]  # of the command's machine; others would make other bytes

    def look_key(self, hand: Sequence[FileInfo]) -> str:
        """A name for the facts of some files, of all that decides them."""
        facts = digest(self.tools, self.corpus, self.clips, [asdict(file) for file in hand])
        return f"{clips.STAGE}-{facts[:KEY_LETTERS]}"

    def part_key(self, part: Part) -> str:
        """A name for a part's shard, of all that decides it, and not of where it lies or what was allowed."""
        params = [replace(self.landmarks, model=""), self.align, self.mels, self.shard]
        return f"part-{digest(self.tools, params, part.name, list(part.rows))[:KEY_LETTERS]}"


def tools() -> dict[str, str]:
    """What decides a result besides clips and params."""
    stages = (clips, landmarks, align, mels, shard)
    return {
        **versions(*shard.LIBRARIES, "soxr"),
        **{f"stage {stage.STAGE}": str(stage.VERSION) for stage in stages},
        "schema": str(SCHEMA_VERSION),
        "model": weights.LANDMARKER.sha256,
    }


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """What became of a part. Its receipt says the same."""

    packed: PackedShard | None  # no clip may be left
    ledger: Rows  # of its clips, after the last stage

    def to_json(self) -> dict[str, Any]:
        packed = self.packed and {"entry": asdict(self.packed.entry), "index": list(self.packed.index)}
        return {"packed": packed, "ledger": list(self.ledger)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> BuiltPart:
        ledger, packed = PackedRows.of(told["ledger"], LEDGER_SCHEMA), told["packed"]
        if packed is None:
            return cls(None, ledger)
        return cls(
            PackedShard(ShardEntry(**packed["entry"]), PackedRows.of(packed["index"], INDEX_SCHEMA)), ledger
        )


@dataclass(frozen=True, slots=True)
class Task(Generic[Item]):
    """Work for one worker, and the name of its receipt."""

    errand: BuildJob
    key: str
    item: Item


def look(errand: BuildJob, work: Work, mapper: Mapper) -> Report:
    """Stage 1: a row for every file of the raw bucket, and ``clips.parquet`` of them."""
    report = Report(clips.STAGE)
    listed = clips_in(open_storage(errand.raw))
    tasks = [
        Task(errand, errand.look_key(hand), hand)
        for _, hand in deal(listed, lambda file: file.name, FILES_PER_TASK)
    ]
    present = _present(errand)

    def whole(told: list[Row]) -> Rows:
        return PackedRows.of(told, LEDGER_SCHEMA)

    label = f"{clips.STAGE}: files"
    seen, report.clips_computed = _done(look_at, tasks, mapper, label, len, present, whole)
    clips.conclude(work, Rows.joined(seen, LEDGER_SCHEMA), report)
    return report


def build(
    errand: BuildJob, work: Work, parts: Sequence[Part], described: dict[str, Any], mapper: Mapper
) -> Report:
    """Stages 2 to 5: shards in the bucket; their tables and their manifest in ``work.out``."""
    report = Report(shard.STAGE)
    tasks = [Task(errand, errand.part_key(part), part) for part in parts]
    present = _present(errand)

    def whole(told: dict[str, Any]) -> BuiltPart | None:
        built = BuiltPart.from_json(told)
        entry = built.packed.entry if built.packed else None
        return built if entry is None or present.get(entry.name) == entry.bytes else None

    label = f"{shard.STAGE}: parts"
    built, n_computed = _done(build_part, tasks, mapper, label, lambda part: part.n_frames, present, whole)
    ends = chain((one.ledger for one in built), [unusable(clips.read_clips(work))])
    ledger = Rows.joined(ends, LEDGER_SCHEMA)
    write_ledger(work.ledger, ledger)
    packed = [one.packed for one in built if one.packed]
    report.parts = {"total": len(tasks), "kept": len(tasks) - n_computed, "built": n_computed}
    report.clips_computed = n_computed
    report.clips = len(ledger)
    report.counts = count_by_code(ledger)
    report.frames = sum(one.entry.frames for one in packed)
    if packed:
        shard.publish(work, errand.shard, errand.align.size, described, packed, ledger)
    return report


def look_at(task: Task[tuple[FileInfo, ...]]) -> Rows:
    """Look at some files. Runs on a worker."""
    errand = task.errand
    with _scratch(errand) as work:
        raw = open_storage(errand.raw)
        for file in task.item:
            raw.bring(file.name, work.raw / file.name, size=file.bytes)
        seen = clips.look(work, errand.clips, errand.limits, one_by_one, Report(clips.STAGE))
        rows = PackedRows(seen.table)
    if all(row["status"] != FAILED for row in rows):
        _leave_receipt(task, list(rows))
    return rows


def build_part(task: Task[Part]) -> BuiltPart:
    """Bring a part's clips from raw to a shard in the bucket. Runs on a worker."""
    errand, part = task.errand, task.item
    report = Report(shard.STAGE)
    with _scratch(errand) as work:
        raw, out = open_storage(errand.raw), open_storage(errand.out)
        for row in part.rows:
            raw.bring(row["path"], work.raw / row["path"], size=row["bytes"], sha256=row["sha256"])
        write_ledger(work.stage(clips.STAGE) / clips.LEDGER_NAME, part.rows)
        model = weights.find(weights.LANDMARKER, errand.landmarks.model)
        landmarks.run(work, errand.landmarks, [part], errand.limits, model, one_by_one)
        align.run(work, errand.align, [part], one_by_one)
        mels.run(work, errand.mels, [part], errand.limits, one_by_one)
        packed = shard.pack(work, errand.shard, errand.align.size, [part], errand.limits, one_by_one, report)
        for one in packed:
            out.put(work.out / one.entry.name, one.entry.name, sha256=one.entry.sha256)
        ledger = PackedRows(clips.carry_ledger(work, shard.STAGES, [part]).table)
        built = BuiltPart(packed[0] if packed else None, ledger)
    if all(row["status"] != FAILED for row in ledger):
        _leave_receipt(task, built.to_json())
    return built


def clips_in(raw: Storage) -> list[FileInfo]:
    """The files of a place that get a row. Raises StageError for a name that no folder can hold."""
    listed = [file for file in raw.tree() if clips.is_looked_at(PurePosixPath(file.name))]
    if not listed:
        raise StageError(f"--raw {raw.address}: holds no file that could be a clip")
    names = {file.name for file in listed}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name:
            raise StageError(f"--raw {raw.address}: {name!r} is no plain path below it; rename it")
        if not names.isdisjoint(parent.as_posix() for parent in path.parents):
            raise StageError(f"--raw {raw.address}: {name!r} lies in a folder that is also a file; rename it")
    return listed


def _done(
    function: Callable[[Task[Item]], Result],
    tasks: Sequence[Task[Item]],
    mapper: Mapper,
    label: str,
    size_of: Callable[[Item], int],
    present: dict[str, int],
    whole: Callable[[Any], Result | None],
) -> tuple[list[Result], int]:
    """What each task gives, by its receipt or by a worker; and how many workers gave.

    ``present`` is what lies in the bucket. ``whole`` makes a result of a receipt's JSON, or None where what
    it speaks of is not there.
    """

    def receipt(task: Task[Item]) -> Result | None:
        if f"{RECEIPTS}/{_name(task)}" not in present:
            return None
        try:
            told = json.loads(_receipts(task.errand).whole(_name(task)))
        except (ShardError, ValueError):
            return None  # the work is done again
        return whole(told)

    with ThreadPoolExecutor(READERS) as pool:
        told = list(pool.map(receipt, tasks))
    left = [task for task, its in zip(tasks, told, strict=True) if its is None]
    sizes = [size_of(task.item) for task in left]
    results = list(mapper(function, left, label=label, sizes=sizes))
    return [*(its for its in told if its is not None), *results], len(left)


def _present(errand: BuildJob) -> dict[str, int]:
    """Bytes of every file that lies in the bucket of shards."""
    return {file.name: file.bytes for file in open_storage(errand.out).tree()}


def _leave_receipt(task: Task[Any], told: object) -> None:
    """Last of all: who finds it need not look for what it speaks of."""
    data = json.dumps(told).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _name(task)
        path.write_bytes(data)
        _receipts(task.errand).put(path, path.name, sha256=hashlib.sha256(data).hexdigest())


def _receipts(errand: BuildJob) -> Storage:
    return open_storage(f"{errand.out}/{RECEIPTS}")


def _name(task: Task[Any]) -> str:
    return f"{task.key}.json"


@contextlib.contextmanager
def _scratch(errand: BuildJob) -> Iterator[Work]:
    """Folders for one task, on the worker's own disk. Raises StageError where it would make other bytes."""
    here = tools()
    other = {name: told for name, told in errand.tools.items() if here.get(name) != told}
    if other:
        told = ", ".join(
            f"{name} {here.get(name)}, expected {value}" for name, value in sorted(other.items())
        )
        raise StageError(f"worker on {platform.node()} has {told}: it would make other bytes")
    with tempfile.TemporaryDirectory(prefix="redub-") as folder:
        root = Path(folder)
        raw = root / "raw" / PurePosixPath(errand.raw).name  # a corpus may read the speaker off it
        raw.mkdir(parents=True)
        yield Work(errand.corpus, raw, root / "work", root / "out", root / "cache")
