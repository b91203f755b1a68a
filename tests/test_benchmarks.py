"""The benchmarks run on a CPU and without data. Their speed is not tested."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import s3
from tests.conftest import ROOT
from tests.model import worlds

FIGURES = ("frames_per_second", "ms_per_step", "memory_gb", "tflops", "data_ms")


def run_benchmark(name: str, results: Path, *options: str | Path) -> tuple[Any, str]:
    """Run a benchmark with ``--small``; returns its JSON results and its output."""
    process = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--small", *options, "--json", results],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # on a busy core several threads wait for each other
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(results.read_text()), process.stdout


def test_the_training_benchmark_measures_every_variant_and_profiles_its_kernels(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.txt"
    options = ["--device", "cpu", "--seconds", "0.2", "--ablate", "--profile", kernels]
    results, output = run_benchmark("train", tmp_path / "train.json", *options)
    ablations = {"no channels_last", "no fused AdamW", "no foreach EMA"}  # the others need a GPU
    assert results["ways"].keys() == {"ours", "paper, fp32", "paper, TF32"} | ablations
    for way, speed in results["ways"].items():
        assert all(math.isfinite(speed[name]) and speed[name] > 0 for name in FIGURES), way
        assert 0 <= speed["waiting_for_data"] <= 1, way
        assert min(speed["windows"]) <= speed["frames_per_second"] <= max(speed["windows"]), way
        assert way in output
    assert all(ratio > 0 for ratio in results["ours_over"].values())
    assert results["forward_gflop"] > 0 and results["peak_tflops"] is None

    assert math.isclose(sum(results["profile"].values()), 1)
    assert "convolution" in results["profile"] and "convolution" in kernels.read_text()


def test_the_sampling_benchmark_measures_slots_steps_uneven_clips_and_the_papers_sampler(
    tmp_path: Path,
) -> None:
    results, _ = run_benchmark("sample", tmp_path / "sample.json", "--device", "cpu", "--repeats", "1")
    assert [row["slots"] for row in results["by_slots"]] == [1, 4]
    assert {(row["slots"], row["steps"]) for row in results["by_steps"]} == {(1, 2), (1, 4), (4, 2), (4, 4)}
    for row in [*results["by_slots"], *results["by_steps"], results["uneven"], results["paper"]]:
        assert all(math.isfinite(value) and value > 0 for value in row.values()), row


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="it uses internals of PyTorch 2.13")
def test_a_sampling_step_is_counted_without_a_gpu_and_casts_no_weight(tmp_path: Path) -> None:
    results, output = run_benchmark("kernels", tmp_path / "kernels.json", "--part", "sampling")
    [step] = results["sampling"]
    assert step["weight_casts"] == 0 and f"{step['launches']} launches, 0 of them cast" in output
    assert 20 < step["launches"] < 230 and step["gb"] == pytest.approx(sum(step["gb_by_kind"].values()))
    assert step["gb_by_kind"]["aten.convolution.default"] > 0


def test_the_gpu_benchmark_writes_a_row_for_every_variant_whatever_becomes_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--device", "cpu", "--out", tmp_path]
    subprocess.run(
        [*command, "--seconds", "0.05"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert {row["part"] for row in results["rows"]} == {"training", "waiting", "sampling"}
    for row in results["rows"]:
        assert "problem" not in row and not row["warnings"], row
        figures = ("kernel_ms",) if row["variant"] == "kernels" else ("frames_per_second", "ms_per_step")
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in figures), row
    assert all(ratio > 0 for ratio in results["ratios"].values())
    assert "ours, multi-speaker / paper, fp32, multi-speaker" in results["ratios"]
    assert "convolution" in (tmp_path / "kernels.txt").read_text()
    table = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(results["rows"])
    assert {line.count("|") for line in table} == {table[0].count("|")}

    subprocess.run([*command, "--part", "sampling", "--budget", "0"], cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows and {row["part"] for row in rows} == {"sampling"}
    assert all(row["problem"].startswith("not measured") for row in rows)


def test_a_variant_of_the_gpu_benchmark_that_fails_is_a_row_with_its_error() -> None:
    program = """
import gpu

def fail():
    raise ValueError("no such kernel")

fails = gpu.Variant("training", "demo", "one", fail)
works = gpu.Variant("training", "demo", "two", lambda: {"frames_per_second": 2.0})
*_, rows = gpu.measure_variants([fails, works], 60, gpu.time.perf_counter(), gpu.WarningList())
print(gpu.format_table(rows))
"""
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "| one |  |  |  |  |  |  |  |  |  | ValueError: no such kernel |" in output
    assert "| two |  |  | 2 |" in output


def test_no_two_rows_of_the_ablation_have_the_same_recipe() -> None:
    script = """
import json, sys
from dataclasses import asdict
sys.path[:0] = ["benchmarks"]
import ablation
from model.recipe import build_recipe, nest_changes
for name, (preset, changes) in ablation.ROWS.items():
    recipe = asdict(build_recipe(preset, nest_changes(changes)))
    print(json.dumps([name, recipe], sort_keys=True))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = dict(json.loads(line) for line in process.stdout.splitlines())
    recipes = [json.dumps(recipe, sort_keys=True) for recipe in rows.values()]
    assert len(set(recipes)) == len(rows) > 10
    before = rows["as it was"]["frames"]
    assert before["context_share"] == before["audio_gain_db"] == before["audio_band_db"] == 0


def test_the_evaluation_benchmark_scores_synthetic_clips_and_agrees_with_scikit_image(tmp_path: Path) -> None:
    results, output = run_benchmark("evaluate", tmp_path / "evaluate.json")
    assert results["frames"] == 32 and results["wall_seconds"] > 0
    assert results["ssim"]["greatest_difference"] < 1e-6
    assert "6 rows" in output


def test_the_reading_benchmark_measures_each_reader_and_names_missing_packages(tmp_path: Path) -> None:
    results, output = run_benchmark("read", tmp_path / "read.json")
    rows = {row["way"]: row for row in results}
    assert rows.keys() >= {"bare decoder", "ours, resident", "ours, cached", "ours, windowed, 2 shards"}
    assert {"webdataset, buffer 50", "webdataset, buffer 50, clips decoded"} <= rows.keys()
    assert all(row["samples_per_second"] > 0 for row in rows.values())
    assert 1 < rows["ours, windowed, 2 shards"]["clips"] < rows["ours, cached"]["clips"]
    for package, way in (("streaming", "MosaicML streaming"), ("litdata", "litData")):
        assert way in rows or f"{package}: not installed (pip install" in output


def test_the_drawing_benchmark_counts_the_clips_that_were_sampled() -> None:
    script = """
import json, sys
from types import SimpleNamespace
sys.path[:0] = ["benchmarks"]
import drawing
import stages.sample.run
from sampler.params import SampleParams

stages.sample.run.run = lambda request, params: stages.sample.run.SampleResult(request.clips, [])
drawing.make_row = lambda drawing, whole: {}
args = SimpleNamespace(ms=0, shards="none", run="none", split="test", clips=3, slots=1)
print(json.dumps(drawing.measure_sample(args, SampleParams())))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == {"clips": 3}


def test_the_reading_benchmark_makes_a_bucket_of_its_own(s3_server: s3.Server) -> None:
    script = """
import contextlib, sys
from pathlib import Path
sys.path[:0] = ["benchmarks"]
import read
from tests import s3

s3.start_server = lambda folder: contextlib.nullcontext(s3.Server(sys.argv[1]))
with read.s3_bucket(Path()) as name:
    print(name)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, s3_server.endpoint], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() in {item["Name"] for item in s3_server.client().list_buckets()["Buckets"]}


def test_a_recoloured_person_has_the_skin_that_it_says_and_the_rest_as_it_was() -> None:
    script = """
import sys
import numpy as np
sys.path[:0] = ["benchmarks"]
from recolour import DARK_SKIN, DIM_LIGHT, RECOLOURS, WARM_LIGHT
from shards.schema import ClipSample
from stages.metrics.border import LINEAR

frames = np.full((2, 64, 64, 3), (0, 130, 190), np.uint8)  # a blue wall
frames[:, :, 16:] = (198, 156, 136)
boxes = np.tile(np.array([20, 30, 60, 60], np.int16), (2, 1))
affine = np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1))
clip = ClipSample("a", frames, boxes, np.zeros((4, 8), np.float32), affine, {})
for name, factors in (("warmer light", WARM_LIGHT), ("dimmer light", DIM_LIGHT), ("darker skin", DARK_SKIN)):
    changed = RECOLOURS[name](clip).frames[0]
    expected = LINEAR[frames[0, 40, 50]] * factors
    assert np.abs(LINEAR[changed[40, 50]] - expected).max() < 0.004, (name, changed[40, 50])
    assert (changed[40, 2] == frames[0, 40, 2]).all() == (name == "darker skin"), (name, changed[40, 2])
    print(name, changed[40, 50])
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "darker skin [93 61 48]" in process.stdout


def test_the_ablation_lists_strangers_and_quieter_clips_evenly_by_speaker(tmp_path: Path) -> None:
    """Of two datasets: people of the training split are no strangers, whichever dataset they are in."""
    speakers = ("s1", "s1", "s1", "s2", "s2", "s3")
    lengths = (4,) * len(speakers)
    known = worlds.make_dataset(tmp_path / "known", lengths, speakers=speakers, test=["s1_clip2", "s1_clip4"])
    others = worlds.make_dataset(tmp_path / "others", lengths, speakers=("s2", "s7", "s7", "s8", "s7", "s8"))
    script = """
import argparse, json, sys
sys.path[:0] = ["benchmarks"]
import ablation
from shards.reader import open_dataset

dataset = open_dataset(sys.argv[1])
args = argparse.Namespace(
    split="test", clips=2, own_clips=None, speakers=["s1", "s2"], strangers=sys.argv[2:],
    recolour=["warmer light"], quieter=20,
)
sets = ablation.list_clip_sets(dataset, args)
print(json.dumps([[each.name, [pair.name for pair in each.pairs]] for each in sets]))
loud, quiet = (each.read(dataset, each.pairs[0])[1].mels for each in sets[:2])
print(json.dumps([float((loud - quiet).min()), float((loud - quiet).max()), float(quiet.min())]))
frozen = [(each, ablation.score_frozen(each)) for each in sets]
print(json.dumps(sorted(ablation.group_pairs("frozen mouth", frozen))))
args.strangers = sys.argv[1:2]
ablation.list_clip_sets(dataset, args)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, known, others], cwd=ROOT, capture_output=True, text=True
    )
    sets, (least, most, floor), rows = map(json.loads, process.stdout.splitlines())
    assert [name for name, _ in sets] == ["", "20 dB quieter", "strangers", "strangers, warmer light"]
    pairs = dict(sets)
    assert pairs[""][:2] == ["s1_clip2", "s1_clip4"] and pairs["20 dB quieter"] == pairs[""]
    assert least >= 0 and most == pytest.approx(20) and floor == -80
    assert pairs["strangers"] == pairs["strangers, warmer light"] and len(pairs["strangers"]) == 4
    assert pairs["strangers"][:2] == ["s1_clip1", "s1_clip3"], "of s7 and of s8"
    assert all("~" in name for name in pairs["strangers"][2:])
    assert {name.split(", ", 1)[-1] for name in rows} == {
        "frozen mouth", "20 dB quieter", "20 dB quieter, s1", "20 dB quieter, s2",
        "strangers", "strangers, s7", "strangers, s8",
        "strangers, warmer light", "strangers, warmer light, s7", "strangers, warmer light, s8",
    }  # fmt: skip
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.strip().endswith(
        "1 clips of the speakers s3, expected 2 or more; there are s1, s2, s3"
    )


def test_a_result_of_the_ablation_says_how_its_clips_were_generated_and_mixes_no_two_ways(
    tmp_path: Path,
) -> None:
    script = """
import argparse, json, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = ["benchmarks"]
import ablation
from model.recipe import build_recipe
from sampler.params import SampleParams
from stages.sample.pairs import Pair

folder, recipe = Path(sys.argv[1]), build_recipe("demo")
dataset = SimpleNamespace(clips={"a": {"speaker": "s7"}, "b": {"speaker": "s8"}})
pairs = [Pair("a", "a"), Pair("a", "b"), Pair("b", "a")]

def make_sets(value, *names):
    scores = [(pair, {"audio_obedience": value, "psnr_box_db": value}) for pair in pairs]
    return [(ablation.ClipSet(name, dataset, pairs), scores) for name in names]

def list_ways(steps, guidance):
    args = argparse.Namespace(steps=steps, common_noise=0.9, guidance=guidance, sampling=None)
    return ablation.list_sampling("context", recipe, args), ablation.make_default_params(args)

def drop(result, samples, steps, guidance):
    return sorted(ablation.drop_other_scores(result, samples, *list_ways(steps, guidance)))

result = {"samples": 48, "seconds": 1.5, "parameters": 7}
result = ablation.add_scores(result, "frozen mouth", None, make_sets(0.1, "", "strangers"))
ways, _ = list_ways(4, [1.0, 2.0])
for way in ("guidance 1", "guidance 2", "common noise 0"):
    result = ablation.add_scores(result, way, ways[way], make_sets(0.2, "", "strangers"))
ablation.write_json(folder / ablation.RESULT, result)
result = ablation.read_result(folder)
first = {each["name"]: each for each in result["sampling"]}
assert first["guidance 2"] == {
    "name": "guidance 2", "way": "guidance 2", "pairs": {"own": 1, "swapped": 2},
    "params": asdict(SampleParams(steps=4, common_noise=0.9, guidance=2)),
}
assert first["guidance 2, strangers, s7"]["pairs"] == {"own": 1, "swapped": 1}
assert first["frozen mouth, strangers"]["params"] is None
assert first.keys() == {name for name, scores in result.items() if isinstance(scores, dict)}
assert result["guidance 2"]["audio_obedience"]["value"] == 0.2, "the keys of the scores are as before"
for line in ablation.format_row("context", folder):
    print(line)

assert drop(result, 48, 4, [1.0, 2.0]) == drop(result, 48, 4, [2.0]) == sorted(result), "one more way"
assert drop(result, 64, 4, [1.0, 2.0]) == [], "of another number of samples"
others = {"frozen mouth", "parameters", "samples", "sampling", "seconds"}
left = drop(result, 48, 2, [1.0, 2.0])
assert {name for name in left if not name.startswith("frozen mouth, ")} == others, "all are of four steps"
left = drop(result, 48, 4, [1.0])
assert set(result) - set(left) == {name for name in result if name.startswith("common noise 0")}, left

again = ablation.drop_other_scores(result, 48, *list_ways(2, [2.0]))
again = ablation.add_scores(again, "guidance 2", list_ways(2, [2.0])[0]["guidance 2"], make_sets(0.3, ""))
records = [each for each in again["sampling"] if each["way"] == "guidance 2"]
assert [(each["name"], each["params"]["steps"]) for each in records] == [("guidance 2", 2)]

old = {name: value for name, value in result.items() if name != "sampling"}  # as before there were records
ablation.write_json(folder / ablation.RESULT, old)
assert set(drop(old, 48, 2, [1.0])) == {*old, "sampling"}
for line in ablation.format_row("context", folder):
    print(line)
"""
    process = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    titles = [line.split(" | ")[2] for line in process.stdout.splitlines()]
    assert len(titles) == 2 * 4 * 4 and titles[4] == "guidance 1"
    assert titles[16:] == [f"{title} (params not recorded)" for title in titles[:16]]


def test_a_model_is_adapted_from_by_its_name_as_by_its_path(tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", (4,))
    for name in ("small", "model/published/small.safetensors"):
        command = ["benchmarks/own.py", "--shards", shards, "--start-from", name, "--to", tmp_path / "runs"]
        process = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        expected = f"{shards}: 1 clips of the speaker, expected more than 5"
        assert process.stderr.strip().endswith(expected), process.stderr
        assert process.returncode == 1 and "Traceback" not in process.stderr


def test_the_report_of_instructions_has_a_cost_for_every_part_it_is_asked_for(tmp_path: Path) -> None:
    options = ["--only", "warp", "webp", "paste", "--json", tmp_path / "costs.json"]
    command = [sys.executable, "benchmarks/instructions.py", *options]
    process = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    results = json.loads((tmp_path / "costs.json").read_text())
    assert list(results["costs"]) == ["warp", "webp", "paste"]
    assert all(math.isfinite(cost) and cost > 0 for cost in results["costs"].values())
    assert all(f"| {name} |" in process.stdout for name in results["costs"])
    assert results["counter"] in ("hardware", "cpu") and results["counter"] in process.stdout
