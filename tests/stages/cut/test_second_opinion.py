from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import Params
from shards.ledger import build_ledger, read_ledger, write_ledger
from stages import clips
from stages.cut import run as cut
from stages.cut.params import CutParams
from stages.cut.speaker import measure_curve, score_curve
from stages.engine.stage import Context, Work
from stages.landmarks import LandmarksParams
from stages.media.weights import WeightsNotFound
from stages.metrics.lse import score_embeddings
from stages.speech import SpeechParams
from tests import datasets


@pytest.mark.parametrize("lag", [-4, 3])
def test_syncnet_counts_frames_in_the_direction_of_our_own_lag(lag: int) -> None:
    sound = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    lips = np.roll(sound, lag, axis=0)[20:100]  # shows what was heard so many frames before
    assert score_embeddings(lips, sound[20:100]).offset == lag
    prediction = np.stack([sound[:, 0], np.gradient(sound[:, 0])], axis=1)
    curve = measure_curve(lips[:, 0], prediction, 20)
    assert curve is not None and score_curve(curve).lag == lag


def test_weights_that_are_not_there_end_the_command_in_one_line(no_networks: None, tmp_path: Path) -> None:
    work = Work("folder", tmp_path, tmp_path, tmp_path / "out", tmp_path / "cache")
    write_ledger(work.stage_folder(clips.STAGE) / clips.LEDGER_NAME, [])
    params = CutParams(enabled=True, second_opinion="syncnet")
    with pytest.raises(
        WeightsNotFound, match=r"^SyncNet weights not found at .*; get them from \S+ \(sha256"
    ):
        cut.run(work, (), cut.CutSettings(params, LandmarksParams(), SpeechParams()), Context())


def test_a_dataset_without_a_second_opinion_does_not_mention_one(tmp_path: Path) -> None:
    assert "syncnet" not in json.dumps(Params(cut=CutParams(enabled=True)).describe_dataset())
    asked = Params(cut=CutParams(enabled=True, second_opinion="syncnet")).describe_dataset()["cut"]
    assert asked["second_opinion"] == "syncnet" and asked["thresholds"]["min_syncnet_confidence"] == 0
    spans = datasets.make_spans("a.mp4", (10, "no_face"), (50, ""))
    columns = {"syncnet_confidence": 3.5, "syncnet_lag": -2}
    assert not columns.keys() & set(build_ledger(spans).table.column_names)
    write_ledger(tmp_path / "ledger.parquet", [span | columns for span in spans])
    rows = read_ledger(tmp_path / "ledger.parquet")
    assert [row[name] for row in rows for name in columns] == 2 * [3.5, -2]
