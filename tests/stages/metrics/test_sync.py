"""The sync score: planted lags, mouths that say nothing, and people that it was not fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.one_clip import clip_from_file
from pipeline.params import Params
from stages.media.faces import FaceFinder
from stages.metrics.mouth import openings
from stages.metrics.mouth_finder import find_mouths
from stages.metrics.sync import (
    ENCODER,
    MAX_LAG,
    N_FEATURES,
    OFFSETS,
    describe_motion,
    load_predictor,
    predict_mouth,
    score_sync,
    stack_windows,
)
from stages.speech import SpeechParams

T = 75


def make_mouth(seed: int, n_frames: int = T) -> np.ndarray:
    """An opening like speech's: a few syllables a second."""
    rng = np.random.default_rng(seed)
    return np.convolve(rng.standard_normal(n_frames + 4), np.ones(5) / 5, mode="valid")


@pytest.mark.parametrize("lag", [0, 1, -1, 4, -7, MAX_LAG, -MAX_LAG])
def test_a_planted_lag_is_found_and_a_late_mouth_is_positive(lag: int) -> None:
    mouth = make_mouth(0, T + 2 * MAX_LAG)
    heard = describe_motion(mouth[MAX_LAG : MAX_LAG + T]).astype(np.float32)
    score = score_sync(mouth[MAX_LAG - lag : MAX_LAG - lag + T], heard)
    assert score is not None and score.lag == lag and score.confidence > 0.8
    assert (score.correlation > 0.99) == (lag == 0)


def test_units_do_not_matter_and_another_mouth_has_less_confidence() -> None:
    mouth = make_mouth(0)
    heard = describe_motion(mouth).astype(np.float32)
    score = score_sync(3 * mouth + 100, heard * np.float32([0.1, 7]))
    assert score is not None and score.correlation == pytest.approx(1)
    foreign = [score_sync(make_mouth(seed), heard) for seed in range(1, 9)]
    assert all(other is not None and other.confidence < score.confidence - 0.2 for other in foreign)


def test_frames_without_a_face_are_left_out() -> None:
    mouth = make_mouth(0)
    heard = describe_motion(mouth).astype(np.float32)
    mouth[30:36] = np.nan
    score = score_sync(mouth, heard)
    assert score is not None and score.lag == 0 and score.correlation == pytest.approx(1, abs=0.01)


def test_a_mouth_that_never_moves_and_a_moment_have_no_score() -> None:
    heard = describe_motion(make_mouth(0)).astype(np.float32)
    assert score_sync(np.full(T, 0.3), heard) is None
    assert score_sync(make_mouth(0)[:26], heard) is None
    assert score_sync([], heard) is None


def test_each_frame_hears_the_rows_around_it_and_the_ends_are_repeated() -> None:
    rows = np.arange(2 * T, dtype=np.float16)[:, None]
    windows = stack_windows(rows)[:, :, 0]
    assert windows.shape == (T, len(OFFSETS))
    assert windows[30].tolist() == [60 + offset for offset in OFFSETS]
    assert windows[0].tolist() == [max(0, offset) for offset in OFFSETS]
    assert windows[-1].max() == 2 * T - 1


def test_the_predictor_is_small_and_finite_and_hears_nothing_in_equal_rows() -> None:
    weights = load_predictor()
    assert weights.shape == (len(OFFSETS), N_FEATURES, 2) and np.isfinite(weights).all()
    prediction = predict_mouth(np.ones((2 * T, N_FEATURES), np.float16))
    assert prediction.shape == (T, 2) and np.ptp(prediction, axis=0).max() < 1e-3


def see_and_hear(path: Path, params: Params, find_faces: FaceFinder) -> tuple[np.ndarray, np.ndarray]:
    """The openings that are seen (T,) and the mouth that is heard (T, 2)."""
    clip = clip_from_file(path, params)
    assert clip.speech is not None
    return openings(find_mouths(clip.frames, find_faces)), predict_mouth(clip.speech)


def test_people_that_it_was_not_fitted_on_fit_their_own_speech_and_not_each_others(
    grid: Path, landmarker: Path, speech_model: Path
) -> None:
    paths = [next(iter(sorted((grid / speaker).glob("*.mpg")))) for speaker in ("s14", "s17")]
    params = Params(speech=SpeechParams(encoder=ENCODER, model=str(speech_model)))
    with FaceFinder(landmarker, 1) as find_faces:
        clips = [see_and_hear(path, params, find_faces) for path in paths]
    for number, (mouth, heard) in enumerate(clips):
        own, foreign = score_sync(mouth, heard), score_sync(mouth, clips[1 - number][1])
        assert own is not None and foreign is not None
        assert own.confidence > foreign.confidence + 0.1 and abs(own.lag) <= 1
        late = score_sync(mouth[:-5], heard[5:])
        assert late is not None and late.lag == own.lag + 5
