"""The command `pipeline train`: dry runs, params, and error messages of one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from model.recipe import PRESETS, recipe_from_dict
from pipeline.main import cli
from tests.model import worlds
from tests.model.worlds import TINY

COUNTS = {"paper-multi-speaker": "13,698,691", "paper-single-speaker": "66,655,619"}


@pytest.fixture(autouse=True)
def _restore_log_levels() -> Iterator[None]:
    """The command sets the levels of our loggers."""
    loggers = [logging.getLogger(name) for name in ("model", "stages")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _change_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*options: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["train", *map(str, options)])
    assert result.exit_code == code, result.output
    return result


def read_plan(*options: str | Path) -> dict[str, object]:
    plan: dict[str, object] = yaml.safe_load(train("--dry-run", *options).stdout)
    return plan


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_dry_run_prints_the_recipe_and_the_parameter_count(preset: str, tmp_path: Path) -> None:
    plan = read_plan("--preset", preset)
    assert plan.pop("preset") == preset
    count = plan.pop("parameters")
    assert recipe_from_dict(plan) == PRESETS[preset]
    assert count == COUNTS.get(preset, count) and int(str(count).replace(",", "")) > 100_000
    assert list(tmp_path.iterdir()) == [], "and writes nothing"


def test_settings_change_the_recipe_and_the_last_one_wins() -> None:
    plan = read_plan("--preset", "paper-multi-speaker", "--set", "network.channels=128",
                   "-s", "optim.learning_rate=1e-4", "-s", "optim.betas=[0.8, 0.9]",
                   "-s", "batch=4", "-s", "batch=6")  # fmt: skip
    assert plan["parameters"] == "54,177,027"
    assert plan["batch"] == 6
    recipe = recipe_from_dict(
        {key: value for key, value in plan.items() if key not in ("preset", "parameters")}
    )
    assert recipe.optim.learning_rate == 1e-4
    assert recipe.optim.betas == (0.8, 0.9)


def test_the_window_is_written_into_the_recipe() -> None:
    assert read_plan("--hold", "windowed", "--window", "5")["window"] == 5
    assert read_plan("--hold", "windowed")["window"] == 32
    assert read_plan("--hold", "cached", "--window", "5")["window"] == 0
    assert read_plan("--hold", "windowed", "-s", "window=8")["window"] == 8
    Path("params.yaml").write_text("train: {changes: {window: 7}}")
    assert read_plan("--hold", "windowed")["window"] == 7
    assert read_plan("--hold", "windowed", "--window", "5")["window"] == 5


def test_the_params_file_sets_preset_and_changes_and_options_override_it(tmp_path: Path) -> None:
    section = {"preset": "demo", "changes": {"batch": 4, "optim": {"warmup_steps": 7}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": section}))
    plan = read_plan("--set", "batch=5")
    assert plan["preset"] == "demo"
    assert plan["batch"] == 5
    assert plan["optim"]["warmup_steps"] == 7  # type: ignore[index]
    assert read_plan("--preset", "single-speaker")["batch"] == 4, "the changes apply to another preset too"
    (tmp_path / "other.yaml").write_text("train: {preset: paper-single-speaker}")
    assert read_plan("--params", "other.yaml")["batch"] == 40


# --- errors of one line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preset", "big"], 1, "preset 'big' is not known; known are multi-speaker"),
        (["--set", "bacth=8"], 1, "bacth is not known; known are network"),
        (["--set", "optim.lr=8"], 1, "optim.lr is not known; known are learning_rate"),
        (["--set", "batch=many"], 1, "batch is 'many', expected a valid integer"),
        (["--set", "batch"], 2, "batch: expected NAME=VALUE"),
        (["--set", "=5"], 2, "=5: expected NAME=VALUE"),
        (["--set", "batch=[1"], 2, "batch: not YAML (line 1: "),
        (["--set", "network.audio.null=false"], 1, "frames.audio_dropped needs network.audio.null"),
        (
            ["--hold", "windowed", "--window", "5", "-s", "window=8"],
            2,
            "--window is 5, and --set window=8; leave",
        ),
        (["--run", "s3://b/run"], 2, "s3://b/run is an address; --run is a folder of this machine"),
        (["--cache", "http://me:pw@b/c"], 2, "http://b/c is an address; --cache is a folder of this machine"),
        (["--params", "s3://b/p.yaml"], 2, "s3://b/p.yaml is an address; --params is a file of this machine"),
        (
            ["--start-from", "s3://b/run"],
            2,
            "s3://b/run is an address; --start-from is a path of this machine",
        ),
        (["--params", "none.yaml"], 1, "none.yaml: is not there"),
        (["--micro-batch", "0"], 2, "0 is not in the range"),
        (["--precision", "fp8"], 2, "'fp8' is not one of"),
        ([], 2, "--shards is required: the folder or address of a dataset"),
        (["--shards", "nowhere"], 1, "nowhere: no dataset.json here, so this is not a complete dataset"),
    ],
)
def test_a_users_mistake_is_reported_in_one_line(options: list[str], code: int, message: str) -> None:
    result = train(*options, code=code)
    [error] = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert message in error
    assert result.output.endswith(f"{error}\n")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{presett: demo}", "train.presett is not known; known are preset, changes"),
        ("{changes: {bacth: 1}}", "bacth is not known"),
        ("{changes: {optim: 1}}", "optim is 1, expected a section of learning_rate"),
        ("{changes: 5}", "train.changes is 5"),
    ],
)
def test_an_invalid_train_section_is_reported_in_one_line(section: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"train: {section}")
    assert message in train("--dry-run", code=1).output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_reported_in_one_line() -> None:
    output = train("--shards", "nowhere", "--device", "cuda", code=1).output
    assert output.startswith("Error: device cuda: PyTorch finds no GPU here; use cpu, or fix the driver")
    assert len(output.splitlines()) == 1


def test_a_folder_that_is_no_dataset_is_not_modified(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    train("--shards", "empty", "--run", "run", code=1)
    assert list((tmp_path / "empty").iterdir()) == []


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_writes_everything_that_is_needed_to_start_it_again(tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", [9, 8])
    changes = {"preset": "multi-speaker", "changes": worlds.recipe_to_changes(TINY)}
    (tmp_path / "params.yaml").write_text(json.dumps({"train": changes}))
    options = ["--shards", str(shards), "--set", "steps=2", "--device", "cpu"]
    assert train(*options).stdout == "runs/multi-speaker: done\n"
    run = tmp_path / "runs" / "multi-speaker"
    content = json.loads((run / "run.json").read_text())
    assert content["shards"] == str(shards) and content["preset"] == "multi-speaker"
    assert content["mels"] == json.loads((shards / "dataset.json").read_text())["params"]["mels"]
    assert recipe_from_dict(content["recipe"]).steps == 2
    assert set(content["versions"]) == {"redub", "torch", "numpy"}
    names = {path.name for path in run.iterdir()}
    assert names == {".lock", "run.json", "metrics.jsonl", "tensorboard", "pictures", "checkpoints"}
    assert train(*options).stdout == "runs/multi-speaker: done\n", "running it again changes nothing"
    assert train(*options, "--hold", "cached").stdout == "runs/multi-speaker: done\n", (
        "nor does another --hold"
    )
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2, (
        "one line of metrics and one of the held-out loss"
    )
