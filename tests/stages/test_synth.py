"""The synthetic corpus: its ground truth, formats, names and bytes."""

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

from pipeline.main import cli
from stages.synth import (
    ClipSpec,
    SynthError,
    SynthParams,
    Truth,
    make_clip,
    make_corpus,
)
from stages.synth.appearance import sample_appearance
from stages.synth.corpus import choose_clip_path
from stages.synth.curves import make_opening_curve
from stages.synth.face import draw_portrait, load_layers
from stages.synth.spec import SAMPLE_RATE
from tests.barcode import read_counter
from tests.lag import measure_lag_seconds

LANDMARKER = Path(
    os.environ.get("REDUB_LANDMARKER") or Path(__file__).parents[2] / "../shared/models/face_landmarker.task"
)
needs_landmarker = pytest.mark.skipif(
    not LANDMARKER.is_file(), reason=f"no face landmarker at {LANDMARKER}; set REDUB_LANDMARKER"
)


def decode_video(clip: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Time stamps in seconds, and RGB frames."""
    with av.open(str(clip)) as container:
        decoded = list(container.decode(video=0))
        frames = [np.ascontiguousarray(frame.to_ndarray(format="rgb24")) for frame in decoded]
        return np.array([frame.time for frame in decoded]), frames


def decode_audio(clip: Path) -> tuple[np.ndarray, np.ndarray]:
    """The time of each sample by its frame's time stamp, (n,), and the samples, (channels, n) in [-1, 1]."""
    times, samples = [], []
    with av.open(str(clip)) as container:
        for frame in container.decode(audio=0):
            values = frame.to_ndarray().astype(float)
            values /= 32768 if frame.format.name.startswith("s16") else 1
            samples.append(values)
            times.append(float(frame.pts * frame.time_base) + np.arange(frame.samples) / frame.sample_rate)
    return np.concatenate(times), np.concatenate(samples, axis=1)


def measure_loudness_db(times: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle time of each 20 ms window, and its level."""
    window, hop = 882, 441
    starts = np.arange(0, len(samples) - window, hop)
    power = np.array([(samples[i : i + window] ** 2).mean() for i in starts])
    return times[starts] + window / 2 / SAMPLE_RATE, 10 * np.log10(power + 1e-9)


def measure_offset_ms(clip: Path, truth: Truth) -> float:
    times, samples = decode_audio(clip)
    level_times, level = measure_loudness_db(times, samples[0])
    lag = measure_lag_seconds(truth.openings, truth.times_s, level, level_times)
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
def test_a_player_that_honours_time_stamps_reproduces_the_planted_offset(
    tmp_path: Path, container: str, fps: str, offset_ms: float
) -> None:
    clip = tmp_path / f"clip.{container}"
    truth = make_clip(clip, ClipSpec(fps=fps, av_offset_ms=offset_ms, size=(240, 192)))
    assert measure_offset_ms(clip, truth) == pytest.approx(offset_ms, abs=5)


@pytest.mark.parametrize("container", ["mpg", "flv", "mp4", "mkv"])
@pytest.mark.parametrize("speaker", [1, 2])  # 2 is mirrored
def test_every_frame_has_its_number_and_its_time_stamp(tmp_path: Path, container: str, speaker: int) -> None:
    clip = tmp_path / f"clip.{container}"
    fps = "25" if container == "mpg" else "variable"
    truth = make_clip(clip, ClipSpec(speaker=speaker, seconds=1.2, fps=fps))
    times, frames = decode_video(clip)
    assert times == pytest.approx(truth.times_s, abs=1e-6)
    counters = [
        read_counter(image, frame.corners_px) for image, frame in zip(frames, truth.frames, strict=True)
    ]
    assert counters == list(range(len(frames)))


def test_the_number_is_readable_in_a_small_crop_but_not_at_other_positions(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"
    truth = make_clip(clip, ClipSpec(seconds=0.8))
    crop = np.array([[0.55, 0.02, -30.0], [-0.02, 0.55, -10.0]])
    for image, frame in zip(decode_video(clip)[1], truth.frames, strict=True):
        small = np.asarray(cv2.warpAffine(image, crop, (128, 128)), dtype=np.uint8)
        corners = np.array(frame.corners_px) @ crop[:, :2].T + crop[:, 2]
        assert read_counter(small, corners) == frame.counter
        assert read_counter(small, corners + np.array([0, 30])) is None


def test_variable_clips_drop_frames_and_keep_the_times_of_the_others(tmp_path: Path) -> None:
    truth = make_clip(tmp_path / "clip.mp4", ClipSpec(fps="variable", size=(160, 128)))
    steps_ms = 1000 * np.diff(truth.times_s)
    assert len(truth.frames) < 0.95 * 30 * 2.4
    assert steps_ms.min() > 20
    assert 60 < steps_ms.max() < 115
    assert len(np.unique(steps_ms.round())) > 5


def test_formats_are_those_of_the_real_corpora(tmp_path: Path) -> None:
    def read_format(style: Any) -> dict[str, Any]:
        params = SynthParams(style=style, speakers=1, clips=1, seconds=0.6)
        [clip] = make_corpus(tmp_path / style, params)
        with av.open(str(clip.path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
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
    assert [read_format(style) for style in ("grid", "crema-d", "folder")] == [grid, crema, folder]


def test_flv_time_stamps_are_whole_milliseconds_and_the_video_starts_late(tmp_path: Path) -> None:
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


def test_file_names_match_the_real_corpora(tmp_path: Path) -> None:
    def list_names(style: Any, **options: Any) -> list[str]:
        params = SynthParams(style=style, speakers=2, clips=2, seconds=0.4, size=(128, 128), **options)
        clips = make_corpus(tmp_path / style, params)
        return [clip.path.relative_to(tmp_path / style).as_posix() for clip in clips]

    grid = re.compile(r"s[12]/[blps][bgrw][abiw][a-vx-z][z1-9][anps]\.mpg")
    assert all(grid.fullmatch(name) for name in list_names("grid"))
    crema = re.compile(r"VideoFlash/10(15|16)_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_XX\.flv")
    assert all(crema.fullmatch(name) for name in list_names("crema-d", first_speaker=15))
    assert list_names("folder") == [f"speaker-{s}/clip-00{c}.mp4" for s in (1, 2) for c in (1, 2)]


def test_no_two_clips_of_grid_have_the_same_name() -> None:
    names = [
        choose_clip_path("grid", speaker=speaker, clip=clip, seed=0)[1].name
        for speaker in (1, 2, 34)
        for clip in (1, 2, 50, 1000)
    ]
    assert len(set(names)) == len(names)


def test_a_second_run_keeps_intact_clips_and_replaces_damaged_ones(tmp_path: Path) -> None:
    params = SynthParams(speakers=1, clips=3, seconds=0.4, size=(128, 128))
    first = make_corpus(tmp_path, params)
    assert all(clip.is_new for clip in first)
    data = first[0].path.read_bytes()
    first[0].path.write_bytes(data[:1000])
    Truth.path_for(first[1].path).write_text("{")
    second = make_corpus(tmp_path, params)
    assert [clip.is_new for clip in second] == [True, True, False]
    assert [clip.truth for clip in second] == [clip.truth for clip in first]
    assert first[0].path.read_bytes() == data
    assert not list(tmp_path.rglob("*.partial"))


def test_ground_truth_is_read_back_unchanged(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mpg"
    assert make_clip(clip, ClipSpec(seconds=0.4, size=(128, 128))) == Truth.load(clip)


def test_antiphase_channels_cancel_when_averaged(tmp_path: Path) -> None:
    for container in ("mpg", "flv", "mp4"):
        clip = tmp_path / f"clip.{container}"
        make_clip(clip, ClipSpec(seconds=0.8, size=(128, 128), antiphase=True))
        channel_0, channel_1 = decode_audio(clip)[1]
        assert np.std(channel_0 + channel_1) < 0.1 * np.std(channel_0)


def test_speakers_differ_in_appearance_and_voice() -> None:
    appearances = [sample_appearance(speaker=speaker, seed=0) for speaker in range(1, 9)]
    portraits = [draw_portrait(appearance).astype(float) for appearance in appearances]
    for i in range(len(appearances)):
        for j in range(i):
            assert np.abs(portraits[i] - portraits[j]).mean() > 4
            assert abs(appearances[i].pitch_hz - appearances[j].pitch_hz) > 0.1


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("used the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_layers.cache_clear()
    make_clip(tmp_path / "clip.mpg", ClipSpec(seconds=0.4, size=(128, 128)))


@settings(max_examples=40)
@given(lag_ms=st.floats(-200, 200), seed=st.integers(0, 10_000), phase_s=st.floats(0, 0.04))
def test_a_lag_is_measured_within_5_ms_at_25_and_50_hz(lag_ms: float, seed: int, phase_s: float) -> None:
    curve = make_opening_curve(np.random.default_rng(seed), seconds=2.4)
    opening_times, loudness_times = np.arange(60) / 25 + phase_s, np.arange(120) / 50
    loudness = 30 * curve(loudness_times - lag_ms / 1000) - 50
    lag = measure_lag_seconds(curve(opening_times), opening_times, loudness, loudness_times)
    assert 1000 * lag == pytest.approx(lag_ms, abs=5)


def test_signals_without_a_clear_lag_are_refused() -> None:
    t = np.arange(50) / 25
    with pytest.raises(ValueError, match="in common"):
        measure_lag_seconds(np.sin(t), t, np.sin(t), t + 9)
    with pytest.raises(ValueError, match="stands out"):
        measure_lag_seconds(t, t, np.ones(50), t)
    with pytest.raises(ValueError, match="times must increase"):
        measure_lag_seconds(t, t[::-1], t, t)


def test_impossible_parameters_are_refused_with_a_reason() -> None:
    with pytest.raises(ValidationError, match="expected variable or a rate"):
        SynthParams(fps="fast")
    with pytest.raises(SynthError, match="an mpg has one of"):
        make_corpus(Path("nowhere"), SynthParams(fps="variable"))
    with pytest.raises(SynthError, match=r"cannot write '\.avi'"):
        make_clip(Path("nowhere.avi"), ClipSpec())
    with pytest.raises(SynthError, match="speaker 35 requested, grid has 34"):
        make_corpus(Path("nowhere"), SynthParams(first_speaker=35, speakers=1))
    assert not Path("nowhere").exists()


def test_the_command_writes_a_corpus_and_prints_its_paths(tmp_path: Path) -> None:
    options = ["--to", str(tmp_path / "made"), "--style", "crema-d", "--speakers", "1"]
    options += ["--clips", "2", "--seconds", "0.4"]
    result = CliRunner().invoke(cli, ["synth", *options])
    assert result.exit_code == 0, result.output
    assert "2 clips of 1 speakers" in result.output and "1001_" in result.output
    again = CliRunner().invoke(cli, ["synth", *options, "--json"])
    summary = json.loads(again.output)
    assert (summary["clips"], summary["new"], summary["frames"]) == (2, 0, 24)
    assert all((tmp_path / "made" / path).is_file() for path in summary["paths"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--fps", "0"], "fps: '0' is not a rate"),
        (["--offset-ms", "900"], "av_offset_ms"),
        (["--fps", "26"], "an mpg has one of"),
    ],
)
def test_the_command_prints_an_error_of_one_line(tmp_path: Path, option: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["synth", "--to", str(tmp_path), *option])
    assert result.exit_code == 1
    assert message in result.output and result.output.count("\n") == 1


@pytest.fixture(scope="module")
def landmarker() -> Iterator[Any]:
    mp = pytest.importorskip("mediapipe")
    tasks = mp.tasks
    options = tasks.vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(LANDMARKER)),
        running_mode=tasks.vision.RunningMode.IMAGE,
        num_faces=2,
    )
    with tasks.vision.FaceLandmarker.create_from_options(options) as detector:
        yield detector


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
    for image in decode_video(clip)[1]:
        result = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=image))
        assert len(result.face_landmarks) == 1
        px = np.array([(p.x, p.y) for p in result.face_landmarks[0]]) * size
        pupils_px = np.linalg.norm(px[468] - px[473])
        eyes = px[[33, 133, 362, 263]].mean(axis=0)
        gaps.append(np.linalg.norm(px[13] - px[14]) / pupils_px)
        chins.append(np.linalg.norm(px[152] - eyes) / pupils_px)
    assert np.corrcoef(truth.openings, gaps)[0, 1] > 0.97
    assert np.corrcoef(truth.openings, chins)[0, 1] > 0.93
    assert np.ptp(gaps) > 0.2
