"""The benchmarks run, on a CPU and without data; how fast is not asked."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

FIGURES = ("frames_per_second", "ms_per_step", "memory_gb", "tflops", "data_ms")


def test_the_training_benchmark_measures_every_way_and_says_where_the_time_goes(tmp_path: Path) -> None:
    figures, kernels = tmp_path / "train.json", tmp_path / "kernels.txt"
    options = ["--small", "--device", "cpu", "--seconds", "0.2", "--ablate"]
    done = subprocess.run(
        [sys.executable, "benchmarks/train.py", *options, "--json", figures, "--profile", kernels],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # on a busy core more of them wait for each other
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    told = json.loads(figures.read_text())
    off = {"no channels_last", "no fused AdamW", "no foreach EMA"}  # nothing else is on, on a CPU
    assert told["ways"].keys() == {"ours", "paper, fp32", "paper, TF32"} | off
    for way, speed in told["ways"].items():
        assert all(math.isfinite(speed[name]) and speed[name] > 0 for name in FIGURES), way
        assert 0 <= speed["waiting_for_data"] <= 1, way
        assert min(speed["windows"]) <= speed["frames_per_second"] <= max(speed["windows"]), way
        assert way in done.stdout
    assert all(ratio > 0 for ratio in told["ours_over"].values())
    assert told["forward_gflop"] > 0 and told["peak_tflops"] is None

    assert math.isclose(sum(told["profile"].values()), 1)
    assert "convolution" in told["profile"] and "convolution" in kernels.read_text()


def test_the_sampling_benchmark_measures_slots_steps_uneven_clips_and_the_papers_way(tmp_path: Path) -> None:
    figures = tmp_path / "sample.json"
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/sample.py",
            "--small",
            "--device",
            "cpu",
            "--repeats",
            "1",
            "--json",
            figures,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(figures.read_text())
    assert [row["slots"] for row in told["by_slots"]] == [1, 4]
    assert {(row["slots"], row["steps"]) for row in told["by_steps"]} == {(1, 2), (1, 4), (4, 2), (4, 4)}
    for row in [*told["by_slots"], *told["by_steps"], told["uneven"], told["paper"]]:
        assert all(math.isfinite(value) and value > 0 for value in row.values()), row


def test_the_evaluation_benchmark_scores_made_clips_and_agrees_with_scikit_image(tmp_path: Path) -> None:
    figures = tmp_path / "evaluate.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/evaluate.py", "--small", "--json", figures],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(figures.read_text())
    assert told["frames"] == 32 and told["wall_seconds"] > 0
    assert told["ssim"]["greatest_difference"] < 1e-6
    assert "6 rows" in done.stdout


def test_the_reading_benchmark_measures_each_way_and_names_the_peers_that_are_not_there(
    tmp_path: Path,
) -> None:
    figures = tmp_path / "read.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/read.py", "--small", "--json", figures],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = {row["way"]: row for row in json.loads(figures.read_text())}
    assert told.keys() >= {"bare decoder", "ours, resident", "ours, cached", "ours, windowed, 2 shards"}
    assert {"webdataset, buffer 50", "webdataset, buffer 50, clips decoded"} <= told.keys()
    assert all(row["samples_per_second"] > 0 for row in told.values())
    assert 1 < told["ours, windowed, 2 shards"]["clips"] < told["ours, cached"]["clips"]
    for peer, way in (("streaming", "MosaicML streaming"), ("litdata", "litData")):
        assert way in told or f"{peer}: not installed (pip install" in done.stdout
