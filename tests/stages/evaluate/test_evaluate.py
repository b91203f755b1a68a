"""Scoring of samples and of other systems' videos, clip by clip, on synthetic faces and without networks."""

from __future__ import annotations

import json
import shutil
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
from shards.schema import Frames
from stages.engine.outcome import Outcome, StageError
from stages.engine.sandbox import LimitParams
from stages.engine.stage import run_one_by_one
from stages.evaluate import measure
from stages.evaluate import run as evaluate
from stages.evaluate.columns import COLUMNS
from stages.evaluate.listening import OBEDIENCE
from stages.evaluate.measure import MeasureTask, MeasureTools, load_measurements
from stages.evaluate.network_metrics import LSE, LSE_REAL, Networks
from stages.evaluate.network_scores import score_rows_by_networks
from stages.evaluate.run import CLIPS, FRAMES, METRICS, RUN_INFO, SUMMARY, EvaluateRequest
from stages.evaluate.scores import CLIPS_SCHEMA, FRAMES_SCHEMA
from stages.evaluate.system_card import CARD, PICTURE, read_system_card
from stages.evaluate.table import BASELINES, FROZEN, MEAN_OPENING, PREVIOUS, STAGE, TRUTH, make_item
from stages.metrics.mouth import correlation
from stages.report.strips import read_picture
from stages.sample.pairs import CROPS, Pair, make_pairs
from tests import evaluation
from tests.build import hash_files
from tests.datasets import damage_clip
from tests.evaluation import replace_boxes
from tests.shards.test_publish import serve

pytestmark = pytest.mark.usefixtures("no_networks")

LENGTHS = {"s1_a": 24, "s1_b": 26, "s1_c": 24, "s1_d": 24}
OWN = {clip_id: Pair(clip_id, clip_id) for clip_id in LENGTHS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four clips to score and one training clip for the bank of mouths."""
    return open_dataset(
        evaluation.write_manifest(tmp_path_factory.mktemp("made") / "shards", LENGTHS, n_train_frames=30)
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    dataset: Dataset, cache: Path, out: Path, *generated: tuple[str, Path], **options: Any
) -> evaluate.EvaluationResult:
    options = {"landmarks": False} | options
    request = EvaluateRequest(str(dataset.folder), out, cache, generated, **options)
    return evaluate.run(request, LimitParams(), run_one_by_one)


def add_noise(dataset: Dataset, clip_id: str, strength: float = 20) -> Frames:
    """A clip's frames with noise in their boxes."""
    frames = read_clip(dataset, clip_id).frames
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    return replace_boxes(frames, np.clip(frames + noise, 0, 255).astype(np.uint8))


def find_rows(result: evaluate.EvaluationResult, row: str) -> Mapping[str, dict[str, Any]]:
    return {clip["name"]: clip for clip in result.rows if clip["row"] == row}


def test_every_clip_is_in_every_row_once_with_its_outcome(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    clips = {OWN[name]: add_noise(dataset, name) for name in LENGTHS if name != "s1_b"}
    clips[OWN["s1_c"]] = clips[OWN["s1_c"]][:5]
    folder = evaluation.write_samples(tmp_path / "samples", dataset, clips, audio="own")
    altered = folder / CROPS / "s1_d.tar"
    altered.write_bytes(altered.read_bytes()[:-512])
    result = run(dataset, cache, tmp_path / "out", ("", folder))

    assert {clip["row"] for clip in result.rows} == {"ours (own audio)", *BASELINES}
    for row in ("ours (own audio)", *BASELINES):
        assert sorted(clip["clip_id"] for clip in result.rows if clip["row"] == row) == sorted(LENGTHS)
    ours = find_rows(result, "ours (own audio)")
    assert {name: (clip["status"], clip["code"]) for name, clip in ours.items()} == {
        "s1_a": ("ok", ""),
        "s1_b": ("dropped", "missing"),
        "s1_c": ("dropped", "too_short"),
        "s1_d": ("dropped", "altered"),
    }
    assert "5 frames" in ours["s1_c"]["reason"]
    assert ours["s1_a"]["frames"] == 24 and ours["s1_b"]["psnr_box_db"] is None
    assert ours["s1_a"]["psnr_box_db"] == pytest.approx(22.5, abs=0.5), "noise of 20, clipped a little"
    assert result.metrics["ours (own audio)"]["psnr_box_db"]["n"] == 1


def test_an_item_that_crashes_its_job_costs_no_other_row_of_the_clip(
    dataset: Dataset, tmp_path: Path
) -> None:
    digest = dataset.manifest["digest"]
    tools = MeasureTools(
        str(dataset.folder), digest, tmp_path, bank=None, landmarker=None, landmarker_sha256=""
    )
    truth, frozen, previous = (
        make_item(dataset, tools, BASELINES[row], OWN["s1_a"]) for row in (TRUTH, FROZEN, PREVIOUS)
    )
    frozen = replace(frozen, kind="crops", crops=None)  # which nothing makes
    failures = measure.measure_task(MeasureTask((truth, frozen, previous), tools, LimitParams()))
    assert {entry: (outcome.status, outcome.code) for entry, outcome in failures.items()} == {
        frozen.cache_entry: (FAILED, "crash")
    }
    assert all(not isinstance(load_measurements(item.cache_entry), Outcome) for item in (truth, previous))


def test_a_dataset_at_a_web_address_is_scored_without_downloading_it(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "theirs"
    evaluation.write_video(videos / "s1_a.mp4", evaluation.draw_source_frames(np.zeros(LENGTHS["s1_a"])))
    local = run(dataset, cache, tmp_path / "local", ("", videos))
    with serve(dataset.folder) as (address, _):
        request = EvaluateRequest(
            address, tmp_path / "remote", tmp_path / "empty", (("", videos),), landmarks=False
        )
        remote = evaluate.run(request, LimitParams(), run_one_by_one)
        assert not isinstance(locate_dataset(address), Path)
    assert remote.rows == local.rows and remote.metrics == local.metrics


def test_the_files_hold_the_result_in_the_schemas_that_a_report_reads(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    folder = evaluation.write_samples(
        tmp_path / "s", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    out = tmp_path / "out"
    result = run(dataset, cache, out, ("mine", folder), clips=1)
    assert pq.read_schema(out / CLIPS).names == CLIPS_SCHEMA.names
    assert pq.read_table(out / CLIPS).to_pylist() == result.rows
    frames = pq.read_table(out / FRAMES)
    assert frames.schema.equals(FRAMES_SCHEMA) and frames.num_rows == 24 * 5
    assert json.loads((out / METRICS).read_text()) == result.metrics
    for values in result.metrics.values():
        assert values.keys() == COLUMNS.keys()
        for value in values.values():
            assert isinstance(value, str) or value["low"] is value["high"] is None, "of one clip"
    run_info = json.loads((out / RUN_INFO).read_text())
    assert run_info["dataset"] == dataset.manifest["digest"] and run_info["metrics"].keys() == COLUMNS.keys()
    assert run_info["scored"]["mine (own audio)"]["step"] == 7
    assert run_info["metrics"]["psnr_box_db"]["region"] == "box"
    assert "get them from https://" in run_info["not_computed"]["lse_c"], "no weights, so no value"
    assert result.metrics["ground truth"]["fid_box"].startswith(
        "not computed: Inception weights not found at "
    )
    header, first, *_ = (out / "plots" / "psnr_box_db.csv").read_text().splitlines()
    assert header.split(",")[0] == "frame" and "mine (own audio)" in header and first.startswith("0,")


def test_the_baselines_and_the_ground_truth_are_in_the_expected_order(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    metrics = run(dataset, cache, tmp_path / "out").metrics
    frozen = metrics["frozen mouth"]
    assert metrics["ground truth"]["ssim_box"]["mean"] == 1
    assert metrics["ground truth"]["psnr_box_db"]["mean"] == pytest.approx(58.92, abs=0.01)
    assert frozen["psnr_frame_db"]["mean"] > frozen["psnr_box_db"]["mean"] + 5
    assert frozen["smoothness_box"]["mean"] == 0
    assert metrics["ground truth"]["border_colour"]["mean"] == 0
    assert 0 < frozen["border_colour"]["mean"] < 10
    assert frozen["ssim_box"]["mean"] < metrics["nearest mel"]["ssim_box"]["mean"] < 1, (
        "these mels follow the mouth"
    )


def test_a_second_run_measures_nothing_and_writes_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    folder = evaluation.write_samples(
        tmp_path / "s", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    first = run(dataset, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1)
    before = hash_files(tmp_path / "out")
    assert first.n_measured == 1 + len(BASELINES)
    assert run(dataset, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1).n_measured == 0
    entry = sorted((tmp_path / "cache" / STAGE).rglob("*.npz"))[0]
    entry.write_bytes(b"damaged")
    damaged = run(dataset, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1)
    assert sum(clip["code"] == "gone" for clip in damaged.rows) == 1, "reported, not ignored"
    assert run(dataset, tmp_path / "cache", tmp_path / "out", ("", folder), clips=1).n_measured == 1
    assert hash_files(tmp_path / "out") == before


def test_a_card_has_a_systems_figures_and_a_picture_and_names_no_folder(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    pairs = make_pairs(dataset, "test", "swapped", seed=0)[:1]
    clips = {
        "own": {OWN["s1_a"]: add_noise(dataset, "s1_a")},
        "swapped": {pair: add_noise(dataset, pair.clip_id)[:24] for pair in pairs},
    }
    folders = [
        ("mine", evaluation.write_samples(tmp_path / audio, dataset, each, audio=audio))
        for audio, each in clips.items()
    ]
    others = {OWN["s1_b"]: add_noise(dataset, "s1_b")}
    lost = evaluation.write_samples(tmp_path / "lost", dataset, others, audio="own")
    for name in ("first", "second"):
        result = run(
            dataset, cache, tmp_path / "out", *folders, ("lost", lost), clips=1, card=tmp_path / name
        )
    assert [path.name for path in result.cards] == ["mine"], "no clip of the other was scored"
    folder = tmp_path / "first" / "mine"
    assert hash_files(tmp_path / "first") == hash_files(tmp_path / "second")
    card = read_system_card(folder)
    assert card.own and card.swapped and card.network and card.network.step == 7
    cell = result.metrics["mine (own audio)"]["psnr_box_db"]
    assert card.own.figures["psnr_box_db"].model_dump() == cell
    assert (card.data.digest, card.data.clips, card.data.split_clips) == (dataset.manifest["digest"], 1, 4)
    assert card.picture.speech == pairs[0].audio_clip_id, "the picture shows another's speech"
    picture = read_picture(folder / PICTURE, "JPEG", 1000, inside=folder, sha256=card.picture.sha256)
    assert picture.size == (6 * 130 - 2, 3 * 130 - 2)
    assert str(tmp_path) not in (folder / CARD).read_text() and "/" not in card.own.not_computed["lse_c"]
    assert json.loads((tmp_path / "out" / SUMMARY).read_text())["mine"]["psnr_box_db"] == cell["mean"]
    (folder / "notes.txt").touch()
    with pytest.raises(StageError, match="first/mine is there already and is no card"):
        run(dataset, cache, tmp_path / "out", *folders, clips=1, card=tmp_path / "first")


def test_a_damaged_training_clip_is_left_out_of_the_bank_and_named(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(dataset.folder, folder)
    damage_clip(folder, "s1_train")
    result = run(open_dataset(folder), tmp_path / "cache", tmp_path / "out", clips=1)
    assert list(result.unreadable) == ["s1_train"]
    assert "no training clip is left" in find_rows(result, "nearest mel")["s1_a"]["reason"]
    assert result.metrics[FROZEN]["psnr_box_db"]["n"] == 1, "the test split is scored"
    run_info = json.loads((tmp_path / "out" / RUN_INFO).read_text())
    assert list(run_info["without_bank"].values()) == [1]


def test_full_frames_of_another_system_score_like_its_crops(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    """The pasted mouths of another clip: as crops, as full frames, as crops twice as large."""
    source = {
        name: evaluation.draw_source_frames(evaluation.make_openings(k, 24))
        for k, name in enumerate(("s1_a", "s1_b"))
    }
    x0, y0, x1, y1 = np.array([46, 90, 158, 158])  # of the source: the box and a little more
    full = source["s1_a"].copy()
    full[:, y0:y1, x0:x1] = source["s1_b"][:, y0:y1, x0:x1]
    crops = evaluation.crop_frames(full)
    evaluation.write_video(tmp_path / "full" / "s1_a.mp4", full)
    evaluation.write_video(tmp_path / "crops" / "s1_a.mp4", crops)
    evaluation.write_video(tmp_path / "large" / "s1_a.mkv", crops.repeat(2, axis=1).repeat(2, axis=2))
    evaluation.write_video(tmp_path / "fast" / "s1_a.mp4", full.repeat(2, axis=0), fps=50)
    ours = evaluation.write_samples(tmp_path / "ours", dataset, {OWN["s1_a"]: crops}, audio="own")
    folders = [(name, tmp_path / name) for name in ("full", "crops", "large", "fast")]
    metrics = run(dataset, cache, tmp_path / "out", ("", ours), *folders, clips=1).metrics
    exact = metrics["ours (own audio)"]
    assert exact["psnr_box_db"]["mean"] < 30, "the mouths are another clip's"
    for name, _ in folders:
        assert metrics[name]["psnr_box_db"]["mean"] == pytest.approx(exact["psnr_box_db"]["mean"], abs=0.4)
        assert metrics[name]["ssim_box"]["mean"] == pytest.approx(exact["ssim_box"]["mean"], abs=0.02)


def test_a_folder_of_videos_may_hold_any_files(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    good = evaluation.write_video(folder / "s1_a.mp4", read_clip(dataset, "s1_a").frames)
    secret = evaluation.write_video(tmp_path / "elsewhere" / "s1_b.mp4", read_clip(dataset, "s1_b").frames)
    (folder / "s1_b.mp4").symlink_to(secret)
    (folder / "s1_c.mp4").write_text("no video at all")
    evaluation.write_video(folder / "s1_d.mp4", np.zeros((24, 48, 40, 3), np.uint8))
    for name in ("$(reboot).mp4", "-i.mp4", "s1_a~..mp4", "s1_a~s1_nobody.mp4", "notes.mp4\n.mp4"):
        (folder / name).write_bytes(good.read_bytes())
    (folder / "s1_a~s1_b.mp4").mkdir()
    evaluation.write_video(folder / "s1_c~s1_d.mp4", read_clip(dataset, "s1_c").frames[:4])
    result = run(dataset, cache, tmp_path / "out", ("", folder))

    own = find_rows(result, "theirs")
    assert {name: clip["code"] for name, clip in own.items()} == {
        "s1_a": "", "s1_b": "missing", "s1_c": "not_media", "s1_d": "size",
    }  # fmt: skip
    assert "40x48, expected the source's 180x160 or the crop's 64x64" in own["s1_d"]["reason"]
    swapped = find_rows(result, "theirs (swapped audio)")
    assert swapped["s1_c~s1_d"]["code"] == "too_short" and swapped["s1_a~s1_b"]["code"] == "missing"
    assert {clip["clip_id"] for clip in swapped.values()} == set(LENGTHS), "clips without a video are listed"
    assert len(result.unmatched_files["theirs"]) == 5


def test_folders_that_cannot_be_scored_are_refused_in_one_line(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    folder = evaluation.write_samples(
        tmp_path / "s", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    with pytest.raises(StageError, match="there is a row 'ours"):
        run(dataset, cache, tmp_path / "out", ("", folder), ("ours", folder))
    with pytest.raises(
        StageError, match=r"s: was sampled from the split 'test', not 'train'; --split 'test'"
    ):
        run(dataset, cache, tmp_path / "out", ("", folder), split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"empty: holds neither .* such as s1_a.mp4"):
        run(dataset, cache, tmp_path / "out", ("", tmp_path / "empty"))
    with pytest.raises(StageError, match="nowhere: cannot be listed"):
        run(dataset, cache, tmp_path / "out", ("", tmp_path / "nowhere"))
    (folder / "samples.json").write_text('{"audio": "own", "params": {"seed": 0}, "dataset": "another"}')
    with pytest.raises(StageError, match="was generated from the dataset another"):
        run(dataset, cache, tmp_path / "out", ("", folder))
    (folder / "samples.json").write_text("{}")
    with pytest.raises(StageError, match=r"samples.json: "):
        run(dataset, cache, tmp_path / "out", ("", folder))


class Colours(nn.Module):
    """In place of Inception: the features of an image are the mean and spread of its colours."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.strength * torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)


def mean_difference(a: Frames, b: Frames) -> NDArray[np.float64]:
    """In place of LPIPS: the mean difference of pixels."""
    return np.abs(a / 255 - b / 255).mean(axis=(1, 2, 3))


def test_available_networks_score_every_row_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def count_calls(a: Frames, b: Frames) -> NDArray[np.float64]:
        calls.append(len(a))
        return mean_difference(a, b)

    networks = Networks(None, count_calls, Colours(), {"lse_c": "no SyncNet"})  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "load_networks", lambda folder, **options: networks)
    own = evaluation.write_samples(
        tmp_path / "own", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    pair = make_pairs(dataset, "test", "swapped", seed=0)[0]
    swapped_clips = {pair: add_noise(dataset, "s1_a")}
    swapped = evaluation.write_samples(tmp_path / "swapped", dataset, swapped_clips, audio="swapped")
    folders = [("", own), ("", swapped)]
    result = run(dataset, tmp_path / "cache", tmp_path / "out", *folders, clips=1)
    truth, ours = result.metrics["ground truth"], result.metrics["ours (own audio)"]
    assert truth["lpips_frame"]["mean"] == 0 < ours["lpips_frame"]["mean"]
    assert truth["lpips_box"] == "not computed: not defined for these clips", "their boxes are too low"
    assert truth["fid_box"]["mean"] == pytest.approx(0, abs=1e-6) and ours["fid_box"]["mean"] > 1e-4
    assert ours["fid_frame"]["n"] == 24, "frames, not clips"
    with_swapped = result.metrics["ours (swapped audio)"]
    assert with_swapped["lpips_frame"].endswith("no ground truth of these faces with another's speech")
    assert with_swapped["fid_box"]["mean"] > 1e-4
    assert truth["lse_c"] == "not computed: no SyncNet"
    n_calls = len(calls)
    again = run(dataset, tmp_path / "cache", tmp_path / "out", *folders, clips=1)
    assert again.metrics == result.metrics and len(calls) == n_calls


class Brightness:
    """In place of SyncNet: lips are embedded by brightness, speech by loudness."""

    def embed_lips(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean(dim=(1, 3, 4))

    def embed_speech(self, windows: torch.Tensor) -> torch.Tensor:
        return windows[:, 0, 0, :5]


def test_lse_is_computed_by_both_protocols_for_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landmarker: Path
) -> None:
    """The ground truth as our crops, as another system's full frames, and as its crops."""
    networks = Networks(Brightness(), None, None, {})  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "load_networks", lambda folder, **options: networks)
    raw = tmp_path / "raw"
    dataset = open_dataset(evaluation.write_manifest(tmp_path / "shards", {"s1_a": 24}, raw=raw))
    truth = read_clip(dataset, "s1_a").frames
    ours = evaluation.write_samples(tmp_path / "ours", dataset, {OWN["s1_a"]: truth}, audio="own")
    full, small = tmp_path / "full" / "s1_a.mp4", tmp_path / "small" / "s1_a.mp4"
    full.parent.mkdir()
    full.write_bytes((raw / "s1_a.mp4").read_bytes())
    evaluation.write_video(small, truth)
    folders = [("", ours), ("full", full.parent), ("small", small.parent)]
    options = {"landmarks": True, "landmarker": str(landmarker)}
    metrics = run(dataset, tmp_path / "cache", tmp_path / "out", *folders, raw=raw, **options).metrics

    scores = {row: [values[column] for column in (*LSE, *LSE_REAL)]
              for row, values in metrics.items() if row not in ("nearest mel", MEAN_OPENING)}  # fmt: skip
    assert all(score["n"] == 1 for values in scores.values() for score in values)
    means = {row: [score["mean"] for score in values] for row, values in scores.items()}
    assert means["ours (own audio)"] == means["ground truth"]
    assert means["full"][4:] == means["ground truth"][4:], "the same video"
    assert means["small"] == pytest.approx(means["ground truth"], rel=0.02)
    assert means["ground truth"][:4] != means["ground truth"][4:] != means["frozen mouth"][4:]
    run_info = json.loads((tmp_path / "out" / RUN_INFO).read_text())
    assert run_info["protocols"]["lse_d"].startswith("crops: ")
    assert run_info["protocols"]["lse_d_real"].startswith("real videos: ")
    assert run_info["without_lse"] == {}

    run(dataset, tmp_path / "cache", tmp_path / "out", *folders, raw=tmp_path / "nowhere", **options)
    run_info = json.loads((tmp_path / "out" / RUN_INFO).read_text())
    [(why, n_clips)] = run_info["without_lse"].items()
    assert why.endswith("s1_a.mp4 is no file") and n_clips == len(means)


class Speeches:
    """In place of raw files: another noise for each clip."""

    def read_speech(self, clip_id: str) -> NDArray[np.int16]:
        rng = np.random.default_rng(len(LENGTHS) + ord(clip_id[-1]))
        return rng.integers(-900, 900, 24 * 640).astype(np.int16)


def test_the_same_frames_have_the_lse_of_each_speech_that_they_are_shown_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = evaluation.write_samples(
        tmp_path / "s", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    tools = MeasureTools(
        str(dataset.folder), dataset.manifest["digest"], tmp_path / "cache", None, None, landmarker_sha256=""
    )
    networks = Networks(Brightness(), None, None, {})  # type: ignore[arg-type]
    crops = folder / CROPS / "s1_a.tar"
    items = [make_item(dataset, tools, "crops", Pair("s1_a", name), crops) for name in ("s1_c", "s1_d")]

    def score(*some: measure.MeasureItem) -> list[dict[str, float]]:
        scores = score_rows_by_networks(
            {"ours": some},
            networks,
            Speeches(),
            dataset,
            tools,
            truth="ours",  # type: ignore[arg-type]
        )
        return [scores.get_clip_scores(item) for item in some]

    alone = [score(item)[0]["lse_d"] for item in items]
    assert alone[0] != alone[1], "the second is not the first's, from the cache"
    assert [values["lse_d"] for values in score(*items)] == alone


def test_mouth_metrics_of_synthetic_faces_show_which_system_follows_the_speech(
    dataset: Dataset, cache: Path, tmp_path: Path, landmarker: Path
) -> None:
    """Clip a with b's speech: b's true mouth, a's own mouth; and with its own speech, two frames late."""
    pair = make_pairs(dataset, "test", "swapped", seed=0)[0]
    a, b = (read_clip(dataset, name) for name in (pair.clip_id, pair.audio_clip_id))
    n_frames = len(a.frames)
    obeys = replace_boxes(a.frames, b.frames[:n_frames])
    late = replace_boxes(a.frames, a.frames[np.maximum(0, np.arange(n_frames) - 2)])
    folders = [
        ("obeys", evaluation.write_samples(tmp_path / "1", dataset, {pair: obeys}, audio="swapped")),
        ("copies", evaluation.write_samples(tmp_path / "2", dataset, {pair: a.frames}, audio="swapped")),
        ("late", evaluation.write_samples(tmp_path / "3", dataset, {OWN["s1_a"]: late}, audio="own")),
    ]
    request = EvaluateRequest(
        str(dataset.folder), tmp_path / "out", cache, tuple(folders), clips=1, landmarker=str(landmarker)
    )
    metrics = evaluate.run(request, LimitParams(), run_one_by_one).metrics
    obedience = {row: values["audio_obedience"] for row, values in metrics.items()}
    assert obedience["ground truth"]["mean"] == pytest.approx(1)
    assert obedience["obeys (swapped audio)"]["mean"] > 0.5, "a clip of 24 frames is noisy"
    assert obedience["copies (swapped audio)"]["mean"] == pytest.approx(-1)
    assert obedience["nearest mel"]["mean"] > 0.5, "these mels follow the mouth"
    assert metrics["late (own audio)"]["opening_lag_frames"]["mean"] == 2
    assert metrics["ground truth"]["opening_lag_frames"]["mean"] == 0
    assert metrics["ground truth"]["mouth_distance_px"]["mean"] == 0
    assert metrics["late (own audio)"]["mouth_distance_px"]["mean"] > 0.3
    table = pq.read_table(tmp_path / "out" / FRAMES).to_pylist()
    openings = [row["opening"] for row in table if row["row"] == "ground truth" and row["name"] == "s1_a"]
    assert correlation(np.array(openings), evaluation.make_openings(0, n_frames)) > 0.95


def test_a_mean_opening_has_no_frames_and_is_scored_by_its_timing_alone(
    dataset: Dataset, cache: Path, tmp_path: Path, landmarker: Path
) -> None:
    result = run(dataset, cache, tmp_path / "out", landmarks=True, landmarker=str(landmarker), clips=2)
    rows = find_rows(result, MEAN_OPENING)
    assert len(rows) == 4 and all(row["status"] == "ok" and row["frames"] == 0 for row in rows.values())
    computed = {column for column, value in result.metrics[MEAN_OPENING].items() if isinstance(value, dict)}
    assert computed == {"opening_correlation", *OBEDIENCE}
    table = pq.read_table(tmp_path / "out" / FRAMES).to_pylist()
    truth = [row["opening"] for row in table if row["row"] == TRUTH and row["name"] == "s1_a"]
    training = evaluation.make_openings(len(LENGTHS), 30)  # the one training clip, so its opening is the mean
    expected = correlation(np.array(truth), training[: LENGTHS["s1_a"]])
    assert rows["s1_a"]["opening_correlation"] == pytest.approx(expected, abs=0.1)


def test_mouths_only_has_the_same_mouth_scores_and_neither_ssim_nor_networks(
    dataset: Dataset, cache: Path, tmp_path: Path, landmarker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluation.write_samples(
        tmp_path / "s", dataset, {OWN["s1_a"]: add_noise(dataset, "s1_a")}, audio="own"
    )
    options = {"landmarks": True, "landmarker": str(landmarker), "clips": 1}
    whole = run(dataset, cache, tmp_path / "whole", ("", folder), **options).metrics
    monkeypatch.setattr(evaluate, "load_networks", None)
    quick = run(dataset, cache, tmp_path / "quick", ("", folder), mouths_only=True, **options).metrics
    left_out = {column for column in COLUMNS if column.startswith(("ssim", "cpbd", "lpips", "fid", "lse"))}
    for row, values in quick.items():
        for column, value in values.items():
            if column in left_out:
                assert value == "not computed: --mouths-only"
            else:
                assert value == whole[row][column], (row, column)
    assert isinstance(quick["ours (own audio)"]["psnr_box_last_db"], dict)


def test_word_times_give_the_share_of_closed_lips_and_without_them_the_table_says_so(
    dataset: Dataset, cache: Path, tmp_path: Path, landmarker: Path
) -> None:
    words = tmp_path / "words" / "s1" / "a.align"
    words.parent.mkdir(parents=True)
    words.write_text("0 4000 sil\n4000 9000 bin\n9000 24000 blue\n")
    options = {"landmarks": True, "landmarker": str(landmarker), "clips": 1, "mouths_only": True}
    scored = run(dataset, cache, tmp_path / "with", alignments=tmp_path / "words", **options)
    [row] = [row for row in find_rows(scored, TRUTH).values() if row["clip_id"] == row["audio_clip_id"]]
    assert row["closure"] == row["closure_truth"] and row["closure"] in (0, 0.5, 1)
    request = EvaluateRequest(str(dataset.folder), tmp_path, cache, alignments=tmp_path / "words")
    closures = evaluate._find_all_closures(
        request,
        dataset,
        set(LENGTHS),
        None,
        LimitParams(),
        run_one_by_one,  # type: ignore[arg-type]
    )
    assert list(closures.frames) == ["s1_a"] and closures.reasons == {"no .align file": 3}
    without = run(dataset, cache, tmp_path / "without", **options).metrics
    assert without[TRUTH]["closure"].startswith("not computed: needs word times")
    with pytest.raises(StageError, match="no such folder"):
        run(dataset, cache, tmp_path / "none", alignments=tmp_path / "nowhere", **options)
