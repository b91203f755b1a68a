"""Whether the mouth of a video says what is heard in it: on made mouths, and on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import Params
from shards.schema import Frame, Frames
from stages.adapt.clips import ExcerptParams, cut_video, plan_cut
from stages.adapt.sync import describe_problem, score_clips
from stages.cut.params import ThresholdParams
from stages.media import faces
from tests.conftest import real_clips
from tests.media import ffmpeg
from tests.stages.cut.test_speaker import hear, make_mouth

N_FRAMES = 60
FIRSTS = (20, 150, 250)  # of three clips of a video


def draw_clips(mouth: np.ndarray) -> Iterator[tuple[int, Frames]]:
    """Clips whose frames have the mouth's opening as their grey level."""
    for first in FIRSTS:
        levels = np.rint(1000 * mouth[first : first + N_FRAMES]).astype(np.uint8)
        yield first, np.broadcast_to(levels[:, None, None, None], (N_FRAMES, 8, 8, 3)).copy()


def find_face(frame: Frame) -> list[np.ndarray]:
    """A face with pupils 100 px apart, as far open as a frame is bright; none in a black one."""
    points = np.zeros((faces.N_POINTS, 2), np.float32)
    points[faces.LEFT_PUPIL] = 100, 0
    points[faces.LOWER_LIP_INNER] = 0, frame[0, 0, 0] / 10
    return [points] if frame.any() else []


def describe(mouth: np.ndarray, voice: np.ndarray) -> str | None:
    score = score_clips(draw_clips(mouth), hear(voice), find_face)
    assert score is not None
    return describe_problem(score, ThresholdParams())


@pytest.mark.parametrize("lag", [-2, 0, 2])
def test_a_mouth_that_says_what_is_heard_gives_no_warning(lag: int) -> None:
    mouth = make_mouth(3)
    assert describe(mouth, np.roll(mouth, lag)) is None


def test_another_voice_is_warned_of() -> None:
    for seed in range(4, 8):
        warning = describe(make_mouth(3), make_mouth(seed))
        assert warning is not None and warning.startswith(
            "the mouth hardly follows the voice (sync confidence "
        )
        assert "expected 0.2 or more" in warning and "\n" not in warning


@pytest.mark.parametrize(
    ("lag", "problem", "lesson"),
    [
        (4, "the sound is 4 frames late (0.16 s, expected at most 2 frames)", "early"),
        (-5, "the picture is 5 frames late (0.20 s, expected at most 2 frames)", "late"),
    ],
)
def test_a_lag_is_named(lag: int, problem: str, lesson: str) -> None:
    mouth = make_mouth(3)
    expected = f"{problem}: the model learns a mouth that is as {lesson}; move the sound first"
    assert describe(mouth, np.roll(mouth, lag)) == expected


def test_clips_without_a_face_have_no_score() -> None:
    black = np.zeros((N_FRAMES, 8, 8, 3), np.uint8)
    assert score_clips([(0, black)], hear(make_mouth(3)), find_face) is None
    mouth = make_mouth(3)
    score = score_clips([(0, black), *draw_clips(mouth)], hear(mouth), find_face)
    assert score == score_clips(draw_clips(mouth), hear(mouth), find_face)


def test_a_real_voice_that_is_made_late_by_five_frames_is_five_frames_later(
    tmp_path: Path, landmarker: Path, speech_model: Path
) -> None:
    source, lags = real_clips("us_gov/obama") / "learning_more.mp4", []
    params = Params().make_edit_params()
    speech = replace(params.speech, encoder="whisper-tiny.en", model=str(speech_model))
    params, numbers = replace(params, speech=speech), ExcerptParams()
    for late in (0, 0.2):
        work = tmp_path / str(late)
        (work / "scratch").mkdir(parents=True)
        video, passes = work / "video.mkv", list[tuple[str, int, int]]()
        ffmpeg(
            "-i", source, "-itsoffset", late, "-i", source, "-map", "0:v", "-map", "1:a", "-c", "copy", video
        )
        result = cut_video(
            video,
            plan_cut(video, params, numbers),
            work / "shards",
            size=128,
            takes_speech=True,
            model=landmarker,
            params=params,
            excerpt=numbers,
            scratch=work / "scratch",
            progress=lambda *state, passes=passes: passes.append(state),
        )
        assert passes[-1] == ("sync", result.frames, result.frames)
        assert result.sync is not None and result.sync.confidence > ThresholdParams().min_sync_confidence
        lags.append(result.sync.lag)
    assert lags[1] - lags[0] == pytest.approx(-5, abs=1)
    assert "the sound is " in (describe_problem(result.sync, ThresholdParams()) or "")
