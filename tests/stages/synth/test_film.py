"""Films with known truth: what is seen and heard in them is what their truth says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.main import cli
from stages.cut.shots import ContentComparison, find_shots
from stages.synth import ClipSpec, Truth, make_clip
from stages.synth.film import make_films
from stages.synth.film_spec import SCENE_KINDS, FilmParams, FilmTruth, SceneTruth
from tests.barcode import read_counter
from tests.lag import measure_lag_seconds
from tests.media import read_audio, read_rgb_frames
from tests.stages.test_synth import measure_loudness_db

SIZE = (320, 180)
CLIP_SIZE = (240, 180)
CLIP_SECONDS = 2.4


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people with a clip each."""
    folder = tmp_path_factory.mktemp("clips")
    for speaker in (1, 2):
        make_clip(
            folder / f"person-{speaker}" / "clip.mp4",
            ClipSpec(speaker=speaker, seconds=CLIP_SECONDS, size=CLIP_SIZE),
        )
    return folder


@pytest.fixture(scope="module")
def film(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FilmTruth]:
    """A film with a scene of each kind."""
    [film] = make_films(tmp_path_factory.mktemp("film"), clips, FilmParams(seconds=19.9, size=SIZE))
    return film


def read_loudness(path: Path, scene: SceneTruth) -> tuple[np.ndarray, np.ndarray]:
    """Times from the scene's start, and levels in dB."""
    start, rate, sound = read_audio(path)
    first, end = (round((frame / 25 - start) * rate) for frame in (scene.first_frame, scene.end_frame))
    part = sound[first:end]
    return measure_loudness_db(np.arange(len(part)) / rate, part)


def test_a_film_shows_each_kind_of_scene_and_its_shots_are_found(film: tuple[Path, FilmTruth]) -> None:
    path, truth = film
    assert {scene.kind for scene in truth.scenes} == set(SCENE_KINDS)
    ends = [0, *(scene.end_frame for scene in truth.scenes)]
    assert [scene.first_frame for scene in truth.scenes] == ends[:-1], "no frame is in two scenes or in none"
    frames = read_rgb_frames(path)
    assert len(frames) == truth.n_frames >= 19.9 * 25
    compare = ContentComparison()
    shots = find_shots(np.array([compare(frame) for frame in frames], np.float32))
    assert len(shots) == len(truth.shots) and np.abs(np.subtract(shots, truth.shots)).max() <= 1
    assert FilmTruth.load(path) == truth


def test_pictures_run_with_their_clips_and_the_voice_is_as_late_as_the_truth_says(
    film: tuple[Path, FilmTruth], clips: Path
) -> None:
    path, truth = film
    frames = read_rgb_frames(path)
    n_lags = 0
    for scene in truth.scenes:
        moving = [face for face in scene.faces if not face.is_still and scene.kind != "punch-in"]
        for face in moving:
            x0, y0, x1, y1 = face.box
            offset = np.array([(x0 + x1 - CLIP_SIZE[0]) / 2, (y0 + y1 - CLIP_SIZE[1]) / 2])
            for k, frame in enumerate(
                Truth.load(clips / face.clip).frames[: scene.end_frame - scene.first_frame]
            ):
                corners = np.array(frame.corners_px) + offset
                if corners[:, 0].min() > x0 and corners[:, 0].max() < x1:
                    assert read_counter(frames[scene.first_frame + k], corners) == frame.counter, scene.kind
        times, level = read_loudness(path, scene)
        if scene.kind == "black":
            assert level.max() < -60
        if scene.kind in ("speaker", "lag", "two-faces", "no-face", "voice-over"):
            assert scene.voice_clip is not None and scene.speech_seconds is not None
            voice = Truth.load(clips / scene.voice_clip)
            lag = measure_lag_seconds(voice.openings, voice.times_s, level, times)
            assert 1000 * lag == pytest.approx(scene.lag_ms, abs=12), scene.kind
            n_lags += scene.lag_ms != 0
    assert n_lags


def test_the_same_options_give_the_same_bytes(clips: Path, tmp_path: Path) -> None:
    params = FilmParams(seconds=3, scenes=("two-faces", "lag"), size=SIZE, seed=7)
    [(one, truth)], [(two, _)] = (make_films(tmp_path / name, clips, params) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert FilmTruth.path_for(one).read_bytes() == FilmTruth.path_for(two).read_bytes()
    assert {scene.kind for scene in truth.scenes} == {"two-faces", "lag"}


def test_what_cannot_be_made_is_refused_in_one_line(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    film = ["--style", "film", "--to", tmp_path / "to"]
    alone = clips / "person-1"
    refusals: dict[str, list[str | Path]] = {
        "--style film needs --from": film,
        "empty: holds no file that could be a clip": [*film, "--from", tmp_path / "empty"],
        "two faces need two persons": [*film, "--from", alone, "--scene", "two-faces"],
        "scenes.0 is 'opera', expected": [*film, "--from", clips, "--scene", "opera"],
        "--speakers does not go with --style film": [*film, "--from", clips, "--speakers", "2"],
        "--from does not go with --style grid": ["--to", tmp_path / "to", "--from", clips],
    }
    for message, options in refusals.items():
        result = CliRunner().invoke(cli, ["synth", *map(str, options)])
        assert result.exit_code == 1, result.output
        assert message in result.output and result.output.count("\n") == 1, result.output
