"""Real GRID and CREMA-D through the whole road, as a user runs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from shards.ledger import OK, read_ledger
from shards.reader import open_dataset, read_clip
from shards.schema import VIDEO_FPS, Frames
from shards.verify import verify
from stages.clips import is_side_car
from stages.engine.sandbox import LimitParams
from stages.engine.stage import run_one_by_one
from stages.evaluate import phonemes
from stages.evaluate import run as evaluate
from stages.evaluate.run import EvaluateRequest
from stages.evaluate.table import MEAN_OPENING
from stages.media.crops import compute_supersample, warp
from stages.sample.pairs import Pair, count_pair_frames, make_pairs
from tests.build import build, build_in_process, find_stage_summary, pipeline, snapshot_files
from tests.evaluation import write_samples


def frames_by_ffmpeg(path: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Time stamps in ms and RGB frames, decoded here and now."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return (
            np.array([round(1000 * float(frame.time)) for frame in frames]),
            [np.ascontiguousarray(frame.to_ndarray(format="rgb24")) for frame in frames],
        )


@pytest.fixture(scope="module")
def crema_d_work(crema_d: Path, landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of all six clips, kept; the raw ones are as they were."""
    work = tmp_path_factory.mktemp("crema-d")
    before = snapshot_files(crema_d)
    summary = build(crema_d, work, dataset="crema-d")
    assert snapshot_files(crema_d) == before
    assert find_stage_summary(summary, "shard")["counts"] == {"ok": 6}
    return work


def test_all_six_crema_d_clips_are_kept_with_their_times_mapped_right(
    crema_d: Path, crema_d_work: Path
) -> None:
    assert list(verify(crema_d_work / "shards", full=True)) == []
    dataset = open_dataset(crema_d_work / "shards")
    for row in read_ledger(crema_d_work / "clips.parquet"):
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


ODD_CLIPS = {"bwwuzn", "lgbf8n", "lrae3s"}  # of GRID's s1: grey frames at the start, one frame less
CLIPS_PER_SPEAKER = 32  # besides; REDUB_ALL_CLIPS=1 takes all 211


@pytest.fixture(scope="module")
def one_clip_late(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of GRID clips of each speaker, and the place where one of them is to be."""
    raw = tmp_path_factory.mktemp("grid") / "raw"
    for speaker in sorted(path for path in grid.iterdir() if any(path.glob("*.mpg"))):
        clips = sorted(speaker.glob("*.mpg"))
        n_clips = len(clips) if os.environ.get("REDUB_ALL_CLIPS") else CLIPS_PER_SPEAKER
        step = -(-len(clips) // n_clips)
        (raw / speaker.name).mkdir(parents=True)
        for clip in {*clips[::step], *(clip for clip in clips if clip.stem in ODD_CLIPS)}:
            shutil.copyfile(clip, raw / speaker.name / clip.name)
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
    assert len(ledger) == len(files) >= 35
    kept = [row for row in ledger if row["status"] == OK]
    assert len(files) - len(kept) <= 6
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


def test_frames_of_real_clips_are_steady(crema_d_work: Path) -> None:
    """Neighbouring crops differ by what moves in the face, not by a crop that shakes."""
    dataset = open_dataset(crema_d_work / "shards")
    for clip_id in dataset.clips:
        sample = read_clip(dataset, clip_id)
        shift = np.abs(np.diff(sample.affine[:, :, 2], n=2, axis=0))
        assert shift.max() < 1.0, f"{clip_id}: the crop jumps by {shift.max():.2f} px against its own motion"
        assert len(sample.frames) / VIDEO_FPS == pytest.approx(sample.info["frames"] / VIDEO_FPS)


def score_true_mouths(
    shards: Path, folder: Path, split: str, *, alignments: Path | None, raw: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The table of ground truth as the generated clips: with own speech, swapped, and the source copied."""
    dataset = open_dataset(shards)
    swapped = make_pairs(dataset, split, "swapped", seed=0)

    def cut(clip_id: str, pair: Pair) -> Frames:
        return read_clip(dataset, clip_id).frames[: count_pair_frames(dataset, pair)]

    own = {pair: cut(pair.clip_id, pair) for pair in make_pairs(dataset, split, "own", seed=0)}
    obeys = {pair: cut(pair.audio_clip_id, pair) for pair in swapped}
    copies = {pair: cut(pair.clip_id, pair) for pair in swapped}
    generated = tuple(
        (name, write_samples(folder / name, dataset, clips, audio=audio))
        for name, clips, audio in (
            ("true", own, "own"), ("obeys", obeys, "swapped"), ("copies", copies, "swapped")
        )
    )  # fmt: skip
    request = EvaluateRequest(
        str(shards), folder / "out", folder / "cache", generated, split,
        mouths_only=True, alignments=alignments, raw=raw,
    )  # fmt: skip
    return evaluate.run(request, LimitParams(), run_one_by_one).metrics


def check_true_mouths(metrics: dict[str, dict[str, Any]]) -> None:
    """Scores that are known without measuring: of the speech's own mouth, and of the source's."""
    means = {
        row: {column: value["mean"] for column, value in values.items() if isinstance(value, dict)}
        for row, values in metrics.items()
    }
    obeys, copies = (means[f"{name} (swapped audio)"] for name in ("obeys", "copies"))
    true = means["true (own audio)"]
    assert obeys["obedience_speech"] == pytest.approx(1) == obeys["audio_obedience_net"]
    assert obeys["obedience_source"] == pytest.approx(0, abs=1e-6)
    assert copies["obedience_speech"] == pytest.approx(0, abs=1e-6)
    assert copies["obedience_source"] == pytest.approx(1) == -copies["audio_obedience_net"]
    assert true["silence_ratio"] == obeys["silence_ratio"] == true["smoothness_box"] == 1
    assert true["opening_correlation"] == pytest.approx(1)


def test_true_mouths_of_crema_d_listen_and_rest_in_silence(
    crema_d: Path, landmarker: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in sorted(crema_d.rglob("*.flv"))[:3]:
        shutil.copyfile(path, raw / path.name)
    build_in_process(raw, tmp_path / "work", dataset="crema-d")
    metrics = score_true_mouths(tmp_path / "work" / "shards", tmp_path, "train", alignments=None)
    check_true_mouths(metrics)
    assert metrics["true (own audio)"]["closure"].startswith("not computed: needs word times")


def test_true_lips_of_grid_are_closed_at_p_b_and_m(grid: Path, landmarker: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "s1"
    raw.mkdir(parents=True)
    for name in ("bbwtzp", "praj3a", "lbwr5a", "bbaf5a", "bbal6n"):  # the first three are in the test split
        shutil.copyfile(grid / "s1" / f"{name}.mpg", raw / f"{name}.mpg")
    build_in_process(raw.parent, tmp_path / "work", dataset="grid")
    metrics = score_true_mouths(
        tmp_path / "work" / "shards", tmp_path, "test", alignments=grid / "alignments"
    )
    check_true_mouths(metrics)
    closure = metrics["true (own audio)"]["closure"]
    assert closure["mean"] == 1 == metrics["copies (swapped audio)"]["closure_truth"]["mean"]
    if phonemes.is_installed():  # and without word times, by the sound of the raw files
        (raw / "praj3a.mpg").unlink()
        heard = score_true_mouths(
            tmp_path / "work" / "shards", tmp_path / "heard", "test", alignments=None, raw=raw.parent
        )
        assert heard["true (own audio)"]["closure"]["mean"] == 1
        assert heard["true (own audio)"]["closure"]["n"] == closure["n"] - 1 == 2
    timing = metrics[MEAN_OPENING]["opening_correlation"]["mean"]
    assert 0.2 < timing < 0.95, "GRID's sentences share their timing"
