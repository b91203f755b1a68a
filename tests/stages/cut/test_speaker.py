"""Which face speaks and how late its mouth is, on mouths whose truth is known because they are made."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cut import speaker
from stages.cut.speaker import LAGS, choose_speaker, measure_curve, pool_lags, score_curve

FIRST, N_FRAMES = 100, 60
THRESHOLD = 0.2  # the default of cut.thresholds.min_sync_confidence


def make_mouth(seed: int, n_frames: int = 400) -> np.ndarray:
    """Openings (n,) as of speech: random, and smooth over some 0.2 s."""
    noise = np.random.default_rng(seed).normal(size=n_frames + 6)
    mouth = np.convolve(noise, np.hanning(9)[1:-1], "valid")
    openings: np.ndarray = 0.1 + 0.06 * (mouth - mouth.mean()) / mouth.std()
    return openings


def hear(mouth: np.ndarray) -> np.ndarray:
    """What a perfect predictor hears while a mouth speaks: (n, 2)."""
    change = np.gradient(mouth)
    return np.stack([(mouth - mouth.mean()) / mouth.std(), change / change.std()], axis=1).astype(np.float32)


def cut(mouth: np.ndarray, lag: int, first: int = FIRST, n_frames: int = N_FRAMES) -> np.ndarray:
    """The openings from frame ``first`` of a film in which the mouth is late by ``lag`` frames."""
    return mouth[first - lag : first - lag + n_frames]


def find_curve(openings: np.ndarray, prediction: np.ndarray, first: int = FIRST) -> speaker.SyncCurve:
    curve = measure_curve(openings, prediction, first)
    assert curve is not None
    return curve


@given(seed=st.integers(0, 999), lag=st.integers(-10, 10), scale=st.floats(0.5, 3))
@settings(max_examples=25, deadline=None)
def test_a_late_mouth_has_its_lag_whatever_its_size(seed: int, lag: int, scale: float) -> None:
    mouth = make_mouth(seed)
    score = score_curve(find_curve(0.3 + scale * cut(mouth, lag), hear(mouth)))
    assert score.lag == lag
    assert score.confidence > 0.3


def test_a_curve_is_the_same_wherever_in_the_file_a_clip_is() -> None:
    mouth = make_mouth(1)
    there = find_curve(cut(mouth, 3), hear(mouth))
    moved = find_curve(cut(mouth, 3), np.roll(hear(mouth), 40, axis=0), FIRST + 40)
    np.testing.assert_allclose(moved.correlations, there.correlations, atol=1e-9)


def test_frames_without_a_face_and_rows_without_a_sound_are_left_out() -> None:
    mouth = make_mouth(2)
    openings, prediction = cut(mouth, -4).copy(), hear(mouth)
    openings[[0, 9, 30]] = np.nan, np.inf, np.nan
    prediction[FIRST + 40 : FIRST + 48] = np.nan
    curve = find_curve(openings, prediction)
    assert curve.n_frames == N_FRAMES - 3 - 8
    assert score_curve(curve).lag == -4


@pytest.mark.parametrize("first", [0, 400 - N_FRAMES], ids=["start", "end"])
def test_a_clip_at_the_end_of_a_file_is_measured(first: int) -> None:
    mouth = make_mouth(3)
    openings = mouth[first : first + N_FRAMES]
    assert score_curve(find_curve(openings, hear(mouth), first)).lag == 0


@pytest.mark.parametrize(
    "openings",
    [np.full(60, 0.2), np.full(60, np.nan), make_mouth(0)[:24], np.zeros(0)],
    ids=["still", "no_face", "short", "empty"],
)
def test_a_mouth_that_shows_nothing_has_no_curve(openings: np.ndarray) -> None:
    assert measure_curve(openings, hear(make_mouth(0)), FIRST) is None
    assert choose_speaker([None, measure_curve(openings, hear(make_mouth(0)), FIRST)]) is None


def test_the_face_that_says_it_speaks() -> None:
    for seed in range(20):
        speaking, other = make_mouth(seed), make_mouth(seed + 1000)
        trembling = 0.2 + 0.02 * (make_mouth(seed + 2000) - 0.1)
        prediction = hear(speaking)
        faces = [other[:N_FRAMES], trembling[:N_FRAMES], cut(speaking, seed % 11 - 5)]
        choice = choose_speaker([None, *(measure_curve(face, prediction, FIRST) for face in faces)])
        assert choice is not None
        assert choice[0] == 3
        assert choice[1].confidence > THRESHOLD


def test_a_trembling_mouth_or_a_faint_sound_says_nothing() -> None:
    mouth = make_mouth(5)
    for openings, prediction in ((0.02 * mouth, hear(mouth)), (mouth, 0.1 * hear(mouth))):
        score = score_curve(find_curve(cut(openings, 0), prediction))
        assert score.confidence < THRESHOLD


def test_clips_of_a_file_learn_its_lags_from_each_other() -> None:
    rng = np.random.default_rng(0)
    curves = []
    for i, lag in enumerate([4] * 6 + [-9] * 3):
        mouth = make_mouth(i)
        curves.append(find_curve(cut(mouth, lag) + rng.normal(0, 0.03, N_FRAMES), hear(mouth)))
    flat = speaker.SyncCurve(np.zeros_like(curves[0].correlations), N_FRAMES)
    pooled = pool_lags([*curves, flat])
    assert [score_curve(*pair).lag for pair in zip(curves, pooled, strict=False)] == [4] * 6 + [-9] * 3
    # nothing of its own: the most frequent lag, and the other scene's is the next
    peaks = [int(lag) for lag in LAGS[np.argsort(pooled[-1])[::-1]]]
    assert peaks[0] == 4
    assert pooled[-1][-9 + 15] > pooled[-1][-13 + 15]
    for row in pooled:
        assert row.sum() == pytest.approx(1)
    assert pool_lags([]) == []
    np.testing.assert_allclose(pool_lags(curves[:1])[0], speaker.guess_lags())
