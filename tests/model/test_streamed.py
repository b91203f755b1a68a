"""`train --hold streamed`: batches from a stock WebDataset pipeline, without exact epochs."""

from __future__ import annotations

import logging
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.batch import FrameParams, to_pixels
from model.checkpoint import list_checkpoints
from model.epochs import EpochCounter, load_batches
from model.execution import Execution
from model.objective import add_noise_in_mask
from model.run_log import METRICS, read_metrics
from shards.clip_stream import ClipStream
from shards.reader import open_dataset
from stages.train import run as train
from stages.train.run import TrainRequest
from tests import datasets
from tests.model import worlds
from tests.model.worlds import ALONE, CPU, FIT, N_MELS, SIZE, TINY

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


def test_a_streamed_batch_shows_a_third_frame_of_the_clip_outside_the_mask(tmp_path: Path) -> None:
    """Of clips whose frames have one colour each, of which no two are the same."""
    length = 9
    colours = np.arange(3 * length, dtype=np.uint8)[:, None, None, None]
    mels = np.full((2 * length, N_MELS), -40, np.float32)
    clips = [
        datasets.pack(f"s1_clip{number}", frames, box=(4, 8, 12, 15), mels=mels)
        for number, frames in enumerate(np.split(np.tile(colours, (1, SIZE, SIZE, 3)), 3))
    ]
    dataset = open_dataset(datasets.write(tmp_path / "shards", clips))
    clean = FrameParams(
        previous_noise=0, previous_warp=0, previous_blur=0, previous_hidden=0, context_share=1
    )
    recipe = replace(TINY, batch=27, frames=clean)
    counter = EpochCounter(3 * length)
    with closing(ClipStream(dataset, list(dataset.clips), FIT, CPU, workers=0, seed=0, start_step=0)) as data:
        batches = load_batches(data, recipe, ALONE, Execution(), 0, counter)
        [batch] = next(batches)
        batches.close()
    is_outside = (batch.mask == 0).expand_as(batch.y_0)
    for sample, pixels in enumerate(to_pixels(add_noise_in_mask(batch))):
        [context] = set(pixels[is_outside[sample]].tolist())
        target, identity = (int(to_pixels(images)[sample, 0, 0, 0]) for images in (batch.y_0, batch.identity))
        assert context // length == target // length and context not in (target, identity)
        assert int(to_pixels(batch.previous)[sample, 0, 0, 0]) == context


def test_the_command_takes_hold_streamed(shards: Path, tmp_path: Path) -> None:
    result = worlds.run_command(worlds.make_command(shards, tmp_path / "run", RECIPE, "--hold", "streamed"))
    assert "streamed: no exact epochs" in result.stderr
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")] == [3]
