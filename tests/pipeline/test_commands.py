"""The commands as a user meets them: help, errors in one line, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock

from pipeline import params as params_file
from pipeline.main import COMMANDS, cli
from pipeline.params import Params
from shards.reader import open_dataset, read_clip
from shards.verify import verify
from stages.edit.run import EditParams, Preset
from stages.edit.timing import Fit
from stages.engine.lock import LOCK_NAME
from stages.engine.outcome import StageError
from stages.synth import ClipSpec, make_clip
from tests.build import PIPELINE, build, pipeline

ROOT = Path(__file__).parents[2]
HEAVY = ("mediapipe", "torch", "cv2", "av", "librosa", "pyarrow", "distributed", "numpy", "pydantic")


def test_help_waits_for_no_library() -> None:
    script = (
        "import sys; from pipeline.main import cli\n"
        "try: cli(['--help'])\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


@pytest.mark.parametrize("name", ["clips", "landmarks", "align", "mels", "shard"])
def test_every_stage_takes_the_options_that_scripts_rely_on(name: str) -> None:
    told = CliRunner().invoke(cli, [name, "--help"]).output
    for option in ("--raw", "--work", "--out", "--workers", "--scheduler", "--json", "--dry-run"):
        assert option in told


def get_options(command: str) -> dict[str, click.Option]:
    with click.Context(cli) as context:
        found = cli.get_command(context, command)
    assert found is not None
    return {option.name or "": option for option in found.params if isinstance(option, click.Option)}


def test_params_are_described_alike_by_every_command() -> None:
    options = [get_options(name).get("params") for name in COMMANDS]
    assert len({option.help for option in options if option is not None}) == 1


def test_the_options_of_an_edit_have_the_choices_and_defaults_of_its_params() -> None:
    """They are written twice where the params would cost the import of torch."""
    options, params, choices = get_options("edit"), EditParams(), {"fit": Fit, "preset": Preset}
    for name in ("fit", "crf", "preset", "max_seconds", "max_pixels"):
        assert options[name].default == getattr(params, name)
    for name, literal in choices.items():
        assert options[name].type.choices == get_args(literal)  # type: ignore[attr-defined]


def test_params_yaml_says_the_defaults() -> None:
    assert params_file.load(ROOT / "params.yaml") == Params()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("crops: {size: 3}", "crops is not known; known are parts, clips"),
        ("align: {sise: 3}", "align.sise is not known; known are size, smooth_frames"),
        ("align: {size: small}", "align.size is 'small'"),
        ("align: {smooth_frames: 8}", "smooth_frames is 8, expected an odd number"),
        ("mels: {win_length: 4096}", "win_length 4096 is longer than n_fft 2048"),
        ("shard: {codec: gif}", "shard.codec is 'gif'"),
        ("limits: {memory_mb: 1}", "limits.memory_mb is 1"),
        ("- 1", "is [1], expected a mapping of sections"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_param_is_one_line_that_names_it(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(StageError, match=r"params\.yaml") as caught:
        params_file.load(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["clips", "--dataset", "grid", "--raw", "nowhere"], 1, "--raw"),
        (
            ["clips", "--dataset", "lrs9"],
            2,
            "'lrs9' is not one of 'grid', 'crema-d', 'lrs2', 'lrs3', 'voxceleb2', 'hdtf', ",
        ),
        (["landmarks", "--dataset", "grid", "--work", "w"], 1, "run `pipeline clips --dataset grid` first"),
        (["shard", "--dataset", "grid", "--out", "gs://b/p"], 2, "expected a folder or s3://"),
        (["shard", "--dataset", "grid", "--raw", "s3://b/p"], 2, "are built into shards in a bucket"),
        (
            ["mels", "--dataset", "grid", "--raw", "s3://b/p", "--out", "s3://b/q"],
            1,
            "are built by `pipeline shard`",
        ),
        (["shard", "--dataset", "grid", "--raw", ".", "--work", "w"], 1, "which is never written to"),
        (["shard", "--dataset", "grid", "--params", "none.yaml"], 1, "none.yaml: is not there"),
        (["clips", "--dataset", "grid", "--workers", "0"], 2, "0 is not in the range"),
        (["verify", "nowhere"], 1, "not a complete dataset"),
        (["explain", "nowhere", "x"], 1, "not a complete dataset"),
        (["diff", "nowhere", "nowhere"], 1, "not a complete dataset"),
        (["synth", "--to", "s3://b/p"], 2, "s3://b/p is an address; --to is a folder of this machine"),
        (["edit", "-o", "s3://b/o.mp4"], 2, "s3://b/o.mp4 is an address; --out is a path of this machine"),
    ],
)
def test_what_a_user_got_wrong_is_said_in_one_line(
    words: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == code, result.output
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runner.CONNECT_SECONDS", 1)
    make_clip(tmp_path / "raw" / "a.mp4", ClipSpec(seconds=0.6))
    words = ["clips", "--dataset", "folder", "--raw", str(tmp_path / "raw"), "--work", str(tmp_path / "w")]
    result = CliRunner().invoke(cli, [*words, "--scheduler", "tcp://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no Dask scheduler responds" in result.output


def test_a_dry_run_prints_params_and_counts_and_writes_nothing(tmp_path: Path) -> None:
    make_clip(tmp_path / "raw" / "a.mp4", ClipSpec(seconds=0.6))
    told = pipeline(
        "shard", "--dataset", "folder", "--raw", tmp_path / "raw", "--work", tmp_path / "w", "--dry-run",
        cwd=tmp_path,
    )  # fmt: skip
    plan = yaml.safe_load(told)
    assert plan["files"] == 1
    assert plan["params"]["align"]["size"] == 128
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("option", [None, "none", "whisper-tiny.en"])
def test_the_command_line_overrides_the_speech_encoder_of_the_params(
    option: str | None, tmp_path: Path
) -> None:
    make_clip(tmp_path / "raw" / "a.mp4", ClipSpec(seconds=0.6))
    (tmp_path / "params.yaml").write_text("speech: {encoder: whisper-tiny.en}\n")
    told = pipeline(
        "shard", "--dataset", "folder", "--raw", tmp_path / "raw", "--work", tmp_path / "w", "--dry-run",
        *(["--speech-encoder", option] if option else []),
        cwd=tmp_path,
    )  # fmt: skip
    assert yaml.safe_load(told)["params"]["speech"]["encoder"] == (option or "whisper-tiny.en")


def test_a_file_name_of_any_length_and_letters_comes_through_the_whole_road(tmp_path: Path) -> None:
    name = "ein sehr langer Name, mit Ümläuten & 'Zeichen' " + "x" * 150
    make_clip(tmp_path / "raw" / f"{name}.mp4", ClipSpec(seconds=0.6))
    build(tmp_path / "raw", tmp_path / "w")
    (clip_id,) = open_dataset(tmp_path / "w" / "shards").clips
    assert read_clip(open_dataset(tmp_path / "w" / "shards"), clip_id).info["source"] == f"{name}.mp4"
    assert list(verify(tmp_path / "w" / "shards", full=True)) == []


def test_everything_lost_ends_with_one_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"no video at all")
    told = pipeline(
        "shard", "--dataset", "folder", "--raw", tmp_path / "raw", "--work", tmp_path / "w", code=1
    )
    assert "not_media" in told
    assert "a.mp4: cannot be opened as video" in told
    summary = pipeline(
        "shard", "--dataset", "folder", "--raw", tmp_path / "raw", "--work", tmp_path / "w", "--json", code=1
    )
    assert json.loads(summary)["stages"][0]["counts"] == {"ok": 0, "not_media": 1}
    explained = json.loads(pipeline("explain", tmp_path / "w", "a.mp4", "--json"))
    assert explained["status"] == "dropped"


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "raw" / "a.mp4", ClipSpec(seconds=0.6))
    (tmp_path / "w").mkdir()
    with FileLock(tmp_path / "w" / LOCK_NAME):
        words = ["clips", "--dataset", "folder", "--raw", "raw", "--work", "w"]
        done = subprocess.run([*PIPELINE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another pipeline command is at work there" in done.stderr


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    script = "import os, sys, pipeline.main; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    assert printed.split() == [expected, "False"], "PyTorch reads it when it is imported"
