"""What is asked of workers elsewhere, and what is not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import bucket_build as cluster
from pipeline.bucket_build import BuildJob
from shards.ledger import read_ledger
from shards.storage import FileInfo, LocalStorage
from stages.align import AlignParams
from stages.clips import ClipsParams
from stages.engine.outcome import StageError, Work, one_by_one
from stages.engine.sandbox import LimitParams
from stages.landmarks import LandmarksParams
from stages.media.crops import ShardParams
from stages.mels import MelsParams


@pytest.fixture
def errand(tmp_path: Path) -> BuildJob:
    """Places that are folders, which all workers see; two files that are no videos."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"no video")
    (tmp_path / "raw" / "b.mp4").write_bytes(b"")
    (tmp_path / "raw" / "notes.txt").write_text("a side-car")
    return BuildJob(
        "folder", str(tmp_path / "raw"), str(tmp_path / "bucket"), ClipsParams(), LandmarksParams(),
        AlignParams(), MelsParams(), ShardParams(), LimitParams(), cluster.tools(),
    )  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work("folder", tmp_path / "raw", tmp_path / "work", tmp_path / "published", tmp_path / "cache")


def test_what_has_a_receipt_is_not_done_again(errand: BuildJob, work: Work) -> None:
    first = cluster.look(errand, work, one_by_one)
    assert (first.clips, first.clips_computed) == (2, 1), "two files, one task"
    codes = {row["path"]: row["code"] for row in read_ledger(work.ledger)}
    assert codes == {"a.mp4": "not_media", "b.mp4": "empty"}
    assert cluster.look(errand, work, one_by_one).clips_computed == 0
    assert (
        cluster.look(replace(errand, limits=LimitParams(memory_mb=999)), work, one_by_one).clips_computed == 0
    )


@pytest.mark.parametrize("change", ["file", "params", "receipt"])
def test_what_changed_is_done_again(change: str, errand: BuildJob, work: Work) -> None:
    cluster.look(errand, work, one_by_one)
    if change == "file":
        (work.raw / "b.mp4").write_bytes(b"still no video")
    elif change == "params":
        errand = replace(errand, clips=ClipsParams(min_seconds=1))
    else:
        (receipt,) = Path(errand.out, cluster.RECEIPTS).iterdir()
        receipt.write_text("[cut")
    assert cluster.look(errand, work, one_by_one).clips_computed == 1


def test_a_worker_with_other_libraries_refuses(errand: BuildJob, work: Work) -> None:
    other = replace(errand, tools=errand.tools | {"av": "1.0"})
    with pytest.raises(StageError, match=r"worker on .* has av .*, expected 1\.0: it would make other bytes"):
        cluster.look(other, work, one_by_one)


class Named(LocalStorage):
    """A bucket may name its objects as it likes."""

    def __init__(self, *names: str) -> None:
        super().__init__(Path("bucket"))
        self.listed = names

    def tree(self) -> Iterator[FileInfo]:
        return (FileInfo(name, 1, "v") for name in self.listed)


@pytest.mark.parametrize(
    "name", ["../out.mp4", "a/../../out.mp4", "/etc/out.mp4", "a//b.mp4", "./a.mp4", "a\0.mp4"]
)
def test_a_name_that_would_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(StageError, match="is no plain path"):
        cluster.clips_in(Named("good.mp4", name))


def test_a_name_that_is_file_and_folder_is_refused() -> None:
    with pytest.raises(StageError, match="a folder that is also a file"):
        cluster.clips_in(Named("a.mp4", "a.mp4/b.mp4"))


def test_a_bucket_without_clips_is_an_error() -> None:
    with pytest.raises(StageError, match="holds no file that could be a clip"):
        cluster.clips_in(Named("notes.txt", ".git/a.mp4"))
