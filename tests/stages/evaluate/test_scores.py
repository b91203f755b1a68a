"""From series to the table: obedience of known mouths, groups, and why a value is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.evaluate.columns import COLUMNS
from stages.evaluate.listening import OBEDIENCE, score_obedience
from stages.evaluate.measure import Measurements
from stages.evaluate.scores import (
    TrueClip,
    average_openings,
    build_metrics,
    compute_curves,
    explain_intervals,
    group_means,
    score_clip,
)
from stages.evaluate.table import FROZEN, MEAN_OPENING
from stages.metrics.mouth import Mouths
from stages.metrics.obedience import Mean, bootstrap_mean
from stages.metrics.sync import describe_motion
from tests.stages.metrics.test_mouth import make_mouths, make_openings

T = 75
PSNR_OF_A_COPY = 10 * np.log10(12 * 255**2)  # 58.9 dB: that of rounding


def make_measurements(mouths: Mouths | None, *, own: bool = True) -> Measurements:
    """Those of a perfectly generated clip."""
    series = {
        name: np.zeros(T) for name in ("identity_distances", "border_distances", "errors_box", "errors_frame")
    }
    series |= {name: np.ones(T) for name in ("ssim_box", "ssim_frame", "cpbd_box", "cpbd_frame")}
    if not own:
        for name in ("errors_box", "errors_frame", "ssim_box", "ssim_frame"):
            del series[name]
    landmarks = {} if mouths is None else {"lips": mouths.lips, "pupils": mouths.pupils}
    return {**series, "smoothness": np.array(1.0), **landmarks}


def make_row(name: str, clip_id: str, audio: str = "", **values: Any) -> dict[str, Any]:
    values_by_name = {
        "row": name,
        "clip_id": clip_id,
        "audio_clip_id": audio or clip_id,
        "status": "ok",
        "emotion": None,
    }
    return values_by_name | dict.fromkeys(COLUMNS) | values


def test_the_ground_truth_has_perfect_scores_where_they_are_defined() -> None:
    truth = make_mouths(make_openings(0))
    clip = TrueClip(truth, is_silent=np.arange(T) < 20, closures=[10, 40])
    scores = score_clip(make_measurements(truth), clip, clip, own=True)
    assert scores["psnr_box_db"] == scores["psnr_frame_db"] == scores["psnr_box_last_db"] == PSNR_OF_A_COPY
    assert scores["silence_motion"] == scores["silence_motion_truth"] > 0
    assert scores["closure"] == scores["closure_truth"]
    assert scores["ssim_box"] == scores["ssim_frame"] == scores["smoothness_box"] == 1
    assert scores["mouth_distance_px"] == scores["opening_lag_frames"] == scores["identity_drift"] == 0
    assert scores["border_colour"] == 0
    assert scores["opening_correlation"] == pytest.approx(1)
    assert not set(scores) & set(OBEDIENCE)
    assert compute_curves(make_measurements(truth), truth)["psnr_box_db"].min() == PSNR_OF_A_COPY


def test_a_clip_drawn_perfectly_raises_the_mean_psnr_and_its_curve() -> None:
    def score(*errors: float) -> float:
        measurements = [make_measurements(None) | {"errors_box": np.full(T, error)} for error in errors]
        scores = [score_clip(each, TrueClip(), TrueClip(), own=True) for each in measurements]
        rows = [make_row("ours", f"{k}", psnr_box_db=each["psnr_box_db"]) for k, each in enumerate(scores)]
        return group_means(rows, "psnr_box_db", ("row",))["ours",].value

    assert score(100, 0) == pytest.approx((28.13 + 58.92) / 2, abs=0.01)
    assert score(100, 0) > score(100, 1) > score(100, 100)
    curve = compute_curves(make_measurements(None) | {"errors_box": np.array([100.0, 0.0])}, None)
    assert curve["psnr_box_db"] == pytest.approx([28.13, 58.92], abs=0.01)


def test_drift_is_not_ranked_and_is_read_beside_the_ground_truths_row() -> None:
    column = COLUMNS["identity_drift"]
    assert column.better == "" and "ground truth's row" in column.about and "0 is best" not in column.about
    assert "is drift" not in COLUMNS["psnr_box_last_db"].about


def test_with_another_speech_no_score_that_needs_ground_truth_is_computed() -> None:
    speech, source = make_mouths(make_openings(1)), make_mouths(make_openings(2))
    scores = score_clip(make_measurements(speech, own=False), TrueClip(speech), TrueClip(source), own=False)
    assert not {name for name in scores if COLUMNS[name].needs_truth}
    assert scores["audio_obedience"] == pytest.approx(1)
    assert "psnr_box_db" not in compute_curves(make_measurements(speech, own=False), speech)


def test_a_swapped_pair_is_scored_in_the_pauses_and_closures_of_the_speech() -> None:
    """Mouths that move and close by known amounts; the source pauses and closes elsewhere."""
    frames = np.arange(T)
    pause, source_pause = (frames >= 10) & (frames < 30), (frames >= 40) & (frames < 60)
    alternating = frames % 2
    generated = 6.4 + 3.2 * alternating * pause + 12.8 * alternating * source_pause
    spoken = 6.4 + 1.6 * alternating * pause + 12.8 * alternating * source_pause
    generated[5] = spoken[35] = 0  # px; pupils are 32 px apart
    speech = TrueClip(make_mouths(spoken), is_silent=pause, closures=[5, 35, 72])
    source = TrueClip(make_mouths(make_openings(2) + 6.4), is_silent=source_pause, closures=[5])
    measurements = make_measurements(make_mouths(generated), own=False)
    scores = score_clip(measurements, speech, source, own=False)
    assert scores["silence_motion"] == pytest.approx(25 * 3.2 / 32, rel=1e-4)
    assert scores["silence_motion_truth"] == pytest.approx(25 * 1.6 / 32, rel=1e-4)
    assert scores["closure"] == scores["closure_truth"] == pytest.approx(1 / 3)


def test_a_swapped_pair_is_compared_with_the_mouth_and_the_sound_of_the_speech() -> None:
    """The generated mouth says the speech, three frames late; the source says something else."""
    late = 3
    spoken = make_openings(1, T + late)
    generated, speech, source = spoken[:T], spoken[late:], make_openings(2)
    clips = [
        TrueClip(make_mouths(values), mouth_by_speech=describe_motion(values).astype(np.float32))
        for values in (speech, source)
    ]
    measurements = make_measurements(make_mouths(generated), own=False)
    scores = score_clip(measurements, *clips, own=False)
    assert scores["opening_lag_frames"] == scores["sync_lag"] == late
    assert scores["opening_correlation"] == pytest.approx(np.corrcoef(generated, speech)[0, 1], abs=1e-4)
    curves = compute_curves(measurements, clips[0].mouths)
    assert curves["opening"] == pytest.approx(generated / 32, abs=1e-5)
    assert curves["opening_speech"] == pytest.approx(speech / 32, abs=1e-5)


def test_closures_at_which_one_of_the_mouths_is_not_found_count_for_neither() -> None:
    generated, spoken = np.full(T, 6.4), np.full(T, 6.4)
    generated[5] = spoken[35] = 0
    generated_mouths, spoken_mouths = make_mouths(generated), make_mouths(spoken)
    generated_mouths.lips[32:39] = spoken_mouths.lips[69:] = np.nan
    speech, source = TrueClip(spoken_mouths, closures=[5, 20, 35, 72]), TrueClip(make_mouths(spoken))
    scores = score_clip(make_measurements(generated_mouths, own=False), speech, source, own=False)
    assert scores["closure"] == 0.5 and scores["closure_truth"] == 0, "of those at 5 and 20"


def test_known_mouths_have_their_known_obedience() -> None:
    """Ground truth 1, a copy of the source -1, a mouth that ignores audio about 0, whatever they share."""
    scores: dict[str, list[float]] = {"truth": [], "copy": [], "deaf": []}
    for seed in range(0, 90, 3):
        timing = make_openings(seed)
        source, speech = (0.6 * timing + 0.4 * make_openings(seed + n) for n in (1, 2))
        for name, generated in (("truth", speech), ("copy", source), ("deaf", make_openings(1000 + seed))):
            scores[name].append(score_obedience(generated, speech, source)["audio_obedience"])
    assert min(scores["truth"]) > 0.999 and max(scores["copy"]) < -0.999
    deaf = bootstrap_mean(scores["deaf"])
    assert deaf.low < 0 < deaf.high and abs(deaf.value) < 0.1


def test_a_clip_whose_mouth_is_found_in_few_frames_has_no_obedience() -> None:
    speech, source = make_openings(1), make_openings(2)
    speech[5:] = np.nan
    assert np.isnan(list(score_obedience(speech, speech, source).values())).all()


def test_a_mean_opening_by_frame_number_counts_the_clips_that_have_the_frame() -> None:
    curve = average_openings([np.array([1.0, np.nan, 3.0, np.nan]), np.array([3.0, 4.0])])
    assert curve.tolist()[:3] == [2, 4, 3] and np.isnan(curve[3])
    assert len(average_openings([])) == 0


def test_motion_in_silence_is_the_ratio_of_means_over_clips() -> None:
    rows = [
        make_row("ours", "a", silence_motion=0.3, silence_motion_truth=0.1, emotion="ANG"),
        make_row("ours", "b", silence_motion=0.1, silence_motion_truth=0.1, emotion="SAD"),
        make_row("ours", "c", silence_motion=0.1),
        make_row("still", "a", silence_motion=0.1, silence_motion_truth=0.0),
    ]
    ratio = group_means(rows, "silence_ratio", ("row",))
    assert ratio["ours",].value == pytest.approx(2) and ratio["ours",].n == 2 and len(ratio) == 1
    assert ratio["ours",].low is None, "two clips"
    assert group_means(rows, "silence_ratio", ("row", "emotion"))["ours", "ANG"].value == pytest.approx(3)


def test_means_are_grouped_by_row_and_by_properties_of_clips() -> None:
    rows = [
        make_row("ours", "a", emotion="ANG", ssim_box=0.9),
        make_row("ours", "b", emotion="ANG", ssim_box=0.7),
        make_row("ours", "c", emotion="SAD", ssim_box=0.5),
        make_row("ours", "d", emotion="SAD"),
        make_row("ours", "e", ssim_box=0.1),
    ]
    assert group_means(rows, "ssim_box", ("row",))["ours",].value == pytest.approx(0.55)
    by_emotion = group_means(rows, "ssim_box", ("row", "emotion"))
    assert {key: (mean.value, mean.n) for key, mean in by_emotion.items()} == {
        ("ours", "ANG"): (pytest.approx(0.8), 2),
        ("ours", "SAD"): (0.5, 1),
    }


def test_rows_have_the_paired_difference_from_the_first_system_of_the_clips_that_both_have() -> None:
    rng = np.random.default_rng(0)
    levels = rng.normal(28, 1.5, 12)
    rows = []
    for name, gain, clips in (
        ("ours", 0.0, range(12)),
        ("other", 0.3, range(1, 12)),
        (FROZEN, -2.0, range(3)),
    ):
        rows += [
            make_row(name, f"{k}", psnr_box_db=levels[k] + gain, smoothness_box=1.0) | {"name": f"{k}"}
            for k in clips
        ]
    rows += [make_row("swapped", "0", "1", opening_correlation=0.5) | {"name": "0~1"}]
    table = build_metrics(rows, {}, {}, ["ours", "other", "swapped"])
    ours, other, frozen = (table[name]["psnr_box_db"] for name in ("ours", "other", FROZEN))
    assert "difference" not in ours and other["low"] < ours["high"], "which alone tells nothing"
    less = other["difference"]
    assert less["from"] == "ours" and less["n"] == 11 and less["mean"] == pytest.approx(0.3)
    assert frozen["difference"] == {
        "from": "ours",
        "mean": pytest.approx(-2),
        "low": None,
        "high": None,
        "n": 3,
    }
    assert "difference" not in table["other"]["smoothness_box"], "of the main columns"
    assert "difference" not in table["swapped"]["opening_correlation"], "no clip in common"
    rows = [row | {"speaker": f"s{int(row['clip_id']) % 3}"} for row in rows]
    assert explain_intervals(rows).startswith("95 % intervals are over clips of 3 people alone")


def test_a_missing_value_says_why() -> None:
    rows = [
        make_row("truth", "a"),
        make_row("swapped", "a", "b", audio_obedience=0.5),
        make_row("broken", "a", status="dropped"),
        make_row(MEAN_OPENING, "a", opening_correlation=0.6),
    ]
    table = build_metrics(rows, {"truth": {"fid_box": Mean(0, None, None, 75)}}, {"lse_c": "no SyncNet"})
    assert all(values.keys() == COLUMNS.keys() for values in table.values())
    assert table["truth"]["lse_c"] == "not computed: no SyncNet"
    assert table["truth"]["fid_box"] == {"mean": 0, "low": None, "high": None, "n": 75}
    assert table["truth"]["audio_obedience"].endswith("generated from another's speech")
    assert table["swapped"]["ssim_box"] == (
        "not computed: there is no ground truth of these faces with another's speech"
    )
    assert table["swapped"]["audio_obedience"] == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert table[MEAN_OPENING]["ssim_box"] == "not computed: it is a curve of mouth openings, without frames"
    assert table[MEAN_OPENING]["obedience_source"].endswith("generated from another's speech")
    assert table["truth"]["silence_ratio"].startswith("not computed: no clip's speech has a pause")
    assert table["broken"]["ssim_box"] == "not computed: no clip of this row could be scored"
