"""What is asked of workers elsewhere, and what is not asked again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from pipeline import bucket_build
from pipeline.bucket_build import BuildJob
from pipeline.params import Params
from pipeline.tools import list_tools
from shards.checksum import file_sha256
from shards.index import INDEX_SCHEMA
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.ledger import build_ledger, read_ledger, write_ledger
from shards.reader import open_dataset
from shards.retry import RetryError
from shards.schema import ShardError
from shards.storage import FileInfo, LocalStorage
from shards.table import PackedRows, Rows
from shards.writer import make_shard_name
from stages.clips import ClipsParams, find_ledger
from stages.engine.outcome import StageError
from stages.engine.parts import Part, plan_parts
from stages.engine.sandbox import LimitParams
from stages.engine.stage import Context, Report, Work
from stages.shard import PackedShard, check_packed
from stages.speech import SpeechParams
from tests.alterations import make_dataset

CONTEXT = Context()
FolderSplit = Literal["clip", "speaker"]


@pytest.fixture
def job(tmp_path: Path) -> BuildJob:
    """Storages that are folders, which all workers see; two files that are no videos."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "raw" / "b.mp4").write_bytes(b"")
    (tmp_path / "raw" / "notes.txt").write_text("a side-car")
    return BuildJob("folder", str(tmp_path / "raw"), str(tmp_path / "bucket"), Params(), list_tools(Params()))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work("folder", tmp_path / "raw", tmp_path / "work", tmp_path / "published", tmp_path / "cache")


def test_what_has_a_receipt_is_not_done_again(job: BuildJob, work: Work) -> None:
    first = bucket_build.probe_bucket(job, work, CONTEXT)
    assert (first.clips, first.clips_computed) == (2, 1), "two files, one task"
    codes = {row["path"]: row["code"] for row in read_ledger(work.ledger)}
    assert codes == {"a.mp4": "not_media", "b.mp4": "empty"}
    assert bucket_build.probe_bucket(job, work, CONTEXT).clips_computed == 0
    other_limits = replace(job.params, limits=LimitParams(memory_mb=999))
    other = replace(job, params=other_limits)
    assert bucket_build.probe_bucket(other, work, CONTEXT).clips_computed == 0


@pytest.mark.parametrize("change", ["file", "params", "receipt", "row gone", "row twice", "row of another"])
def test_what_changed_is_done_again(change: str, job: BuildJob, work: Work) -> None:
    bucket_build.probe_bucket(job, work, CONTEXT)
    if change == "file":
        (work.raw / "b.mp4").write_bytes(b"still no video")
    elif change == "params":
        job = replace(job, params=replace(job.params, clips=ClipsParams(min_seconds=1)))
    else:
        (receipt,) = Path(job.out, bucket_build.RECEIPTS).iterdir()
        rows = json.loads(receipt.read_text())
        altered = {
            "row gone": rows[:1],
            "row twice": [*rows, rows[0]],
            "row of another": [rows[0], rows[1] | {"path": "c.mp4"}],
        }
        receipt.write_text(json.dumps(altered[change]) if change in altered else "[cut")
    assert bucket_build.probe_bucket(job, work, CONTEXT).clips_computed == 1


def test_another_folder_split_moves_clips_whose_facts_have_a_receipt(job: BuildJob, work: Work) -> None:
    for speaker in "abcdef":
        (work.raw / speaker).mkdir()
        for number in range(8):
            (work.raw / speaker / f"{number}.mp4").write_bytes(b"no video")

    def build(split: FolderSplit, folder: str) -> Report:
        params = ClipsParams(test_share=0.5, folder_split=split)
        other = replace(job, params=replace(job.params, clips=params), out=str(work.raw.parent / folder))
        return bucket_build.probe_bucket(other, work, CONTEXT)

    def read_splits() -> dict[str, str]:
        return {row["path"]: row["split"] for row in read_ledger(work.ledger)}

    splits = {}
    for split in get_args(FolderSplit):
        assert build(split, f"{split} alone").clips_computed > 0
        splits[split] = read_splits()
    speakers = {(path.partition("/")[0], split) for path, split in splits["speaker"].items() if "/" in path}
    assert len(speakers) == 6, "each speaker is in one split"
    assert splits["clip"] != splits["speaker"]
    build("clip", "both")
    for split in reversed(get_args(FolderSplit)):
        assert build(split, "both").clips_computed == 0
        assert read_splits() == splits[split]


class Hashing(LocalStorage):
    """A bucket that knows the sha256 of its objects."""

    def has_file(self, name: str, size: int, sha256: str) -> bool:
        return super().has_file(name, size, sha256) and file_sha256(self.path / name) == sha256


@pytest.fixture
def shard_path(job: BuildJob, work: Work, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shard of the only part, in the bucket beside its receipt."""
    monkeypatch.setattr(bucket_build, "open_storage", lambda address: Hashing(Path(address)))
    dataset = open_dataset(make_dataset(work.raw.parent / "shards"))
    entry = next(entry for entry in dataset.shards.values() if entry.split == "train")
    rows = [row for row in dataset.clips.values() if row["split"] == "train"]
    frames = {row["clip_id"]: row["frames"] for row in rows}
    facts = {"sha256": "0" * 64, "video_start": 0.0, "video_seconds": 1.0, "fps": 25.0, "split": "train"}
    usable = (row for row in dataset.ledger() if row["clip_id"] in frames)
    ledger = build_ledger(row | facts | {"frames": frames[row["clip_id"]]} for row in usable)
    write_ledger(find_ledger(work), ledger)
    (part,) = plan_parts(ledger, job.params.parts)
    path = Path(job.out, make_shard_name("train", 0, entry.sha256))
    receipt = path.parent / bucket_build.RECEIPTS / f"{job.make_part_key(part)}.json"
    receipt.parent.mkdir(parents=True)
    shutil.copyfile(dataset.folder / entry.name, path)
    packed = PackedShard(replace(entry, name=path.name), PackedRows.from_rows(rows, INDEX_SCHEMA))
    receipt.write_text(json.dumps(bucket_build.BuiltPart(packed, ledger).to_json()))
    return path


@pytest.mark.parametrize("change", ["", "other bytes", "cut", "gone"])
def test_a_receipt_counts_only_where_the_bucket_has_its_shard(
    change: str, shard_path: Path, job: BuildJob, work: Work
) -> None:
    data = shard_path.read_bytes()
    if change == "gone":
        shard_path.unlink()
    elif change:
        shard_path.write_bytes(data[:-1] + (b"" if change == "cut" else b"x"))
    built: list[Any] = []

    def map_tasks(task: object, items: Sequence[Any], **_: object) -> Iterator[Any]:
        built.extend(items)
        return iter(())

    context = Context(map_tasks, dataset_params=job.params.describe_dataset())
    report = bucket_build.build_shards(job, work, context)
    assert len(built) == report.parts["built"] == (1 if change else 0)


def test_a_bucket_that_cannot_be_reached_is_not_one_without_receipts(
    shard_path: Path, job: BuildJob, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Hashing, name: str, *, sha256: str | None = None) -> bytes:
        raise RetryError(f"{name}: given up after 20 tries (connection lost)")

    monkeypatch.setattr(Hashing, "read_all", fail)
    with pytest.raises(RetryError, match="given up"):
        bucket_build.build_shards(job, work, CONTEXT)


def test_a_part_and_its_tools_depend_on_the_encoder_and_are_as_before_without_one(job: BuildJob) -> None:
    part = Part("train", 0, Rows.from_rows([], LEDGER_SCHEMA))
    speech = SpeechParams("whisper-tiny.en")
    with_encoder = replace(job, params=replace(job.params, speech=speech))
    elsewhere = replace(job, params=replace(job.params, speech=replace(speech, model="weights.bin")))
    assert with_encoder.make_part_key(part) == elsewhere.make_part_key(part) != job.make_part_key(part)
    assert "stage speech" not in list_tools(job.params)
    assert {"numpy", "scipy"} <= list_tools(job.params).keys(), "which librosa computes mels by"
    tools = list_tools(with_encoder.params)
    assert {"stage speech", "speech encoder", "torch"} <= tools.keys()


def test_a_worker_with_other_libraries_refuses(job: BuildJob, work: Work) -> None:
    other = replace(job, tools=job.tools | {"av": "1.0"})
    with pytest.raises(StageError, match=r"worker on .* has av .*, expected 1\.0: it would make other bytes"):
        bucket_build.probe_bucket(other, work, CONTEXT)


class Named(LocalStorage):
    """A bucket may name its objects as it likes."""

    def __init__(self, *names: str) -> None:
        super().__init__(Path("bucket"))
        self.listed = names

    def walk(self) -> Iterator[FileInfo]:
        return (FileInfo(name, 1, "v") for name in self.listed)


@pytest.mark.parametrize(
    "name", ["../out.mp4", "a/../../out.mp4", "/etc/out.mp4", "a//b.mp4", "./a.mp4", "a\0.mp4"]
)
def test_a_name_that_would_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(StageError, match="is no plain path"):
        bucket_build.list_clips(Named("good.mp4", name), ClipsParams())


def test_a_name_that_is_file_and_folder_is_refused() -> None:
    with pytest.raises(StageError, match="a folder that is also a file"):
        bucket_build.list_clips(Named("a.mp4", "a.mp4/b.mp4"), ClipsParams())


def test_a_bucket_without_clips_is_an_error() -> None:
    with pytest.raises(StageError, match="holds no file that could be a clip"):
        bucket_build.list_clips(Named("notes.txt", ".git/a.mp4"), ClipsParams())


@pytest.mark.parametrize(
    "change", ["", "number", "split", "clips", "frames", "sha256", "clip of another", "twice"]
)
def test_only_the_shard_of_a_part_is_taken_as_its_shard(change: str, tmp_path: Path) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "shards"))
    entry = next(entry for entry in dataset.shards.values() if entry.split == "train")
    entry = replace(entry, name=make_shard_name("train", 0, entry.sha256))
    rows = [row for row in dataset.clips.values() if row["split"] == "train"]
    ids = {row["clip_id"] for row in rows}
    part = Part("train", 0, build_ledger(row for row in dataset.ledger() if row["clip_id"] in ids))
    if change == "number":
        entry = replace(entry, name=make_shard_name("train", 1, entry.sha256))
    elif change == "clip of another":
        rows[0]["clip_id"] = "s9_other"
    elif change == "twice":
        rows[0]["clip_id"] = rows[1]["clip_id"]
    elif change in ("clips", "frames"):
        entry = replace(entry, **{change: 1})  # type: ignore[arg-type]
    elif change:
        entry = replace(entry, **{change: "f" * 64})  # type: ignore[arg-type]
    packed = PackedShard(entry, PackedRows.from_rows(rows, INDEX_SCHEMA))
    if not change:
        check_packed(packed, part, "receipt")
        return
    with pytest.raises(ShardError, match="receipt: describes"):
        check_packed(packed, part, "receipt")
