"""Whether the mouth of a video says what is heard in it: on made mouths, and on a real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import Params
from shards.reader import open_dataset, read_clip
from shards.schema import Frame, Frames
from stages.adapt.clips import ExcerptParams, cut_video, plan_cut
from stages.adapt.sync import describe_sync, find_lag, score_clips
from stages.cut.params import ThresholdParams
from stages.cut.speaker import SpeakerScore
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


def score(mouth: np.ndarray, voice: np.ndarray) -> SpeakerScore:
    result = score_clips(draw_clips(mouth), hear(voice), find_face)
    assert result is not None
    return result


def test_another_voice_is_warned_of_and_has_no_lag() -> None:
    for seed in range(4, 8):
        result = score(make_mouth(3), make_mouth(seed))
        line = describe_sync(result, ThresholdParams())
        assert line is not None and line.startswith("the mouth hardly follows the voice (sync confidence ")
        assert "expected 0.2 or more" in line and "\n" not in line
        assert find_lag(result, ThresholdParams()) == 0


@pytest.mark.parametrize(
    ("late", "line"),
    [
        (0, None),
        (2, "the sound is 0.08 s late: the model learns from sound that is moved 0.08 s earlier"),
        (-5, "the picture is 0.20 s late: the model learns from sound that is moved 0.20 s later"),
    ],
)
def test_a_lag_is_found_and_named(late: int, line: str | None) -> None:
    mouth = make_mouth(3)
    result = score(mouth, np.roll(mouth, late))
    assert find_lag(result, ThresholdParams()) == -late
    assert describe_sync(result, ThresholdParams()) == line


def test_clips_without_a_face_have_no_score() -> None:
    black = np.zeros((N_FRAMES, 8, 8, 3), np.uint8)
    assert score_clips([(0, black)], hear(make_mouth(3)), find_face) is None
    mouth = make_mouth(3)
    result = score_clips([(0, black), *draw_clips(mouth)], hear(mouth), find_face)
    assert result == score_clips(draw_clips(mouth), hear(mouth), find_face)


def test_sound_that_is_made_late_is_learned_from_at_the_same_time_of_the_mouth(
    tmp_path: Path, landmarker: Path, speech_model: Path
) -> None:
    source, lags, sounds = real_clips("us_gov/obama") / "learning_more.mp4", [], []
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
            thresholds=ThresholdParams(),
            scratch=work / "scratch",
            progress=lambda *state, passes=passes: passes.append(state),
        )
        assert ("sync", result.frames, result.frames) in passes
        assert result.sync is not None and result.sync.lag < 0
        assert "the sound is " in (describe_sync(result.sync, ThresholdParams()) or "")
        lags.append(find_lag(result.sync, ThresholdParams()))
        dataset = open_dataset(work / "shards")
        [clip_id] = dataset.clips
        sounds.append(read_clip(dataset, clip_id))
    # Heard at the same time of the mouth, but for a lag that is found a frame off.
    off = lags[1] - lags[0] + 5
    assert abs(off) <= 1
    for name in ("mels", "speech"):
        second = np.asarray(getattr(sounds[1], name), np.float32)[20:-20]
        moved = np.asarray(getattr(sounds[0], name), np.float32)[20 - 2 * off :][: len(second)]
        assert np.corrcoef(moved.ravel(), second.ravel())[0, 1] > 0.99
