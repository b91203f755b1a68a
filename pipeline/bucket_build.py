"""Builds a dataset on machines that share nothing but buckets.

A worker downloads what it needs from the bucket of raw clips to a scratch folder, runs the stages there as
one machine does, and uploads a finished shard to the other bucket. Beside the shard it leaves a receipt: the
outcomes of the clips, under a key of everything that went in. So a worker, the scheduler or the command may
die at any moment: the next run reads the receipts, and does the work that has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Generic

from pipeline.dataset_stages import STAGES, carry_ledger, list_stages
from pipeline.params import Params
from pipeline.tools import check_tools
from shards.documents import Document, check_document, parse_json
from shards.index import ShardFields, check_index_rows, make_shard_entry
from shards.ledger import FAILED, build_ledger, check_ledger_rows, select_unusable, write_ledger
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.reader import read_unless_damaged
from shards.schema import ShardError
from shards.storage import FileInfo, Storage, open_storage
from shards.table import PackedRows, Rows
from stages import clips, shard, speech
from stages.clips import ClipsParams, RawFile
from stages.engine.cache import digest
from stages.engine.outcome import Outcome, StageError
from stages.engine.parts import Part, PartParams, group_by_hash, plan_parts
from stages.engine.stage import Context, Item, Report, Result, Work
from stages.shard import PackedShard

RECEIPTS = "receipts"  # folder beside the shards
READERS = 16  # receipts read at once
KEY_LETTERS = 32
FILES_PER_TASK = PartParams(clips_per_part=64)


@dataclass(frozen=True, slots=True)
class BuildJob:
    """What every worker must know."""

    corpus: str
    raw: str  # address of the raw clips
    out: str  # address of the shards
    params: Params
    tools: dict[str, str]  # versions on the command's machine; others would make other bytes

    def make_probe_key(self, files: Sequence[FileInfo]) -> str:
        """Key of the facts of some files: a digest of everything that decides them."""
        params = self.params.clips.select_probe_params()
        facts = digest(self.tools, self.corpus, params, [asdict(file) for file in files])
        return f"{clips.STAGE}-{facts[:KEY_LETTERS]}"

    def make_part_key(self, part: Part) -> str:
        """Key of a part's shard: a digest of everything that decides it, and not of paths or limits."""
        landmarks = replace(self.params.landmarks, model="")
        params: list[Any] = [landmarks, self.params.align, self.params.mels, self.params.shard]
        if speech.STAGE in list_stages(self.params):
            params.append(replace(self.params.speech, model=""))
        return f"part-{digest(self.tools, params, part.name, list(part.rows))[:KEY_LETTERS]}"


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """The result of a part. Its receipt holds the same."""

    packed: PackedShard | None  # None when no clip of the part is usable
    ledger: Rows  # of its clips, after the last stage

    def to_json(self) -> dict[str, Any]:
        packed = self.packed and {"entry": asdict(self.packed.entry), "index": list(self.packed.index)}
        return {"packed": packed, "ledger": list(self.ledger)}

    @classmethod
    def from_json(cls, receipt: Any, name: str) -> BuiltPart:
        """The result in a receipt. Raises ShardError for anything else: a bucket is not ours alone."""
        check_document(receipt, ReceiptFields, name)
        ledger, packed = check_ledger_rows(receipt["ledger"], name), receipt["packed"]
        if packed is None:
            return cls(None, ledger)
        entry = make_shard_entry(packed["entry"])
        return cls(PackedShard(entry, check_index_rows(packed["index"], entry.name, name)), ledger)


class PackedFields(Document):
    """A shard in a receipt. Its rows are checked as those of an index."""

    entry: ShardFields
    index: list[dict[str, Any]]


class ReceiptFields(Document):
    """The receipt of a part. Its rows are checked as those of a ledger."""

    packed: PackedFields | None
    ledger: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Task(Generic[Item]):
    """Work for one worker, and the key of its receipt."""

    job: BuildJob
    key: str
    item: Item

    @property
    def receipt_name(self) -> str:
        return f"{self.key}.json"


def probe_bucket(job: BuildJob, work: Work, context: Context) -> Report:
    """Stage 1: a row for every file of the raw bucket, written to ``clips.parquet``."""
    report = Report(clips.STAGE)
    raw = open_storage(job.raw)
    files, left_out = list_clips(raw, job.params.clips)
    raw_name = PurePosixPath(job.raw).name
    splits = clips.read_splits(job.corpus, (PurePosixPath(file.name) for file in files), raw_name, raw)
    tasks = [
        Task(job, job.make_probe_key(group), group)
        for _, group in group_by_hash(files, lambda file: file.name, FILES_PER_TASK)
    ]

    def read_rows(receipt: Any, task: Task[tuple[FileInfo, ...]]) -> Rows:
        name = task.receipt_name
        if not isinstance(receipt, list):
            raise ShardError(f"{name}: holds {type(receipt).__name__}, expected a list of rows")
        ledger = _check_paths(check_ledger_rows(receipt, name), [file.name for file in task.item], name)
        # The key of a receipt does not depend on how a folder is split: no file need be read again for it.
        return clips.choose_splits(ledger, job.corpus, raw_name, job.params.clips)

    rows, report.clips_computed = _run_missing(
        probe_group,
        tasks,
        context,
        label=f"{clips.STAGE}: files",
        count_frames=len,
        receipts=_open_receipts(job),
        parse_receipt=read_rows,
    )
    rows.append(
        build_ledger(
            clips.make_row(file, None, Outcome(), job.corpus, raw_name, job.params.clips) for file in left_out
        )
    )
    clips.write_clips(work, Rows.concatenate(rows, LEDGER_SCHEMA), job.params.clips, report, splits)
    return report


def build_shards(job: BuildJob, work: Work, context: Context) -> Report:
    """Stages 2 to 5: shards in the bucket; their tables and their manifest in ``work.out``."""
    report = Report(shard.STAGE)
    parts = plan_parts(clips.read_clips(work), job.params.parts)
    tasks = [Task(job, job.make_part_key(part), part) for part in parts]
    out = open_storage(job.out)

    def read_part(receipt: Any, task: Task[Part]) -> BuiltPart | None:
        name = task.receipt_name
        part = BuiltPart.from_json(receipt, name)
        _check_paths(part.ledger, task.item.rows.table["path"].to_pylist(), name)
        if part.packed is None:
            return part
        shard.check_packed(part.packed, task.item, name)
        entry = part.packed.entry
        return part if out.has_file(entry.name, entry.bytes, entry.sha256) else None

    built, n_computed = _run_missing(
        build_part,
        tasks,
        context,
        label=f"{shard.STAGE}: parts",
        count_frames=lambda part: part.n_frames,
        receipts=_open_receipts(job),
        parse_receipt=read_part,
    )
    ledgers = chain((part.ledger for part in built), [select_unusable(clips.read_clips(work))])
    ledger = Rows.concatenate(ledgers, LEDGER_SCHEMA)
    write_ledger(work.ledger, ledger)
    shards = [part.packed for part in built if part.packed]
    report.parts = {"total": len(tasks), "kept": len(tasks) - n_computed, "built": n_computed}
    report.clips_computed = n_computed
    report.count_rows(ledger)
    report.frames = sum(packed.entry.frames for packed in shards)
    if shards:
        dataset_params, licence = context.dataset_params, context.licence
        shard.finish_dataset(work, job.params.shard, dataset_params, shards, ledger, licence=licence)
    return report


def probe_group(task: Task[tuple[FileInfo, ...]]) -> Rows:
    """Read the facts of some files. Runs on a worker."""
    job = task.job
    context = Context(limits=job.params.limits)
    with _make_scratch(job) as work:
        raw = open_storage(job.raw)
        for file in task.item:
            raw.download(file.name, work.raw / file.name, size=file.bytes)
        rows = PackedRows(clips.probe_files(work, job.params.clips, context, Report(clips.STAGE)).table)
    if all(row["status"] != FAILED for row in rows):
        _write_receipt(task, list(rows))
    return rows


def build_part(task: Task[Part]) -> BuiltPart:
    """Build a part from its raw clips to a shard in the bucket. Runs on a worker."""
    job, part = task.job, task.item
    context = Context(limits=job.params.limits, dataset_params=job.params.describe_dataset())
    with _make_scratch(job) as work:
        raw, out = open_storage(job.raw), open_storage(job.out)
        for row in part.rows:
            raw.download(row["path"], work.raw / row["path"], size=row["bytes"], sha256=row["sha256"])
        write_ledger(work.stage_folder(clips.STAGE) / clips.LEDGER_NAME, part.rows)
        for name in list_stages(job.params):
            if name != clips.STAGE:
                STAGES[name].run(work, [part], getattr(job.params, name), context)
        shards = shard.read_packed(work, [part])
        for packed in shards:
            out.upload(work.out / packed.entry.name, packed.entry.name, sha256=packed.entry.sha256)
        ledger = PackedRows(carry_ledger(work, shard.STAGE, [part], job.params).table)
        built = BuiltPart(shards[0] if shards else None, ledger)
    if all(row["status"] != FAILED for row in ledger):
        _write_receipt(task, built.to_json())
    return built


def list_clips(raw: Storage, params: ClipsParams) -> tuple[list[FileInfo], list[RawFile]]:
    """The files of a storage that get a row, and what is left out by its name.

    Raises StageError for a name that no folder can hold.
    """
    files: list[FileInfo] = []
    left_out: dict[PurePosixPath, RawFile] = {}
    for file in raw.walk():
        path = PurePosixPath(file.name)
        if not clips.gets_row(path):
            continue
        if (item := clips.find_left_out(path, params)) is not None:
            left_out[item.path] = item
        else:
            files.append(file)
    if not files and not left_out:
        raise StageError(f"--raw {raw.address}: holds no file that could be a clip")
    names = {file.name for file in files}
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name or "\0" in name:
            raise StageError(f"--raw {raw.address}: {name!r} is no plain path below it; rename it")
        if not names.isdisjoint(parent.as_posix() for parent in path.parents):
            raise StageError(f"--raw {raw.address}: {name!r} is in a folder that is also a file; rename it")
    return files, list(left_out.values())


def _run_missing(
    function: Callable[[Task[Item]], Result],
    tasks: Sequence[Task[Item]],
    context: Context,
    *,
    label: str,
    count_frames: Callable[[Item], int],
    receipts: Storage,
    parse_receipt: Callable[[Any, Task[Item]], Result | None],
) -> tuple[list[Result], int]:
    """The result of each task, from its receipt or from a worker; and how many workers computed.

    ``parse_receipt`` makes a result of a receipt's JSON, or None when the shard that it names is not in the
    bucket. It raises ShardError for a receipt that is not the task's: a bucket is not ours alone. Then the
    task runs again; where the bucket cannot be reached, RetryError is raised, since there may be a receipt.
    """
    names = {file.name for file in receipts.walk()}

    def read_receipt(task: Task[Item]) -> Result | None:
        if task.receipt_name not in names:
            return None
        return parse_receipt(parse_json(receipts.read_all(task.receipt_name), task.receipt_name), task)

    def find_result(task: Task[Item]) -> Result | None:
        result = read_unless_damaged(read_receipt, task)
        return None if isinstance(result, ShardError) else result

    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(find_result, tasks))
    missing = [task for task, result in zip(tasks, results, strict=True) if result is None]
    sizes = [count_frames(task.item) for task in missing]
    computed = list(context.map_tasks(function, missing, label=label, sizes=sizes))
    return [*(result for result in results if result is not None), *computed], len(missing)


def _check_paths(ledger: Rows, paths: Sequence[str], name: str) -> Rows:
    """The rows of a receipt. Raises ShardError unless they are of exactly the files of its task."""
    if sorted(ledger.table["path"].to_pylist()) != sorted(paths):
        raise ShardError(f"{name}: its {len(ledger)} rows are not of the {len(paths)} files of its task")
    return ledger


def _write_receipt(task: Task[Any], receipt: object) -> None:
    """Upload a receipt. It comes last: a reader need not check that its shard is complete."""
    data = json.dumps(receipt).encode()
    with tempfile.TemporaryDirectory(prefix="redub.") as folder:
        path = Path(folder) / task.receipt_name
        path.write_bytes(data)
        _open_receipts(task.job).upload(path, path.name, sha256=hashlib.sha256(data).hexdigest())


def _open_receipts(job: BuildJob) -> Storage:
    return open_storage(f"{job.out}/{RECEIPTS}")


@contextlib.contextmanager
def _make_scratch(job: BuildJob) -> Iterator[Work]:
    """Folders for one task on the worker's own disk. Raises StageError when its libraries differ."""
    check_tools(job.params, job.tools)
    with tempfile.TemporaryDirectory(prefix="redub-") as folder:
        root = Path(folder)
        raw = root / "raw" / PurePosixPath(job.raw).name  # a corpus may read the speaker from its name
        raw.mkdir(parents=True)
        yield Work(job.corpus, raw, root / "work", root / "out", root / "cache")
