"""`pipeline edit --adapt` as a user runs it: what it says, what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from model.published_file import read_published_info
from pipeline.main import cli
from stages import synth
from stages.media import weights
from stages.synth import ClipSpec
from tests.pipeline.test_edit import world as _world_of_an_edit

pytestmark = pytest.mark.usefixtures("landmarker")
world = _world_of_an_edit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("stages.adapt.run.cache_folder", lambda: folder)
    return folder


def edit(world: Path, out: Path, *arguments: object, code: int = 0) -> Result:
    video = world / "talk.mp4"
    if not video.exists():
        synth.make_clip(video, ClipSpec(seconds=2.4, size=(240, 192)))
    options = ["--video", video, "--audio", world / "clip.mp4", "--run", world / "run", "--out", out,
               "--params", world / "params.yaml", "--device", "cpu", "--steps", 2,
               "--preset", "ultrafast"]  # fmt: skip
    result = CliRunner().invoke(cli, ["edit", *map(str, options), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_an_edit_adapts_once_and_then_draws_with_the_same_model(
    world: Path, tmp_path: Path, cache: Path
) -> None:
    out, model = tmp_path / "out.mp4", tmp_path / "me.safetensors"
    minutes = "--adapt", "--adapt-minutes", 0.02
    result = edit(world, out, *minutes, "--keep-model", model)
    first, second, third = result.stdout.splitlines()
    assert first.startswith(f"{model}: adapted to 2.4 s of the face in ")
    assert second.startswith("that is little")
    assert third.startswith(f"{out}: 11 of 11 frames re-drawn")
    assert "adapting to 2 of 2 s of the video: about " in result.stderr
    for label in ("faces 60/60", "crops 60/60", "loading training clips 60/60", "training "):
        assert label in result.stderr
    assert read_published_info(model).mels is not None
    [cached] = (cache / "adapted").iterdir()

    again = edit(world, tmp_path / "again.mp4", *minutes)
    assert again.stdout.splitlines()[0] == f"{cached}: adapted to this video before"
    assert "training" not in again.stderr
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    edit(world, tmp_path / "kept.mp4", "--run", model, "--any-face")
    assert (tmp_path / "kept.mp4").read_bytes() == out.read_bytes()
    edit(world, tmp_path / "plain.mp4", "--any-face")
    assert (tmp_path / "plain.mp4").read_bytes() != out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--adapt-minutes", "3"), 2, "--adapt-minutes needs --adapt"),
        (("--keep-model", "me.safetensors"), 2, "--keep-model needs --adapt"),
        (("--adapt", "--adapt-minutes", "0"), 2, "0.0 is not in the range"),
        (("--adapt", "--adapt-minutes", "nan"), 2, "nan is no number"),
        (("--adapt", "--keep-model", "me.pt"), 1, "me.pt: a model is written as .safetensors"),
        (("--adapt", "--out", "nowhere/out.mp4"), 1, "nowhere/out.mp4: there is no folder nowhere"),
        (("--adapt", "--run", "./nowhere"), 1, "nowhere: no checkpoint here"),
    ],
)
def test_a_users_mistake_is_one_line_and_said_before_the_training(
    world: Path, tmp_path: Path, cache: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = edit(world, tmp_path / "out.mp4", *arguments, code=code)
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output and "faces" not in result.output
    assert not cache.exists() and not (tmp_path / "out.mp4").exists()


def test_the_cache_is_the_users() -> None:
    assert weights.cache_folder().name == "redub"
