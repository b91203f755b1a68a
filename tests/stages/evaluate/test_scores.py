"""From series to the table: obedience of made mouths, groups, and why a cell is empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import Measured
from stages.evaluate.metrics.mouth import Mouths
from stages.evaluate.metrics.obedience import Mean, mean_of
from stages.evaluate.scores import clip_scores, curves, means_by, metrics_of, obedience
from tests.stages.evaluate.metrics.test_mouth import mouths, speech

T = 75


def measured(seen: Mouths | None, *, own: bool = True) -> Measured:
    """Of a clip drawn without a fault."""
    series = {name: np.zeros(T) for name in ("identity_distances", "errors_box", "errors_frame")}
    series |= {name: np.ones(T) for name in ("ssim_box", "ssim_frame", "cpbd_box", "cpbd_frame")}
    if not own:
        for name in ("errors_box", "errors_frame", "ssim_box", "ssim_frame"):
            del series[name]
    looked_at = {} if seen is None else {"lips": seen.lips, "pupils": seen.pupils}
    return {**series, "smoothness": np.array(1.0), **looked_at}


def row(name: str, clip_id: str, audio: str = "", **values: Any) -> dict[str, Any]:
    told = {
        "row": name,
        "clip_id": clip_id,
        "audio_clip_id": audio or clip_id,
        "status": "ok",
        "emotion": None,
    }
    return told | dict.fromkeys(COLUMNS) | values


def test_the_truth_scores_perfect_where_that_is_defined() -> None:
    truth = mouths(speech(0))
    scores = clip_scores(measured(truth), truth, truth, own=True)
    assert scores["psnr_box_db"] == scores["psnr_frame_db"] == np.inf
    assert scores["ssim_box"] == scores["ssim_frame"] == scores["smoothness_box"] == 1
    assert scores["mouth_distance_px"] == scores["opening_lag_frames"] == scores["identity_drift"] == 0
    assert scores["opening_correlation"] == pytest.approx(1)
    assert "audio_obedience" not in scores
    assert curves(measured(truth), truth)["psnr_box_db"].min() == np.inf


def test_of_another_speech_nothing_is_asked_that_needs_a_truth() -> None:
    said, source = mouths(speech(1)), mouths(speech(2))
    scores = clip_scores(measured(said, own=False), said, source, own=False)
    assert not {name for name in scores if COLUMNS[name].needs_truth}
    assert scores["audio_obedience"] == pytest.approx(1)
    assert "psnr_box_db" not in curves(measured(said, own=False), said)


def test_made_mouths_obey_as_they_were_made_to() -> None:
    """The truth 1, a copy of the source -1, one deaf 0 within noise; shared timing flatters none of them."""
    told: dict[str, list[float]] = {"truth": [], "copy": [], "deaf": []}
    for seed in range(0, 90, 3):
        timing = speech(seed)
        own, heard = (mouths(0.6 * timing + 0.4 * speech(seed + n)) for n in (1, 2))
        told["truth"].append(obedience(heard, heard, own))
        told["copy"].append(obedience(own, heard, own))
        told["deaf"].append(obedience(mouths(speech(1000 + seed)), heard, own))
    assert min(told["truth"]) > 0.999 and max(told["copy"]) < -0.999
    deaf = mean_of(told["deaf"])
    assert deaf.low < 0 < deaf.high and abs(deaf.value) < 0.1


def test_a_clip_whose_mouth_is_hardly_ever_seen_has_no_obedience() -> None:
    heard, own = mouths(speech(1)), mouths(speech(2))
    heard.lips[5:] = np.nan
    assert np.isnan(obedience(heard, heard, own))


def test_means_are_told_by_row_and_by_what_a_clip_is() -> None:
    rows = [
        row("ours", "a", emotion="ANG", ssim_box=0.9),
        row("ours", "b", emotion="ANG", ssim_box=0.7),
        row("ours", "c", emotion="SAD", ssim_box=0.5),
        row("ours", "d", emotion="SAD"),
        row("ours", "e", ssim_box=0.1),
    ]
    assert means_by(rows, "ssim_box", ("row",))["ours",].value == pytest.approx(0.55)
    by_emotion = means_by(rows, "ssim_box", ("row", "emotion"))
    assert {key: (mean.value, mean.n) for key, mean in by_emotion.items()} == {
        ("ours", "ANG"): (pytest.approx(0.8), 2),
        ("ours", "SAD"): (0.5, 1),
    }


def test_an_empty_cell_says_why() -> None:
    rows = [
        row("truth", "a"),
        row("dubbed", "a", "b", audio_obedience=0.5),
        row("broken", "a", status="dropped"),
    ]
    table = metrics_of(rows, {"truth": {"fid_box": Mean(0, 0, 0, 75)}}, {"lse_c": "no SyncNet"})
    assert all(cells.keys() == COLUMNS.keys() for cells in table.values())
    assert table["truth"]["psnr_box_db"] == "not computed: infinite: every pixel is the truth's"
    assert table["truth"]["lse_c"] == "not computed: no SyncNet"
    assert table["truth"]["fid_box"] == {"mean": 0, "low": 0, "high": 0, "n": 75}
    assert table["truth"]["audio_obedience"].endswith("drawn to another's speech")
    assert table["dubbed"]["ssim_box"] == "not computed: no truth shows these faces with another's speech"
    assert table["dubbed"]["audio_obedience"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 1}
    assert table["broken"]["ssim_box"] == "not computed: no clip of this row could be scored"
