"""`train --hold streamed`: batches from a stock WebDataset pipeline, without exact epochs."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint import list_checkpoints
from model.execution import Execution
from model.run_log import METRICS, read_metrics
from stages import train
from stages.train import TrainRequest
from tests.model import worlds
from tests.model.worlds import TINY

RECIPE = replace(TINY, steps=3, watch=replace(TINY.watch, log_every=1, evaluate_every=3))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_dataset(tmp_path_factory.mktemp("shards") / "shards", per_shard=1)


def test_a_streamed_run_trains_evaluates_and_resumes(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = TrainRequest(
        str(shards), tmp_path / "run", "tiny", device="cpu", hold="streamed", workers=2, execution=Execution()
    )
    for steps in (3, 12):  # 12 steps of 8 are three epochs of the 30 training frames
        assert train.run(request, replace(RECIPE, steps=steps)) == "done"
        assert list_checkpoints(request.run)[-1].step == steps
    losses = [line["loss"] for line in read_metrics(request.run / METRICS) if "loss" in line]
    assert len(losses) == 12 and all(map(math.isfinite, losses))
    messages = [record.message for record in caplog.records]
    assert messages.count("streamed: no exact epochs") == 2
    assert not any("drawn" in message for message in messages), "claims no exact epochs"


def test_the_command_takes_hold_streamed(shards: Path, tmp_path: Path) -> None:
    result = worlds.run_command(worlds.make_command(shards, tmp_path / "run", RECIPE, "--hold", "streamed"))
    assert "streamed: no exact epochs" in result.stderr
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")] == [3]
