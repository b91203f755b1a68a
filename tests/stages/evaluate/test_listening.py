"""Scores of mouths that are known to listen, to copy, to move against the source, or to move in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.schema import ClipSample
from stages.evaluate.listening import PairMouths, average_scores, score_obedience, score_pair
from stages.metrics.closure import Word
from stages.metrics.obedience import bootstrap_ratio, residual
from tests.stages.metrics.test_mouth import make_mouths, make_openings

ROOT = Path(__file__).parents[3]
T = 75
BOX = (2, 4, 14, 14)


def make_clip(key: str, seed: int, pause: slice = slice(0)) -> ClipSample:
    """A clip of noise whose sound pauses."""
    frames = np.random.default_rng(seed).integers(0, 150, (T, 16, 16, 3), np.uint8)
    levels = np.full(T, -10.0, np.float32)
    levels[pause] = -70
    mels = np.repeat(levels, 2)[:, None].repeat(8, axis=1)
    boxes = np.tile(np.array(BOX, np.int16), (T, 1))
    return ClipSample(key, frames, boxes, mels, np.tile(np.eye(2, 3, dtype=np.float32), (T, 1, 1)), {})


def test_a_mouth_that_copies_the_speech_scores_1_and_0() -> None:
    speech, source = make_openings(1), make_openings(2)
    scores = score_obedience(speech, speech, source)
    assert scores["obedience_speech"] == pytest.approx(1)
    assert scores["obedience_source"] == pytest.approx(0, abs=1e-6)
    assert scores["audio_obedience"] == scores["audio_obedience_net"] == pytest.approx(1)


def test_a_copy_of_the_source_scores_0_and_1() -> None:
    speech, source = make_openings(1), make_openings(2)
    scores = score_obedience(source, speech, source)
    assert scores["obedience_speech"] == pytest.approx(0, abs=1e-6)
    assert scores["obedience_source"] == pytest.approx(1)
    assert scores["audio_obedience"] == scores["audio_obedience_net"] == pytest.approx(-1)


def test_moving_against_the_source_raises_obedience_and_lowers_the_net() -> None:
    speech, source = make_openings(1), make_openings(2)
    noise = 0.5 * residual(residual(make_openings(3), source), speech)
    neutral = score_obedience(speech + noise, speech, source)
    against = score_obedience(speech - 0.4 * residual(source, speech) + noise, speech, source)
    assert against["obedience_source"] < -0.3
    assert against["audio_obedience"] > neutral["audio_obedience"] + 0.1, "which is how it was flattered"
    assert against["audio_obedience_net"] < neutral["audio_obedience_net"] - 0.1


def test_the_ground_truth_moves_in_silence_as_much_as_itself() -> None:
    clip = make_clip("s1_a", 0, slice(20, 45))
    mouths = make_mouths(make_openings(0))
    words = [Word(0.4, 0.8, "bin"), Word(1.0, 1.2, "at")]
    scores = score_pair(clip.frames, clip, clip, PairMouths(mouths, mouths, mouths), words)
    assert scores["silence_motion"] == scores["silence_motion_truth"] > 0
    assert scores["closure"] == scores["closure_truth"]
    assert scores["smoothness_box"] == 1 and scores["opening_correlation"] == pytest.approx(1)
    assert not {column for column in scores if column.startswith(("audio", "obedience"))}, (
        "obedience needs another's speech"
    )
    assert scores["psnr_box_db"] == pytest.approx(58.92, abs=0.01), "an exact copy's, which a mean can count"
    assert average_scores([scores, scores])["silence_ratio"].value == 1


def test_a_mouth_that_chatters_in_silence_is_found_out_by_that_alone() -> None:
    pause = slice(20, 45)
    source, speech = make_clip("s1_a", 0), make_clip("s1_b", 1, pause)
    openings = make_openings(1)
    chatter = openings.copy()
    chatter[pause] *= 4
    mouths = PairMouths(make_mouths(chatter), make_mouths(openings), make_mouths(make_openings(2)))
    scores = score_pair(source.frames, source, speech, mouths)
    assert scores["silence_motion"] == pytest.approx(4 * scores["silence_motion_truth"], rel=1e-4)
    assert scores["obedience_speech"] > 0.6 and "closure" not in scores and "psnr_box_db" not in scores


def test_psnr_of_the_first_and_last_frames_shows_drift() -> None:
    clip = make_clip("s1_a", 0)
    drifting = clip.frames + np.arange(T, dtype=np.uint8)[:, None, None, None]
    mouths = make_mouths(make_openings(0))
    scores = score_pair(drifting, clip, clip, PairMouths(mouths, mouths, mouths))
    first, last = (
        np.mean(np.square(np.arange(T, dtype=float)[part])) for part in (slice(5), slice(-5, None))
    )
    assert scores["psnr_box_first_db"] == pytest.approx(10 * np.log10(255**2 / first), abs=1e-6)
    assert scores["psnr_box_last_db"] == pytest.approx(10 * np.log10(255**2 / last), abs=1e-6)
    assert scores["psnr_box_last_db"] < scores["psnr_box_db"] < scores["psnr_box_first_db"]


def test_a_pair_is_scored_in_the_frames_that_all_three_have() -> None:
    source, speech = make_clip("s1_a", 0), make_clip("s1_b", 1)
    mouths = PairMouths(*(make_mouths(make_openings(seed)) for seed in (1, 1, 2)))
    short = PairMouths(mouths.generated[:60], mouths.speech, mouths.source)
    scores = score_pair(source.frames[:60], source, speech, short)
    assert scores["audio_obedience"] == pytest.approx(1)
    assert "audio_obedience" not in score_pair(
        source.frames, source, speech, PairMouths(mouths.generated[:9], mouths.speech, mouths.source)
    ), "too few frames with all three mouths"


def test_means_have_intervals_and_the_ratio_is_of_all_pairs_together() -> None:
    pairs = [
        {"audio_obedience": 0.5, "silence_motion": 0.03, "silence_motion_truth": 0.01},
        {"audio_obedience": 0.7, "silence_motion": 0.01, "silence_motion_truth": 0.0},
        {"audio_obedience": 0.9, "psnr_box_db": float("inf")},
    ]
    means = average_scores(pairs)
    assert means["audio_obedience"].value == pytest.approx(0.7) and means["audio_obedience"].n == 3
    assert means["audio_obedience"].low is None, "of three pairs"
    assert means["silence_ratio"].value == pytest.approx(4) and means["silence_ratio"].n == 2
    assert "psnr_box_db" not in means and average_scores([]) == {}
    assert bootstrap_ratio([1.0], [0.0]) is None


def test_it_runs_where_no_codec_and_no_corpus_tools_are_installed() -> None:
    """A training machine has torch, numpy, OpenCV and LiteRT."""
    absent = [
        "av", "boto3", "click", "dask", "distributed", "ffmpeg", "filelock", "jinja2", "librosa",
        "matplotlib", "platformdirs", "PIL", "requests", "scikit-image", "skimage", "soundfile", "webdataset",
    ]  # fmt: skip
    program = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
import stages.evaluate.listening, stages.metrics.mouth_finder, stages.media.faces, stages.media.weights
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
