"""`pipeline evaluate` on the command line, and DVC's metrics and plots of its output."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipeline import params
from pipeline.commands.evaluate import _print_groups, _print_table
from pipeline.main import cli
from sampler import rollout
from shards.reader import open_dataset, read_clip
from stages.engine.sandbox import LimitParams
from stages.engine.stage import run_one_by_one
from stages.evaluate import run as evaluate
from stages.evaluate.columns import COLUMNS
from stages.evaluate.run import EvaluateRequest
from stages.evaluate.scores import CLIPS_SCHEMA
from stages.evaluate.table import BASELINES
from stages.sample.pairs import Pair
from tests import evaluation
from tests.build import dvc, hash_files

pytestmark = pytest.mark.usefixtures("no_networks")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation.write_manifest(
        tmp_path_factory.mktemp("made") / "shards", {"s1_a": 4, "s1_b": 5}, n_train_frames=6
    )


def write_noisy_samples(shards: Path, folder: Path, strength: float, n_frames: int = 4) -> Path:
    """Samples of one of the two clips, with noise of this strength in the box."""
    dataset = open_dataset(shards)
    frames = read_clip(dataset, "s1_a").frames[:n_frames]
    noise = np.random.default_rng(0).normal(0, strength, frames.shape)
    noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
    pair = Pair("s1_a", "s1_a")
    clips = {pair: evaluation.replace_boxes(frames, noisy)}
    return evaluation.write_samples(folder, dataset, clips, audio="own")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def test_the_table_lists_what_was_scored_and_why_the_rest_was_not(shards: Path, tmp_path: Path) -> None:
    samples = write_noisy_samples(shards, tmp_path / "samples", 20)
    result = invoke("--shards", shards, "--generated", f"mine={samples}", "-o", tmp_path / "out",
                  "--no-landmarks", "--workers", "2")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "PSNR (box, dB, higher is better)" in result.output
    assert "no interval, n = 1 of 2 clips\n" in result.output and "intervals are over" not in result.output
    assert "mine (own audio): 1 ok, 1 missing" in result.output
    assert "e.g. s1_b: samples.parquet does not list s1_b" in result.output
    assert "by emotion" not in result.output, "one clip has one emotion"
    assert (
        "lse_c, lse_d, lse_c_real, lse_d_real: not computed: SyncNet weights not found at " in result.output
    )
    assert "(sha256 961e8696" in result.output
    assert "closure, closure_truth: not computed: --no-landmarks" in result.output
    assert all(row in result.output for row in BASELINES)

    alone = EvaluateRequest(
        str(shards), tmp_path / "alone", tmp_path / "cache", (("mine", samples),), landmarks=False
    )
    evaluate.run(alone, LimitParams(), run_one_by_one)
    assert hash_files(tmp_path / "out") == hash_files(tmp_path / "alone"), (
        "one process or two, the same bytes"
    )


@pytest.mark.parametrize("has_interval", [True, False])
def test_what_intervals_are_over_is_said_only_beside_one(
    capsys: pytest.CaptureFixture[str], has_interval: bool
) -> None:
    rows = [{"row": "ours", "speaker": "s1", "status": "ok"}]
    bounds = {"low": 23.0, "high": 25.0} if has_interval else {"low": None, "high": None}
    metrics: dict[str, Any] = {"ours": dict.fromkeys(COLUMNS, "not computed: no")}
    metrics["ours"]["psnr_box_db"] = {"mean": 24.0, "n": 5, **bounds}
    _print_table(evaluate.EvaluationResult(rows, metrics, {}, 0, [], {}))
    assert ("intervals are over clips of one person" in capsys.readouterr().out) == has_interval


def test_means_are_printed_by_the_emotion_of_the_speech(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        dict.fromkeys(CLIPS_SCHEMA.names)
        | {"row": "ours (swapped audio)", "speaker": "s1", "emotion": "face", "audio_emotion": emotion}
        | {"audio_obedience": score}
        for emotion, score in (("ANG", 0.75), ("SAD", 0.25))
    ]
    _print_groups(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("by emotion of the speech") and len(lines) == 3
    assert [line.split()[3:] for line in lines[1:]] == [
        ["ANG", "-", "-", "0.750"],
        ["SAD", "-", "-", "0.250"],
    ]
    _print_groups(rows[:1])
    assert not capsys.readouterr().out, "one group is no table"


def test_json_output_is_the_table_and_errors_are_one_line(shards: Path, tmp_path: Path) -> None:
    arguments = ["--shards", shards, "-o", tmp_path / "out", "--no-landmarks", "--clips", 1, "--workers", 1]
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["metrics"]["ground truth"]["ssim_box"]["mean"] == 1
    assert answer["clips"]["ground truth"] == {"ok": 1}
    for wrong, message in (
        (["--generated", tmp_path / "nowhere"], "cannot be listed"),
        (["--split", "held-out"], "no clip is in the split 'held-out'"),
        (["--landmarks", "--landmarker", tmp_path / "none.task"], "which is no file"),
    ):
        failure = invoke(*arguments, *wrong)
        assert failure.exit_code == 1 and message in failure.output
        assert len(failure.output.strip().splitlines()) == 1
    unscored = invoke(
        *arguments, "--generated", write_noisy_samples(shards, tmp_path / "short", 5, n_frames=2)
    )
    assert unscored.exit_code == 1 and "ours (own audio): no clip could be scored" in unscored.output
    assert "too_short    e.g. s1_a: has 2 frames" in unscored.output


def test_mouths_only_without_landmarks_is_refused(shards: Path, tmp_path: Path) -> None:
    result = invoke("--shards", shards, "-o", tmp_path / "out", "--mouths-only", "--no-landmarks")
    assert result.exit_code == 2 and "--mouths-only needs landmarks" in result.output


def test_mouths_only_with_weights_is_refused(shards: Path, tmp_path: Path) -> None:
    result = invoke("--shards", shards, "-o", tmp_path / "out", "--mouths-only", "--weights", tmp_path)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "--mouths-only computes no network's scores: leave out --weights" in result.output


def test_the_defaults_of_the_params_file_are_those_of_the_sampler() -> None:
    assert asdict(params.SampleParams()) == asdict(rollout.SampleParams())


def test_dvc_compares_two_evaluations_and_plots_their_curves(shards: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    out = project / "evaluation" / "demo"
    git = ["git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for strength in (20, 5):
        samples = write_noisy_samples(shards, tmp_path / f"samples-{strength}", strength)
        request = EvaluateRequest(
            str(shards), out, tmp_path / "cache", (("", samples),), clips=1, landmarks=False
        )
        evaluate.run(request, LimitParams(), run_one_by_one)
        if strength == 20:
            plots = "  - evaluation/demo/plots/psnr_box_db.csv: {x: frame, y: ours (own audio)}\n"
            metrics = "metrics: [evaluation/demo/metrics.json]\n"
            (project / "dvc.yaml").write_text(f"{metrics}plots:\n{plots}")
            subprocess.run([*git, "init", "--quiet"], check=True)
            dvc(project, "init", "--quiet")
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    changed = json.loads(dvc(project, "metrics", "diff", "--json"))["evaluation/demo/metrics.json"]
    assert changed["ours (own audio).psnr_box_db.mean"]["diff"] == pytest.approx(12, abs=1.5)
    frozen = [name for name in changed if name.startswith("frozen mouth")]
    assert all(".difference." in name for name in frozen), "it has not changed, but for what it is beside"
    page = dvc(project, "plots", "diff", "HEAD", "--out", str(tmp_path / "page"))
    assert "index.html" in page
    assert "ours (own audio)" in (tmp_path / "page" / "index.html").read_text()
