from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.main import cli
from shards.ledger import DROPPED, OK, build_ledger, write_ledger
from shards.table import Row
from stages.cut.params import CutParams, ThresholdParams
from stages.cut.thresholds import THRESHOLDS, Cost, CostTable, Threshold, count_costs, judge_clip

PARAMS = CutParams(
    correct_lag=False, second_opinion="syncnet", thresholds=ThresholdParams(min_syncnet_confidence=3.0)
)
GOOD_CLIP = {
    "sync_confidence": 1.5,
    "syncnet_confidence": 6.5,
    "lag_frames": 0,
    "face_width": 110.0,
    "sharpness": 0.7,
    "yaw": -6.0,
    "pitch": 4.0,
    "brightness": 140.0,
    "speech_level": -24.0,
    "speech_to_noise": 25.0,
}


def make_span(start: int, **columns: Any) -> Row:
    """A row of the ledger: a span of two seconds that is a good clip, with other columns."""
    names = {"clip_id": f"film_{start:06d}-{start + 50:06d}", "path": "film.mp4", "notes": [], "stage": "cut"}
    times = {"start_seconds": start / 25, "end_seconds": start / 25 + 2, "status": OK, "code": ""}
    return {**names, **times, **GOOD_CLIP, **columns}


def make_random_spans(n_spans: int) -> list[Row]:
    """Spans of which most break some threshold and some lack measurements."""
    random = np.random.default_rng(0)
    spans = []
    for k in range(n_spans):
        columns: dict[str, Any] = {
            threshold.column: float(threshold.read_limit(PARAMS) + random.normal(0, threshold.step * 5))
            for threshold in THRESHOLDS
        }
        columns["lag_frames"] = int(random.integers(-4, 4))
        for name in random.choice(list(columns), 2):
            columns[name] = None
        columns["near_duplicate"] = str(random.choice(["", "film_000000-000050"]))
        spans.append(make_span(50 * k, **columns))
    return spans


def test_a_good_clip_is_kept_and_so_is_one_without_measurements() -> None:
    assert judge_clip(GOOD_CLIP, PARAMS) is None
    assert judge_clip({}, PARAMS) is None
    assert judge_clip(dict.fromkeys(GOOD_CLIP), PARAMS) is None
    assert judge_clip(dict.fromkeys(GOOD_CLIP, float("nan")), PARAMS) is None


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=lambda threshold: threshold.name)
def test_a_clip_beyond_a_threshold_is_dropped_in_one_line(threshold: Threshold) -> None:
    limit = threshold.read_limit(PARAMS)
    assert judge_clip({**GOOD_CLIP, threshold.column: limit}, PARAMS) is None
    beyond = limit - 1.25 if threshold.side == "least" else limit + 1.25
    values = [beyond, -beyond] if threshold.side == "greatest either way" else [beyond]
    for value in values:
        drop = judge_clip({**GOOD_CLIP, threshold.column: value}, PARAMS)
        assert drop is not None
        assert drop.code == threshold.code
        assert f"{value:.3g}" in drop.reason
        assert f"{limit:g}" in drop.reason
        assert drop.reason.endswith(f"(cut.thresholds.{threshold.name})")
        assert "\n" not in drop.reason


def test_a_value_that_rounds_to_the_limit_is_shown_with_more_digits() -> None:
    drop = judge_clip({"face_width": 39.996}, PARAMS)
    assert drop is not None
    assert drop.reason.startswith("its face is 39.996 px wide, expected 40 or more")


def test_a_lag_that_is_corrected_costs_no_clip() -> None:
    late = {**GOOD_CLIP, "lag_frames": -5}
    assert judge_clip(late, replace(PARAMS, correct_lag=True)) is None
    drop = judge_clip(late, PARAMS)
    assert drop is not None
    assert drop.code == "out_of_sync"


def test_near_duplicates_are_dropped_on_request() -> None:
    row = {**GOOD_CLIP, "near_duplicate": "film_000000-000050"}
    assert judge_clip(row, PARAMS) is None
    drop = judge_clip(row, replace(PARAMS, near_duplicates="drop"))
    assert drop is not None
    assert (drop.code, "film_000000-000050" in drop.reason) == ("near_duplicate", True)


@pytest.mark.parametrize("params", [PARAMS, replace(PARAMS, near_duplicates="drop")], ids=["keep", "drop"])
def test_costs_in_sequence_add_up_to_what_judging_each_clip_drops(params: CutParams) -> None:
    spans = make_random_spans(80)
    table = count_costs(spans, params)
    kept = [span for span in spans if judge_clip(span, params) is None]
    assert table.clips == Cost(80, 160.0)
    assert table.remaining == Cost(len(kept), 2.0 * len(kept))
    assert 0 < sum(cost.in_sequence.clips for cost in table.thresholds) == 80 - len(kept)
    assert all(cost.in_sequence.clips <= cost.alone.clips <= cost.n_measured for cost in table.thresholds)
    for threshold, cost in zip(THRESHOLDS, table.thresholds, strict=False):
        for limit, other in cost.others.items():
            thresholds = replace(params.thresholds, **{threshold.name: type(cost.limit)(limit)})
            again = count_costs(spans, replace(params, thresholds=thresholds)).thresholds
            assert [item.alone for item in again if item.name == threshold.name] == [other]


def test_costs_do_not_depend_on_the_thresholds_of_the_build_but_of_copies_which_are_looked_for_last() -> None:
    spans = make_random_spans(40)
    table = count_costs(spans, PARAMS)
    for strict in (PARAMS, CutParams(near_duplicates="drop", thresholds=ThresholdParams(min_sharpness=0.6))):
        rows, n_compared = [], 0
        for span in spans:
            drop = judge_clip({**span, "near_duplicate": ""}, strict) or judge_clip(span, strict)
            if drop is None or drop.code == "near_duplicate":
                n_compared += 1
            else:
                span = {**span, "near_duplicate": None}
            rows.append(span if drop is None else {**span, "status": DROPPED, "code": drop.code})
        again = count_costs(build_ledger(rows), PARAMS)
        assert (again.clips, again.thresholds[:-1]) == (table.clips, table.thresholds[:-1])
        assert again.thresholds[-1].n_measured == n_compared <= len(spans)


def test_spans_that_no_threshold_dropped_are_not_counted() -> None:
    others = [
        make_span(50, status=DROPPED, code="no_speech"),
        make_span(100, status=DROPPED, code="silent_face", sync_confidence=None, syncnet_confidence=None),
        make_span(150, status="failed", code="crashed"),
        make_span(200, start_seconds=None, end_seconds=None),
    ]
    assert count_costs([make_span(0), *others], PARAMS) == count_costs([make_span(0)], PARAMS)
    empty = count_costs([], PARAMS)
    assert isinstance(empty, CostTable)
    assert empty.clips == empty.remaining == Cost(0, 0)


def test_explain_prints_what_thresholds_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no params.yaml is
    spans = [make_span(50 * k, sharpness=0.3 + 0.01 * k, speech_level=None) for k in range(50)]
    write_ledger(tmp_path / "clips.parquet", spans)
    result = CliRunner().invoke(cli, ["explain", str(tmp_path), "--thresholds"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("50 clips, 1.7 min, of which cut.thresholds keep 30, 1.0 min")
    lines = [line.split() for line in result.output.splitlines()]
    assert ["0.5*", "20", "40.0%", "0.7", "20"] in [line[-5:] for line in lines]
    assert ["min_speech_level", "-50", "no", "clip", "has", "a", "speech_level"] in lines
    as_json = json.loads(CliRunner().invoke(cli, ["explain", str(tmp_path), "--thresholds", "--json"]).output)
    (cost,) = (item for item in as_json["thresholds"] if item["name"] == "min_sharpness")
    assert cost["alone"] == cost["in_sequence"] == {"clips": 20, "seconds": 40.0}
    assert {"limit": 0.35, "clips": 5, "seconds": 10.0} in cost["others"]
    for words in (["explain", str(tmp_path)], ["explain", str(tmp_path), "film.mp4", "--thresholds"]):
        result = CliRunner().invoke(cli, words)
        assert (result.exit_code, "--thresholds" in result.output) == (2, True)
