"""Real GRID and CREMA-D through the whole road, as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from shards.ledger import OK, read_ledger
from shards.reader import open_dataset, read_clip
from shards.schema import VIDEO_FPS
from shards.verify import verify
from stages.clips import is_side_car
from stages.media.crops import compute_supersample, warp
from tests.build import build, find_stage_summary, pipeline, snapshot_files


def frames_by_ffmpeg(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Time stamps in ms and RGB frames, decoded here and now."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return (
            np.array([round(1000 * float(frame.time)) for frame in frames]),
            [np.ascontiguousarray(frame.to_ndarray(format="rgb24")) for frame in frames],
        )


def test_all_six_crema_d_clips_are_kept_with_their_times_mapped_right(
    crema_d: Path, landmarker: Path, tmp_path: Path
) -> None:
    before = snapshot_files(crema_d)
    summary = build(crema_d, tmp_path, dataset="crema-d")
    assert snapshot_files(crema_d) == before
    assert find_stage_summary(summary, "shard")["counts"] == {"ok": 6}
    assert list(verify(tmp_path / "shards", full=True)) == []

    dataset = open_dataset(tmp_path / "shards")
    for row in read_ledger(tmp_path / "clips.parquet"):
        assert (row["video_codec"], row["audio_codec"]) == ("vp6f", "mp3float")
        assert (row["video_start"], row["audio_start"]) == (0.027, 0.0)
        assert (row["speaker"], row["sentence"], row["split"]) == ("1001", "DFA", "train")
        sample = read_clip(dataset, row["clip_id"])
        stamps, frames = frames_by_ffmpeg(crema_d / row["path"])
        shown = [
            int(np.searchsorted(stamps, 27 + 40 * k, side="right")) - 1 for k in range(len(sample.frames))
        ]
        supersample = compute_supersample(sample.affine, 16)
        for k, source in enumerate(shown):
            expected = warp(frames[source], sample.affine[k], 128, supersample)
            assert np.array_equal(sample.frames[k], expected), f"{row['clip_id']}, frame {k}"
        assert shown[-1] >= len(stamps) - 2, "the clip is used to its end"


@pytest.fixture(scope="module")
def one_clip_late(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of all the GRID clips, and the place where one of them is to be."""
    raw = tmp_path_factory.mktemp("grid") / "raw"
    shutil.copytree(grid, raw, copy_function=shutil.copyfile)
    late = raw / "s1" / "bbal6n.mpg"
    if not late.is_file():
        late = min((raw / "s1").glob("p*.mpg"))
    aside = raw.parent / late.name
    late.rename(aside)
    return aside, late


def test_grid_is_kept_but_for_clips_with_a_stated_reason_and_one_more_clip_costs_one_part(
    one_clip_late: tuple[Path, Path], landmarker: Path, tmp_path: Path
) -> None:
    aside, late = one_clip_late
    raw = late.parent.parent
    build(raw, tmp_path, dataset="grid")
    aside.rename(late)
    summary = build(raw, tmp_path, dataset="grid")

    files = [path for path in raw.rglob("*") if path.is_file() and not is_side_car(path)]
    ledger = read_ledger(tmp_path / "clips.parquet")
    assert len(ledger) == len(files) == 211
    kept = [row for row in ledger if row["status"] == OK]
    assert len(kept) >= 205
    ended = {row["clip_id"]: row for row in ledger if row["status"] != OK}
    for clip_id in ("s1_bwwuzn", "s1_lgbf8n"):  # twelve grey frames at the start
        assert ended[clip_id]["code"] == "no_face"
        assert "no face in frames 0-" in ended[clip_id]["reason"]
    short = next(row for row in ledger if row["clip_id"] == "s1_lrae3s")
    assert short["notes"] == ["74 frames, grid clips have 75"]
    assert {row["speaker"] for row in kept} == {"s1", "s2", "s3", "s4", "s5", "s14", "s17"}
    assert all(row["frames"] == 75 for row in kept if row["clip_id"] != "s1_lrae3s")

    # The second run had one clip more than the first.
    for stage in summary["stages"]:
        assert stage["parts"]["built"] <= 1, stage
    assert [
        find_stage_summary(summary, name)["clips_computed"] for name in ("clips", "landmarks", "mels")
    ] == [1, 1, 1]
    assert list(verify(tmp_path / "shards", full=True)) == []
    told = pipeline("explain", tmp_path / "shards", "bwwuzn.mpg")
    assert "dropped in landmarks: no face in frames 0-" in told


def test_frames_of_real_clips_are_steady(crema_d: Path, landmarker: Path, tmp_path: Path) -> None:
    """Neighbouring crops differ by what moves in the face, not by a crop that shakes."""
    build(crema_d, tmp_path, dataset="crema-d")
    dataset = open_dataset(tmp_path / "shards")
    for clip_id in dataset.clips:
        sample = read_clip(dataset, clip_id)
        shift = np.abs(np.diff(sample.affine[:, :, 2], n=2, axis=0))
        assert shift.max() < 1.0, f"{clip_id}: the crop jumps by {shift.max():.2f} px against its own motion"
        assert len(sample.frames) / VIDEO_FPS == pytest.approx(sample.info["frames"] / VIDEO_FPS)
