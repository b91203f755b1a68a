import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.commands.synth import command
from stages import synth
from stages.synth import ClipSpec, SynthError, SynthParams, Truth, make_clip, make_corpus
from stages.synth.face import layers

LANDMARKER = Path(
    os.environ.get("REDUB_LANDMARKER") or Path(__file__).parents[2] / "../shared/models/face_landmarker.task"
)
needs_landmarker = pytest.mark.skipif(
    not LANDMARKER.is_file(), reason=f"no face landmarker at {LANDMARKER}; set REDUB_LANDMARKER"
)


def decode(clip: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Time stamps in seconds, and the frames, RGB."""
    with av.open(str(clip)) as container:
        shown = list(container.decode(video=0))
        frames = [np.ascontiguousarray(frame.to_ndarray(format="rgb24")) for frame in shown]
        return np.array([frame.time for frame in shown]), frames


def hear(clip: Path) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's time by its frame's time stamp, and the samples, (channels, n) in [-1, 1]."""
    times, samples = [], []
    with av.open(str(clip)) as container:
        for frame in container.decode(audio=0):
            values = frame.to_ndarray().astype(float)
            values /= 32768 if frame.format.name.startswith("s16") else 1
            samples.append(values)
            times.append(float(frame.pts * frame.time_base) + np.arange(frame.samples) / frame.sample_rate)
    return np.concatenate(times), np.concatenate(samples, axis=1)


def loudness_db(times: np.ndarray, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of 20 ms windows: the time of each one's middle, and its level."""
    window, hop = 882, 441
    starts = np.arange(0, len(sound) - window, hop)
    power = np.array([(sound[i : i + window] ** 2).mean() for i in starts])
    return times[starts] + window / 2 / synth.SAMPLE_RATE, 10 * np.log10(power + 1e-9)


def heard_offset_ms(clip: Path, truth: Truth) -> float:
    times, samples = hear(clip)
    heard_at, level = loudness_db(times, samples[0])
    lag = synth.measure_lag_seconds(truth.openings, truth.times_s, level, heard_at)
    return 1000 * lag


@pytest.mark.parametrize(
    ("container", "fps", "offset_ms"),
    [
        ("mpg", "25", 80),
        ("mpg", "29.97", -120),
        ("flv", "29.97", 0),
        ("flv", "variable", -80),
        ("flv", "12.5", 200),
        ("mp4", "25", -200),
        ("mp4", "variable", 120),
        ("mkv", "30000/1001", 40),
        ("mkv", "variable", 0),
    ],
)
def test_a_planted_offset_is_heard_by_a_player_that_honours_time_stamps(
    tmp_path: Path, container: str, fps: str, offset_ms: float
) -> None:
    clip = tmp_path / f"clip.{container}"
    truth = make_clip(clip, ClipSpec(fps=fps, av_offset_ms=offset_ms, size=(240, 192)))
    assert heard_offset_ms(clip, truth) == pytest.approx(offset_ms, abs=5)


@pytest.mark.parametrize("container", ["mpg", "flv", "mp4", "mkv"])
@pytest.mark.parametrize("speaker", [1, 2])  # 2 is mirrored
def test_every_frame_says_its_number_and_comes_at_its_time(
    tmp_path: Path, container: str, speaker: int
) -> None:
    clip = tmp_path / f"clip.{container}"
    fps = "25" if container == "mpg" else "variable"
    truth = make_clip(clip, ClipSpec(speaker=speaker, seconds=1.2, fps=fps))
    times, frames = decode(clip)
    assert times == pytest.approx(truth.times_s, abs=1e-6)
    read = [
        synth.read_counter(image, known.corners_px) for image, known in zip(frames, truth.frames, strict=True)
    ]
    assert read == list(range(len(frames)))


def test_the_number_is_read_from_a_small_crop_and_not_from_elsewhere(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"
    truth = make_clip(clip, ClipSpec(seconds=0.8))
    crop = np.array([[0.55, 0.02, -30.0], [-0.02, 0.55, -10.0]])
    for image, known in zip(decode(clip)[1], truth.frames, strict=True):
        small = np.asarray(cv2.warpAffine(image, crop, (128, 128)), dtype=np.uint8)
        corners = np.array(known.corners_px) @ crop[:, :2].T + crop[:, 2]
        assert synth.read_counter(small, corners) == known.counter
        assert synth.read_counter(small, corners + np.array([0, 30])) is None


def test_variable_frames_are_dropped_and_keep_their_times(tmp_path: Path) -> None:
    truth = make_clip(tmp_path / "clip.mp4", ClipSpec(fps="variable", size=(160, 128)))
    steps_ms = 1000 * np.diff(truth.times_s)
    assert len(truth.frames) < 0.95 * 30 * 2.4
    assert steps_ms.min() > 20
    assert 60 < steps_ms.max() < 115
    assert len(np.unique(steps_ms.round())) > 5


def test_formats_are_those_of_the_real_corpora(tmp_path: Path) -> None:
    def facts(style: Any) -> dict[str, Any]:
        params = SynthParams(style=style, speakers=1, clips=1, seconds=0.6)
        [made] = make_corpus(tmp_path / style, params)
        with av.open(str(made.path)) as clip:
            video, audio = clip.streams.video[0], clip.streams.audio[0]
            return {
                "video": video.codec_context.name,
                "size": (video.width, video.height),
                "audio": audio.codec_context.name,
                "rate": audio.rate,
                "channels": audio.channels,
            }

    grid = {"video": "mpeg1video", "size": (360, 288), "audio": "mp2", "rate": 44100, "channels": 2}
    crema = {"video": "flv", "size": (480, 360), "audio": "mp3float", "rate": 44100, "channels": 1}
    folder = {"video": "h264", "size": (480, 360), "audio": "aac", "rate": 44100, "channels": 2}
    assert [facts(style) for style in ("grid", "crema-d", "folder")] == [grid, crema, folder]


def test_stamps_in_flv_are_whole_milliseconds_and_the_picture_starts_late(tmp_path: Path) -> None:
    truth = make_clip(tmp_path / "clip.flv", ClipSpec(fps="29.97", seconds=0.6, size=(160, 128)))
    assert set(np.diff(truth.times_s * 1000).round(6)) == {33.0, 34.0}
    assert 0.01 < truth.times_s[0] < 0.05


@pytest.mark.parametrize("container", ["mpg", "flv", "mp4", "mkv"])
def test_the_same_spec_gives_the_same_bytes(tmp_path: Path, container: str) -> None:
    spec = ClipSpec(seconds=0.8)
    digests = set()
    for i in range(3):
        clip = tmp_path / f"{i}.{container}"
        make_clip(clip, spec)
        digests.add(hashlib.sha256(clip.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_names_are_the_real_corpora_s(tmp_path: Path) -> None:
    def names(style: Any, **more: Any) -> list[str]:
        params = SynthParams(style=style, speakers=2, clips=2, seconds=0.4, size=(128, 128), **more)
        made = make_corpus(tmp_path / style, params)
        return [clip.path.relative_to(tmp_path / style).as_posix() for clip in made]

    grid = re.compile(r"s[12]/[blps][bgrw][abiw][a-vx-z][z1-9][anps]\.mpg")
    assert all(grid.fullmatch(name) for name in names("grid"))
    crema = re.compile(r"VideoFlash/10(15|16)_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_XX\.flv")
    assert all(crema.fullmatch(name) for name in names("crema-d", first_speaker=15))
    assert names("folder") == [f"speaker-{s}/clip-00{c}.mp4" for s in (1, 2) for c in (1, 2)]


def test_no_two_clips_of_grid_share_a_name() -> None:
    places = [
        synth.clip_place("grid", speaker=speaker, clip=clip, seed=0)[1].name
        for speaker in (1, 2, 34)
        for clip in (1, 2, 50, 1000)
    ]
    assert len(set(places)) == len(places)


def test_a_second_run_keeps_whole_clips_and_mends_damaged_ones(tmp_path: Path) -> None:
    params = SynthParams(speakers=1, clips=3, seconds=0.4, size=(128, 128))
    first = make_corpus(tmp_path, params)
    assert all(clip.is_new for clip in first)
    whole = first[0].path.read_bytes()
    first[0].path.write_bytes(whole[:1000])
    Truth.path_for(first[1].path).write_text("{")
    second = make_corpus(tmp_path, params)
    assert [clip.is_new for clip in second] == [True, True, False]
    assert [clip.truth for clip in second] == [clip.truth for clip in first]
    assert first[0].path.read_bytes() == whole
    assert not list(tmp_path.rglob("*.partial"))


def test_truth_is_read_back_as_it_was(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"
    assert make_clip(clip, ClipSpec(seconds=0.4, size=(128, 128))) == Truth.load(clip)


def test_antiphase_channels_cancel_when_averaged(tmp_path: Path) -> None:
    for container in ("mpg", "flv", "mp4"):
        clip = tmp_path / f"clip.{container}"
        make_clip(clip, ClipSpec(seconds=0.8, size=(128, 128), antiphase=True))
        left, right = hear(clip)[1]
        assert np.std(left + right) < 0.1 * np.std(left)


def test_speakers_differ_in_looks_and_voice() -> None:
    looks = [synth.draw_look(speaker=speaker, seed=0) for speaker in range(1, 9)]
    portraits = [synth.draw_portrait(look).astype(float) for look in looks]
    for i in range(len(looks)):
        for j in range(i):
            assert np.abs(portraits[i] - portraits[j]).mean() > 4
            assert abs(looks[i].pitch_hz - looks[j].pitch_hz) > 0.1


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    layers.cache_clear()
    make_clip(tmp_path / "clip.mpg", ClipSpec(seconds=0.4, size=(128, 128)))


@settings(max_examples=40)
@given(lag_ms=st.floats(-200, 200), seed=st.integers(0, 10_000), phase_s=st.floats(0, 0.04))
def test_a_lag_is_measured_to_5_ms_on_grids_of_25_and_50_a_second(
    lag_ms: float, seed: int, phase_s: float
) -> None:
    said = synth.speech_opening(np.random.default_rng(seed), seconds=2.4)
    seen_at, heard_at = np.arange(60) / 25 + phase_s, np.arange(120) / 50
    loudness = 30 * said(heard_at - lag_ms / 1000) - 50
    lag = synth.measure_lag_seconds(said(seen_at), seen_at, loudness, heard_at)
    assert 1000 * lag == pytest.approx(lag_ms, abs=5)


def test_signals_without_a_common_stretch_are_refused() -> None:
    t = np.arange(50) / 25
    with pytest.raises(SynthError, match="in common"):
        synth.measure_lag_seconds(np.sin(t), t, np.sin(t), t + 9)
    with pytest.raises(SynthError, match="stands out"):
        synth.measure_lag_seconds(t, t, np.ones(50), t)
    with pytest.raises(SynthError, match="times must rise"):
        synth.measure_lag_seconds(t, t[::-1], t, t)


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(ValidationError, match="expected variable or a rate"):
        SynthParams(fps="fast")
    with pytest.raises(SynthError, match="an mpg has one of"):
        make_corpus(Path("nowhere"), SynthParams(fps="variable"))
    with pytest.raises(SynthError, match=r"cannot write '\.avi'"):
        make_clip(Path("nowhere.avi"), ClipSpec())
    with pytest.raises(SynthError, match="speaker 35 asked for, grid has 34"):
        make_corpus(Path("nowhere"), SynthParams(first_speaker=35, speakers=1))
    assert not Path("nowhere").exists()


def test_the_command_makes_a_corpus_and_says_where(tmp_path: Path) -> None:
    asked = ["--to", str(tmp_path / "made"), "--style", "crema-d", "--speakers", "1"]
    asked += ["--clips", "2", "--seconds", "0.4"]
    result = CliRunner().invoke(command, asked)
    assert result.exit_code == 0, result.output
    assert "2 clips of 1 speakers" in result.output and "1001_" in result.output
    again = CliRunner().invoke(command, [*asked, "--json"])
    summary = json.loads(again.output)
    assert (summary["clips"], summary["new"], summary["frames"]) == (2, 0, 24)
    assert all((tmp_path / "made" / path).is_file() for path in summary["paths"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--fps", "0"], "fps = '0'"),
        (["--offset-ms", "900"], "av_offset_ms"),
        (["--fps", "26"], "an mpg has one of"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, option: list[str], words: str) -> None:
    result = CliRunner().invoke(command, ["--to", str(tmp_path), *option])
    assert result.exit_code == 1
    assert words in result.output and result.output.count("\n") == 1


@pytest.fixture(scope="module")
def landmarker() -> Iterator[Any]:
    mp = pytest.importorskip("mediapipe")
    tasks = mp.tasks
    options = tasks.vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(LANDMARKER)),
        running_mode=tasks.vision.RunningMode.IMAGE,
        num_faces=2,
    )
    with tasks.vision.FaceLandmarker.create_from_options(options) as opened:
        yield opened


@needs_landmarker
@pytest.mark.parametrize("speaker", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("container", "fps", "size"), [("mpg", "25", (360, 288)), ("flv", "29.97", (480, 360))]
)
def test_landmarks_follow_the_mouth_of_every_speaker(
    tmp_path: Path, landmarker: Any, speaker: int, container: str, fps: str, size: tuple[int, int]
) -> None:
    import mediapipe as mp

    clip = tmp_path / f"clip.{container}"
    truth = make_clip(clip, ClipSpec(speaker=speaker, seconds=1.2, fps=fps, size=size))
    gaps, chins = [], []
    for image in decode(clip)[1]:
        found = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=image))
        assert len(found.face_landmarks) == 1
        px = np.array([(p.x, p.y) for p in found.face_landmarks[0]]) * size
        pupils_px = np.linalg.norm(px[468] - px[473])
        eyes = px[[33, 133, 362, 263]].mean(axis=0)
        gaps.append(np.linalg.norm(px[13] - px[14]) / pupils_px)
        chins.append(np.linalg.norm(px[152] - eyes) / pupils_px)
    assert np.corrcoef(truth.openings, gaps)[0, 1] > 0.97
    assert np.corrcoef(truth.openings, chins)[0, 1] > 0.93
    assert np.ptp(gaps) > 0.2
