"""`pipeline edit --adapt` as a user runs it: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from model.published_file import read_published_info
from pipeline.main import cli
from stages import synth
from stages.media import weights
from stages.synth import ClipSpec
from tests.media import ffmpeg
from tests.pipeline.test_edit import world as _world_of_an_edit

if TYPE_CHECKING:
    from pipeline.app.sessions import Kind

pytestmark = pytest.mark.usefixtures("landmarker")
world = _world_of_an_edit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("stages.adapt.run.cache_folder", lambda: folder)
    return folder


def make_talk(world: Path) -> Path:
    """The video to adapt to."""
    video = world / "talk.mp4"
    if not video.exists():
        synth.make_clip(video, ClipSpec(seconds=2.4, size=(240, 192)))
    return video


def edit(world: Path, out: Path, *arguments: object, code: int = 0) -> Result:
    options = ["--video", make_talk(world), "--audio", world / "clip.mp4", "--run", world / "run",
               "--out", out, "--params", world / "params.yaml", "--device", "cpu", "--steps", 2,
               "--preset", "ultrafast"]  # fmt: skip
    result = CliRunner().invoke(cli, ["edit", *map(str, options), *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_an_edit_adapts_once_and_then_draws_with_the_same_model(
    world: Path, tmp_path: Path, cache: Path
) -> None:
    out, model = tmp_path / "out.mp4", tmp_path / "me.safetensors"
    minutes = "--adapt", "--adapt-minutes", 0.02
    result = edit(world, out, *minutes, "--any-face", "--keep-model", model)
    first, second = result.stdout.splitlines()
    assert first.startswith(f"{model}: adapted to 2.4 s of the face in ")
    assert second.startswith(f"{out}: 11 of 11 frames re-drawn")
    assert result.stderr.startswith("adapting to 2 of 2 s of the video: about ")
    assert result.stderr.splitlines()[0].endswith("or more the mouth follows other speech better")
    for label in ("faces 60/60", "crops 60/60", "loading training clips 60/60", "training "):
        assert label in result.stderr
    assert read_published_info(model).mels is not None
    [cached] = (cache / "adapted").iterdir()

    again = edit(world, tmp_path / "again.mp4", *minutes, "--any-face")
    assert again.stdout.splitlines()[0] == f"{cached}: adapted to this video before"
    assert "training" not in again.stderr
    assert (tmp_path / "again.mp4").read_bytes() == out.read_bytes()
    edit(world, tmp_path / "kept.mp4", "--run", model, "--any-face")
    assert (tmp_path / "kept.mp4").read_bytes() == out.read_bytes()
    edit(world, tmp_path / "plain.mp4", "--any-face")
    assert (tmp_path / "plain.mp4").read_bytes() != out.read_bytes()

    checked = edit(world, tmp_path / "checked.mp4", *minutes).stdout.splitlines()
    expected = (
        r"  colours at the mouth's border differ .* by \d+\.\d before adapting, \d+\.\d after, expected .*"
    )
    assert checked[1].startswith(f"{tmp_path / 'checked.mp4'}: 0 of 11 frames re-drawn")
    assert re.fullmatch(expected, checked[2]), "a few steps of noise make no skin"
    assert checked[3] == "  frames not changed: 11 no_fit"
    assert checked[4].startswith("  --any-face draws these frames too")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--audio", "{}/text.wav"), "text.wav: cannot be opened as sound"),
        (("--audio", "{}/silent.mp4"), "silent.mp4: has no sound"),
        (("--max-seconds", "0.2"), "would last 0.4 s, expected at most 0.2 s; --max-seconds allows more"),
        (("--fit", "hold", "--max-seconds", "2"), "would last 2.4 s, expected at most 2 s"),
    ],
)
def test_a_speech_that_cannot_be_used_is_said_before_the_training(
    world: Path, tmp_path: Path, cache: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.wav").write_text("hello")
    ffmpeg("-i", world / "clip.mp4", "-an", "-c", "copy", tmp_path / "silent.mp4")
    texts = [text.format(tmp_path) for text in arguments]
    result = edit(world, tmp_path / "out.mp4", "--adapt", *texts, code=1)
    assert message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not cache.exists() and not (tmp_path / "out.mp4").exists()


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


def test_the_page_checks_the_length_before_the_training_and_says_how_well_the_model_fits(
    world: Path, tmp_path: Path, landmarker: Path
) -> None:
    pytest.importorskip("gradio")
    from tests.page import VISITOR, make_service

    uploads: dict[Kind, Path] = {"video": make_talk(world), "speech": world / "clip.mp4"}
    service = make_service(
        tmp_path, world, world / "params.yaml", landmarker, uploads, max_seconds=2, max_adapt_minutes=0.001
    )

    def start(fit: str, *, any_face: bool = False) -> tuple[str, list[str]]:
        """The note, and what the progress bar said."""
        states: list[str] = []
        service.begin_edit(VISITOR)
        options: Any = ("run", 2, fit, True, any_face, "largest", "ddim", 1.0, 0.0, 0, 0, 30, 0)
        *_, note = service.edit(*options, VISITOR, lambda *_, desc, **__: states.append(desc))
        return html.unescape(note), states

    note, states = start("hold")
    assert "would last 2.4 s, expected at most 2 s" in note and states == ["Loading the network"]
    note, states = start("trim")
    assert "adapted to 2.4 s of the face in 20 steps" in note
    assert re.search(
        r"by \d+\.\d before adapting, \d+\.\d after, expected at most 5; the network still", note
    )
    assert "11 no_fit" in note and '"Draw any face" draws these frames too' in note
    assert any("that is little: with 10 s or more" in state for state in states)
    note, _ = start("trim", any_face=True)
    assert "11 of 11 frames re-drawn" in note and "adapted to this video before" in note
    assert "before adapting" not in note and "no_fit" not in note


def test_the_cache_is_the_users() -> None:
    assert weights.cache_folder().name == "redub"
