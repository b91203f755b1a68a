"""Anybody's output is scored, clip by clip, and what cannot be is told: on made faces, without networks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from shards.ledger import FAILED
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset, read_clip
from stages.engine.outcome import Outcome, StageError, one_by_one
from stages.engine.sandbox import LimitParams
from stages.evaluate import measure
from stages.evaluate import run as evaluate
from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import MeasureTask, MeasureTools, load_measured
from stages.evaluate.metrics.mouth import correlation
from stages.evaluate.network_metrics import LSE, LSE_REAL, Networks
from stages.evaluate.run import CLIPS, FRAMES, METRICS, STORY, EvaluateRequest
from stages.evaluate.scores import CLIPS_SCHEMA, FRAMES_SCHEMA
from stages.evaluate.table import BASELINES, FROZEN, PREVIOUS, STAGE, TRUTH, item_of
from stages.sample.pairs import CROPS, Pair, make_pairs
from tests import drawings
from tests.build import hashes
from tests.drawings import in_the_box
from tests.shards.test_publish import served

pytestmark = pytest.mark.usefixtures("no_networks")

Frames = NDArray[np.uint8]
LENGTHS = {"s1_a": 24, "s1_b": 26, "s1_c": 24, "s1_d": 24}
OWN = {clip_id: Pair(clip_id, clip_id) for clip_id in LENGTHS}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four clips to score and one to take mouths from."""
    return open_dataset(drawings.dataset(tmp_path_factory.mktemp("made") / "shards", LENGTHS, trained=30))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    opened: Dataset, cache: Path, out: Path, *generated: tuple[str, Path], **more: Any
) -> evaluate.Evaluation:
    asked = EvaluateRequest(str(opened.folder), out, cache, generated, **({"landmarks": False} | more))
    return evaluate.run(asked, LimitParams(), one_by_one)


def noisy(opened: Dataset, clip_id: str, strength: float = 20) -> Frames:
    """A clip with noise in its boxes."""
    frames = read_clip(opened, clip_id).frames
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    return in_the_box(frames, np.clip(frames + noise, 0, 255).astype(np.uint8))


def find_rows(found: evaluate.Evaluation, row: str) -> Mapping[str, dict[str, Any]]:
    return {told["name"]: told for told in found.rows if told["row"] == row}


def test_every_clip_is_in_every_row_once_with_what_became_of_it(
    opened: Dataset, cache: Path, tmp_path: Path
) -> None:
    drawn = {OWN[name]: noisy(opened, name) for name in LENGTHS if name != "s1_b"}
    drawn[OWN["s1_c"]] = drawn[OWN["s1_c"]][:5]
    folder = drawings.samples(tmp_path / "samples", opened, drawn, audio="own")
    altered = folder / CROPS / "s1_d.tar"
    altered.write_bytes(altered.read_bytes()[:-512])
    found = run(opened, cache, tmp_path / "out", ("", folder))

    assert {told["row"] for told in found.rows} == {"ours (own audio)", *BASELINES}
    for row in ("ours (own audio)", *BASELINES):
        assert sorted(told["clip_id"] for told in found.rows if told["row"] == row) == sorted(LENGTHS)
    ours = find_rows(found, "ours (own audio)")
    assert {name: (told["status"], told["code"]) for name, told in ours.items()} == {
        "s1_a": ("ok", ""),
        "s1_b": ("dropped", "missing"),
        "s1_c": ("dropped", "too_short"),
        "s1_d": ("dropped", "altered"),
    }
    assert "5 frames" in ours["s1_c"]["reason"]
    assert ours["s1_a"]["frames"] == 24 and ours["s1_b"]["psnr_box_db"] is None
    assert ours["s1_a"]["psnr_box_db"] == pytest.approx(22.5, abs=0.5), "noise of 20, clipped a little"
    assert found.metrics["ours (own audio)"]["psnr_box_db"]["n"] == 1


def test_what_brings_its_job_down_costs_no_other_row_of_the_clip(opened: Dataset, tmp_path: Path) -> None:
    digest = opened.manifest["digest"]
    tools = MeasureTools(
        str(opened.folder), digest, str(tmp_path), bank="", landmarker="", landmarker_sha256=""
    )
    truth, held, previous = (
        item_of(opened, tools, BASELINES[row], OWN["s1_a"]) for row in (TRUTH, FROZEN, PREVIOUS)
    )
    (tmp_path / "full").write_text("a file where a folder should be")
    held = replace(held, entry=str(tmp_path / "full" / "held.npz"))
    failed = measure.compute(MeasureTask((truth, held, previous), tools, LimitParams()))
    assert {entry: (why.status, why.code) for entry, why in failed.items()} == {held.entry: (FAILED, "crash")}
    assert all(not isinstance(load_measured(Path(item.entry)), Outcome) for item in (truth, previous))


def test_a_dataset_elsewhere_is_scored_without_a_copy_of_it(
    opened: Dataset, cache: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "theirs"
    drawings.video(videos / "s1_a.mp4", drawings.source_frames(np.zeros(LENGTHS["s1_a"])))
    near = run(opened, cache, tmp_path / "near", ("", videos))
    with served(opened.folder) as (address, _):
        asked = EvaluateRequest(
            address, tmp_path / "far", tmp_path / "anew", (("", videos),), landmarks=False
        )
        far = evaluate.run(asked, LimitParams(), one_by_one)
        assert not isinstance(locate_dataset(address), Path)
    assert far.rows == near.rows and far.metrics == near.metrics


def test_what_is_written_is_what_a_report_reads(opened: Dataset, cache: Path, tmp_path: Path) -> None:
    folder = drawings.samples(tmp_path / "s", opened, {OWN["s1_a"]: noisy(opened, "s1_a")}, audio="own")
    out = tmp_path / "out"
    found = run(opened, cache, out, ("mine", folder), clips=1)
    assert pq.read_schema(out / CLIPS).names == CLIPS_SCHEMA.names
    assert pq.read_table(out / CLIPS).to_pylist() == found.rows
    frames = pq.read_table(out / FRAMES)
    assert frames.schema.equals(FRAMES_SCHEMA) and frames.num_rows == 24 * 5
    assert json.loads((out / METRICS).read_text()) == found.metrics
    for cells in found.metrics.values():
        assert cells.keys() == COLUMNS.keys()
        for cell in cells.values():
            assert isinstance(cell, str) or cell["low"] <= cell["mean"] <= cell["high"]
    story = json.loads((out / STORY).read_text())
    assert story["dataset"] == opened.manifest["digest"] and story["metrics"].keys() == COLUMNS.keys()
    assert story["scored"]["mine (own audio)"]["step"] == 7
    assert story["metrics"]["psnr_box_db"]["region"] == "box"
    assert "get them from https://" in story["not_computed"]["lse_c"], "no weights, so no figure"
    assert found.metrics["ground truth"]["fid_box"].startswith(
        "not computed: Inception weights not found at "
    )
    header, first, *_ = (out / "plots" / "psnr_box_db.csv").read_text().splitlines()
    assert header.split(",")[0] == "frame" and "mine (own audio)" in header and first.startswith("0,")


def test_baselines_and_truth_rank_as_they_must(opened: Dataset, cache: Path, tmp_path: Path) -> None:
    found = run(opened, cache, tmp_path / "out").metrics
    assert found["ground truth"]["ssim_box"]["mean"] == 1
    assert found["ground truth"]["psnr_box_db"].startswith("not computed: infinite")
    assert found["frozen mouth"]["psnr_frame_db"]["mean"] > found["frozen mouth"]["psnr_box_db"]["mean"] + 5
    assert found["frozen mouth"]["smoothness_box"]["mean"] == 0
    assert found["frozen mouth"]["ssim_box"]["mean"] < found["nearest mel"]["ssim_box"]["mean"] < 1, (
        "these mels say what the mouth does"
    )


def test_a_second_run_measures_nothing_and_writes_the_same_bytes(opened: Dataset, tmp_path: Path) -> None:
    folder = drawings.samples(tmp_path / "s", opened, {OWN["s1_a"]: noisy(opened, "s1_a")}, audio="own")
    first = run(opened, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1)
    before = hashes(tmp_path / "out")
    assert first.computed == 1 + len(BASELINES)
    assert run(opened, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1).computed == 0
    lost = sorted((tmp_path / "cache" / STAGE).rglob("*.npz"))[0]
    lost.write_bytes(b"damaged")
    damaged = run(opened, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1)
    assert sum(told["code"] == "gone" for told in damaged.rows) == 1, "told, and not in silence"
    assert run(opened, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1).computed == 1
    assert hashes(tmp_path / "out") == before


def test_whole_pictures_of_another_system_score_as_its_crops_do(
    opened: Dataset, cache: Path, tmp_path: Path
) -> None:
    """The mouths of another clip, pasted: as crops, as whole pictures, as crops twice as large."""
    source = {
        name: drawings.source_frames(drawings.openings(k, 24)) for k, name in enumerate(("s1_a", "s1_b"))
    }
    x0, y0, x1, y1 = np.array([46, 90, 158, 158])  # of the source: the box and a little more
    whole = source["s1_a"].copy()
    whole[:, y0:y1, x0:x1] = source["s1_b"][:, y0:y1, x0:x1]
    crops = drawings.cropped(whole)
    drawings.video(tmp_path / "whole" / "s1_a.mp4", whole)
    drawings.video(tmp_path / "crops" / "s1_a.mp4", crops)
    drawings.video(tmp_path / "large" / "s1_a.mkv", crops.repeat(2, axis=1).repeat(2, axis=2))
    drawings.video(tmp_path / "fast" / "s1_a.mp4", whole.repeat(2, axis=0), fps=50)
    ours = drawings.samples(tmp_path / "ours", opened, {OWN["s1_a"]: crops}, audio="own")
    folders = [(name, tmp_path / name) for name in ("whole", "crops", "large", "fast")]
    metrics = run(opened, cache, tmp_path / "out", ("", ours), *folders, clips=1).metrics
    exact = metrics["ours (own audio)"]
    assert exact["psnr_box_db"]["mean"] < 30, "these are other mouths"
    for name, _ in folders:
        assert metrics[name]["psnr_box_db"]["mean"] == pytest.approx(exact["psnr_box_db"]["mean"], abs=0.4)
        assert metrics[name]["ssim_box"]["mean"] == pytest.approx(exact["ssim_box"]["mean"], abs=0.02)


def test_a_strangers_folder_may_hold_anything(opened: Dataset, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    good = drawings.video(folder / "s1_a.mp4", read_clip(opened, "s1_a").frames)
    secret = drawings.video(tmp_path / "elsewhere" / "s1_b.mp4", read_clip(opened, "s1_b").frames)
    (folder / "s1_b.mp4").symlink_to(secret)
    (folder / "s1_c.mp4").write_text("no video at all")
    drawings.video(folder / "s1_d.mp4", np.zeros((24, 48, 40, 3), np.uint8))
    for name in ("$(reboot).mp4", "-i.mp4", "s1_a~..mp4", "s1_a~s1_nobody.mp4", "notes.mp4\n.mp4"):
        (folder / name).write_bytes(good.read_bytes())
    (folder / "s1_a~s1_b.mp4").mkdir()
    drawings.video(folder / "s1_c~s1_d.mp4", read_clip(opened, "s1_c").frames[:4])
    found = run(opened, cache, tmp_path / "out", ("", folder))

    own = find_rows(found, "theirs")
    assert {name: told["code"] for name, told in own.items()} == {
        "s1_a": "", "s1_b": "missing", "s1_c": "not_media", "s1_d": "size",
    }  # fmt: skip
    assert "40x48, expected the source's 180x160 or the crop's 64x64" in own["s1_d"]["reason"]
    dubbed = find_rows(found, "theirs (swapped audio)")
    assert dubbed["s1_c~s1_d"]["code"] == "too_short" and dubbed["s1_a~s1_b"]["code"] == "missing"
    assert {told["clip_id"] for told in dubbed.values()} == set(LENGTHS), "who has no dubbed video is told"
    assert len(found.unasked["theirs"]) == 5


def test_folders_that_are_not_what_they_should_be_are_refused_in_one_line(
    opened: Dataset, cache: Path, tmp_path: Path
) -> None:
    folder = drawings.samples(tmp_path / "s", opened, {OWN["s1_a"]: noisy(opened, "s1_a")}, audio="own")
    with pytest.raises(StageError, match="there is a row 'ours"):
        run(opened, cache, tmp_path / "out", ("", folder), ("ours", folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"empty: holds neither .* such as s1_a.mp4"):
        run(opened, cache, tmp_path / "out", ("", tmp_path / "empty"))
    with pytest.raises(StageError, match="nowhere: cannot be listed"):
        run(opened, cache, tmp_path / "out", ("", tmp_path / "nowhere"))
    (folder / "samples.json").write_text('{"audio": "own", "params": {"seed": 0}, "dataset": "another"}')
    with pytest.raises(StageError, match="was drawn from the dataset another"):
        run(opened, cache, tmp_path / "out", ("", folder))
    (folder / "samples.json").write_text("{}")
    with pytest.raises(StageError, match=r"samples.json: cannot be read"):
        run(opened, cache, tmp_path / "out", ("", folder))


class Colours(nn.Module):
    """In the place of Inception: what it sees of a picture is its colours' mean and spread."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.ones(1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.strength * torch.cat([pictures.mean(dim=(2, 3)), pictures.std(dim=(2, 3))], dim=1)


def apart(drawn: Frames, truth: Frames) -> NDArray[np.float64]:
    """In the place of LPIPS: how far pixels are apart."""
    return np.abs(drawn / 255 - truth / 255).mean(axis=(1, 2, 3))


def test_networks_that_are_here_are_asked_of_every_row_once(
    opened: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(drawn: Frames, truth: Frames) -> NDArray[np.float64]:
        asked.append(len(drawn))
        return apart(drawn, truth)

    networks = Networks(None, counted, Colours(), {"lse_c": "no SyncNet"})  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "load_networks", lambda folder, **more: networks)
    own = drawings.samples(tmp_path / "own", opened, {OWN["s1_a"]: noisy(opened, "s1_a")}, audio="own")
    pair = make_pairs(opened, "test", "swapped", seed=0)[0]
    dubbed = drawings.samples(tmp_path / "dubbed", opened, {pair: noisy(opened, "s1_a")}, audio="swapped")
    folders = [("", own), ("", dubbed)]
    found = run(opened, tmp_path / "cache", tmp_path / "out", *folders, clips=1)
    truth, ours = found.metrics["ground truth"], found.metrics["ours (own audio)"]
    assert truth["lpips_frame"]["mean"] == 0 < ours["lpips_frame"]["mean"]
    assert truth["lpips_box"] == "not computed: not defined for these clips", "whose boxes are too low"
    assert truth["fid_box"]["mean"] == pytest.approx(0, abs=1e-6) and ours["fid_box"]["mean"] > 1e-4
    assert ours["fid_frame"]["n"] == 24, "frames, and not clips"
    swapped = found.metrics["ours (swapped audio)"]
    assert swapped["lpips_frame"].endswith("no truth shows these faces with another's speech")
    assert swapped["fid_box"]["mean"] > 1e-4
    assert truth["lse_c"] == "not computed: no SyncNet"
    n_asked = len(asked)
    again = run(opened, tmp_path / "cache", tmp_path / "out", *folders, clips=1)
    assert again.metrics == found.metrics and len(asked) == n_asked


class Brightness:
    """In the place of SyncNet: lips are as bright as they are, and speech as loud."""

    def lips(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean(dim=(1, 3, 4))

    def speech(self, windows: torch.Tensor) -> torch.Tensor:
        return windows[:, 0, 0, :5]


def test_lse_is_told_by_both_protocols_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landmarker: Path
) -> None:
    """The truth again as our crops and as another's whole pictures; and as crops, which have no others."""
    networks = Networks(Brightness(), None, None, {})  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "load_networks", lambda folder, **more: networks)
    raw = tmp_path / "raw"
    made = open_dataset(drawings.dataset(tmp_path / "shards", {"s1_a": 24}, raw=raw))
    truth = read_clip(made, "s1_a").frames
    ours = drawings.samples(tmp_path / "ours", made, {OWN["s1_a"]: truth}, audio="own")
    whole, small = tmp_path / "whole" / "s1_a.mp4", tmp_path / "small" / "s1_a.mp4"
    whole.parent.mkdir()
    whole.write_bytes((raw / "s1_a.mp4").read_bytes())
    drawings.video(small, truth)
    folders = [("", ours), ("whole", whole.parent), ("small", small.parent)]
    more = {"landmarks": True, "landmarker": str(landmarker)}
    found = run(made, tmp_path / "cache", tmp_path / "out", *folders, raw=raw, **more).metrics

    asked = {row: [cells[column] for column in (*LSE, *LSE_REAL)] for row, cells in found.items()}
    assert all(cell["n"] == 1 for row, cells in asked.items() if row != "nearest mel" for cell in cells)
    told = {row: [cell["mean"] for cell in cells] for row, cells in asked.items() if row != "nearest mel"}
    assert told["ours (own audio)"] == told["ground truth"]
    assert told["whole"][4:] == told["ground truth"][4:], "the same video"
    assert told["small"] == pytest.approx(told["ground truth"], rel=0.02)
    assert told["ground truth"][:4] != told["ground truth"][4:] != told["frozen mouth"][4:]
    story = json.loads((tmp_path / "out" / STORY).read_text())
    assert story["protocols"]["lse_d"].startswith("crops: ")
    assert story["protocols"]["lse_d_real"].startswith("real videos: ")
    assert story["without_lse"] == {}

    run(made, tmp_path / "cache", tmp_path / "out", *folders, raw=tmp_path / "nowhere", **more)
    story = json.loads((tmp_path / "out" / STORY).read_text())
    [(why, clips)] = story["without_lse"].items()
    assert why.endswith("s1_a.mp4 is no file") and clips == len(told)


def test_mouths_seen_in_made_faces_tell_who_obeys(
    opened: Dataset, cache: Path, tmp_path: Path, landmarker: Path
) -> None:
    """Clip a dubbed with b's speech: by its true mouth and by a's own; and a's own mouth two frames late."""
    pair = make_pairs(opened, "test", "swapped", seed=0)[0]
    a, b = (read_clip(opened, name) for name in (pair.clip_id, pair.audio_clip_id))
    n_frames = len(a.frames)
    obeys = in_the_box(a.frames, b.frames[:n_frames])
    late = in_the_box(a.frames, a.frames[np.maximum(0, np.arange(n_frames) - 2)])
    folders = [
        ("obeys", drawings.samples(tmp_path / "1", opened, {pair: obeys}, audio="swapped")),
        ("copies", drawings.samples(tmp_path / "2", opened, {pair: a.frames}, audio="swapped")),
        ("late", drawings.samples(tmp_path / "3", opened, {OWN["s1_a"]: late}, audio="own")),
    ]
    asked = replace(
        EvaluateRequest(str(opened.folder), tmp_path / "out", cache, tuple(folders), clips=1),
        landmarker=str(landmarker),
    )
    metrics = evaluate.run(asked, LimitParams(), one_by_one).metrics
    obedience = {row: cells["audio_obedience"] for row, cells in metrics.items()}
    assert obedience["ground truth"]["mean"] == pytest.approx(1)
    assert obedience["obeys (swapped audio)"]["mean"] > 0.5, (
        "in a clip of 24 frames noise counts for something"
    )
    assert obedience["copies (swapped audio)"]["mean"] == pytest.approx(-1)
    assert obedience["nearest mel"]["mean"] > 0.5, "these mels say what the mouth does"
    assert metrics["late (own audio)"]["opening_lag_frames"]["mean"] == 2
    assert metrics["ground truth"]["opening_lag_frames"]["mean"] == 0
    assert metrics["ground truth"]["mouth_distance_px"]["mean"] == 0
    assert metrics["late (own audio)"]["mouth_distance_px"]["mean"] > 0.3
    table = pq.read_table(tmp_path / "out" / FRAMES).to_pylist()
    seen = [told["opening"] for told in table if told["row"] == "ground truth" and told["name"] == "s1_a"]
    assert correlation(np.array(seen), drawings.openings(0, n_frames)) > 0.95
