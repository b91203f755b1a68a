"""`pipeline edit` as a user runs it: a run, a video and speech in, a video out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from model import loop
from model.checkpoint import save_checkpoint
from pipeline import params as params_file
from pipeline.main import cli
from stages import synth
from stages.edit.face_check import MisfitError
from stages.engine.outcome import StageError
from stages.mels import MelsParams
from stages.speech import SpeechParams
from stages.synth import ClipSpec
from tests.media import read_rgb_frames
from tests.model.worlds import CPU, TINY


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run of a few channels, and a clip with its own speech."""
    folder = tmp_path_factory.mktemp("world")
    recipe = replace(TINY, network=replace(TINY.network, size=32))
    save_checkpoint(loop.create_state(recipe, CPU), folder / "run", recipe, "digest", None)
    synth.make_clip(folder / "clip.mp4", ClipSpec(seconds=0.4, size=(240, 192)))
    n_mels = recipe.network.audio.n_mels
    (folder / "params.yaml").write_text(f"mels: {{n_mels: {n_mels}}}\n")
    return folder


def edit(world: Path, out: Path, *arguments: str | Path, run: str = "run", code: int = 0) -> Result:
    defaults = {
        "--video": world / "clip.mp4",
        "--audio": world / "clip.mp4",
        "--run": world / run,
        "--params": world / "params.yaml",
        "--out": out,
        "--device": "cpu",
        "--steps": "2",
        "--preset": "ultrafast",
    }
    options = [text for pair in defaults.items() for text in map(str, pair)]
    result = CliRunner().invoke(cli, ["edit", "--any-face", *options, *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.usefixtures("landmarker")
def test_a_run_redraws_the_mouth_and_the_command_prints_what_it_did(world: Path, tmp_path: Path) -> None:
    out, preview = tmp_path / "out.mp4", tmp_path / "both.mp4"
    result = edit(world, out, "--sampler", "ddim", "--seed", "1", "--preview", preview)
    assert result.stdout == (f"{out}: 10 of 10 frames re-drawn, 0.40 s, 240x192 at 25 fps, audio copied\n")
    assert "faces 10/10" in result.stderr and "frames 10/10" in result.stderr
    output, source = np.stack(read_rgb_frames(out)).astype(int), np.stack(read_rgb_frames(world / "clip.mp4"))
    changed = (np.abs(output - source).max(axis=-1) > 60).any(axis=0)
    rows, columns = np.nonzero(changed)
    assert len(rows) > 500, "an untrained network generates noise"
    assert rows.min() > 90 and rows.max() < 180 and columns.min() > 60 and columns.max() < 170
    edit(world, tmp_path / "again.mp4", "--sampler", "ddim", "--seed", "1")
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()


def test_mels_are_made_as_those_that_the_run_was_trained_on(world: Path, tmp_path: Path) -> None:
    sections = params_file.load(world / "params.yaml")
    run = tmp_path / "run"
    run.mkdir()
    assert sections.make_edit_params(run).mels == sections.mels  # a checkpoint that was copied alone
    (run / "run.json").write_text('{"shards": "data/grid"}')  # of an earlier version
    assert sections.make_edit_params(run).mels == sections.mels
    section = {"n_mels": 40, "reference": "clip"}
    (run / "run.json").write_text(json.dumps({"mels": section}))
    assert sections.make_edit_params(run).mels == MelsParams(**section)


def test_speech_features_are_those_that_the_run_was_trained_on(tmp_path: Path) -> None:
    here = replace(params_file.Params(), speech=SpeechParams("none", "weights.bin"))
    run = tmp_path / "run"
    run.mkdir()
    assert here.make_edit_params(run).speech.encoder == "none"  # a checkpoint that was copied alone
    (run / "run.json").write_text(json.dumps({"speech": {"encoder": "whisper-tiny.en", "model": "theirs"}}))
    assert here.make_edit_params(run).speech == SpeechParams("whisper-tiny.en", "weights.bin"), "our file"
    (run / "run.json").write_text(json.dumps({"speech": {"encoder": "whisper-huge"}}))
    with pytest.raises(StageError, match=r"speech\.encoder is 'whisper-huge', expected 'none' or"):
        here.make_edit_params(run)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "JSON holds list, expected an object"),
        ('{"mels": [80]}', "mels is [80], expected a valid dictionary"),
        ('{"mels": {"n_mels": 1e9}}', "mels.n_mels is 1000000000.0, expected less than or equal to"),
        ('{"mels": {"reference": "loud"}}', "mels.reference is 'loud', expected 'clip' or 'windowed'"),
        ('{"mels": {"hop": 3}}', "mels.hop is not known"),
        ('{"mels": {"n_fft": 128}}', "mels.win_length 640 is longer than n_fft 128"),
    ],
)
def test_mels_of_a_run_that_cannot_be_made_are_one_line(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(StageError) as caught:
        params_file.Params().make_edit_params(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'run.json'}: {problem}") and "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "run", "code", "message"),
    [
        ((), "no-run", 1, "no-run: no checkpoint here"),
        (("--face", "middle"), "run", 2, "middle: expected largest, left, right or a number"),
        (("--audio", "none.wav"), "run", 1, "none.wav: there is no such file"),
        (("--max-seconds", "0.2"), "run", 1, "would last 0.4 s, expected at most 0.2 s; --max-seconds"),
        (("--params", "none.yaml"), "run", 1, "none.yaml: is not there"),
    ],
)
@pytest.mark.usefixtures("landmarker")
def test_an_error_is_one_line_and_leaves_no_file(
    world: Path, tmp_path: Path, arguments: tuple[str, ...], run: str, code: int, message: str
) -> None:
    result = edit(world, tmp_path / "out.mp4", *arguments, run=run, code=code)
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said_at_once_and_before_anything_is_searched(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANDMARKER", "SPEECH_ENCODER"):
        monkeypatch.setenv(f"REDUB_{name}", f"no-{name.lower()}")
    out, run, table = tmp_path / "out.mp4", tmp_path / "run", tmp_path / "none.csv"
    assert edit(world, out, "--video", "none.mp4", code=1).stderr.endswith(
        "none.mp4: there is no such file\n"
    )
    batch = ["edit", "--batch", table, "--run", world / "run", "--out", out]
    assert f"{table}: cannot be read" in CliRunner().invoke(cli, [*map(str, batch)]).stderr
    audio = replace(TINY.network.audio, input="speech")
    recipe = replace(TINY, network=replace(TINY.network, size=32, audio=audio))
    save_checkpoint(loop.create_state(recipe, CPU), run, recipe, "digest", None)
    (run / "run.json").write_text('{"speech": {"encoder": "whisper-tiny.en", "model": ""}}')
    [line] = edit(world, out, "--run", run, code=1).stderr.splitlines()
    assert "no-landmarker" in line and "no-speech_encoder" in line


@pytest.mark.parametrize(
    ("choices", "advice"),
    [
        (("left",), "--adapt trains it on this video, --any-face draws all the same"),
        (("left", "right"), "--any-face draws all the same, --adapt helps an edit of that face alone"),
    ],
)
@pytest.mark.usefixtures("landmarker")
def test_what_is_advised_about_a_misfit_works_with_the_faces_that_are_edited(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: tuple[str, ...], advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MisfitError("clip.mp4: the network does not fit this face")

    monkeypatch.setattr("stages.edit.run.edit", refuse)
    clip = world / "clip.mp4"
    words = ["edit", "--video", clip, "--run", world / "run", "--params", world / "params.yaml"]
    faces = [f"--face={choice}={clip}" for choice in choices]
    result = CliRunner().invoke(
        cli, [*map(str, words), *faces, "--out", str(tmp_path / "out.mp4"), "--device", "cpu"]
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith(f"the network does not fit this face; {advice}")
