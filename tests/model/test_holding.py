"""However a dataset is held, training draws each frame once, and a run goes on where it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import EMA, OPTIMIZER, WEIGHTS, listed
from model.execution import Execution
from model.recipe import ModelError, Recipe
from model.run_log import METRICS, read_metrics
from shards.reader import open_dataset
from shards.resident import split_held_out
from stages import train
from stages.engine.outcome import StageError
from stages.train import TrainRequest
from tests import s3
from tests.model import worlds
from tests.model.worlds import TINY
from tests.shards.test_publish import served

# 39 frames, of which 30 or so are trained on: more than three epochs.
RECIPE = replace(TINY, steps=14, watch=replace(TINY.watch, save_every=5))
WINDOWED = replace(RECIPE, window=2)
TRAINED, _ = split_held_out([f"s1_clip{number}" for number in range(4)], TINY.held_out_share, seed=TINY.seed)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.dataset(tmp_path_factory.mktemp("shards") / "shards", per_shard=1)


def run(shards: Path | str, folder: Path, recipe: Recipe = RECIPE, **how: Any) -> str:
    return train.run(
        TrainRequest(str(shards), folder, "tiny", device="cpu", machine=Execution(), **how), recipe
    )


def weights_of(folder: Path) -> dict[str, bytes]:
    return {name: (listed(folder)[-1].path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def proofs(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "drawn" in record.message]


def test_resident_and_cached_train_the_same_weights_bit_for_bit(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    for hold in ("resident", "cached"):
        caplog.clear()
        assert run(shards, tmp_path / hold, hold=hold, workers=2) == "done"
        told = proofs(caplog)
        assert len(told) >= 3 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in told)
    assert weights_of(tmp_path / "resident") == weights_of(tmp_path / "cached")


def test_a_run_goes_on_in_another_way_of_holding_and_ends_the_same(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "unbroken")
    run(shards, tmp_path / "broken", replace(RECIPE, steps=5), hold="cached", workers=1)
    assert listed(tmp_path / "broken")[-1].step == 5
    run(shards, tmp_path / "broken", hold="resident")
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "unbroken")


def test_windows_train_on_each_frame_once_an_epoch_and_go_on_exactly(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    run(shards, tmp_path / "unbroken", WINDOWED, hold="windowed", workers=1)
    run(shards, tmp_path / "broken", replace(WINDOWED, steps=5), hold="windowed", workers=1)
    run(shards, tmp_path / "broken", WINDOWED, hold="windowed", workers=2)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "unbroken")
    told = proofs(caplog)
    assert len(told) >= 6 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in told)


def test_a_run_goes_on_with_another_batch_and_still_draws_each_frame_once(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    run(shards, tmp_path / "run", replace(RECIPE, steps=5))
    run(shards, tmp_path / "run", replace(RECIPE, steps=20, batch=5), hold="cached", workers=1)
    told = proofs(caplog)
    assert len(told) >= 3 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in told)


def test_windows_are_part_of_the_recipe(shards: Path, tmp_path: Path) -> None:
    for recipe, hold in ((RECIPE, "windowed"), (WINDOWED, "cached")):
        with pytest.raises(StageError, match=f"--hold {hold} does not go with a recipe whose window is"):
            run(shards, tmp_path / "wrong", recipe, hold=hold)
    run(shards, tmp_path / "run", replace(WINDOWED, steps=1), hold="windowed")
    with pytest.raises(ModelError, match="was trained with window 2, not 3"):
        run(shards, tmp_path / "run", replace(WINDOWED, window=3), hold="windowed")


def test_training_from_a_bucket_gives_the_weights_of_training_from_a_folder(
    shards: Path, tmp_path: Path, s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.bucket()
    for path in shards.iterdir():
        s3_server.client().upload_file(str(path), bucket, path.name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    for hold, recipe in (("cached", replace(RECIPE, steps=5)), ("windowed", replace(WINDOWED, steps=5))):
        there, here = tmp_path / f"{hold}-there", tmp_path / f"{hold}-here"
        run(f"s3://{bucket}", there, recipe, hold=hold, workers=1, cache=tmp_path / "cache", cache_gb=1e-4)
        run(shards, here, recipe, hold=hold, workers=1)
        assert weights_of(there) == weights_of(here)


@pytest.mark.parametrize(("hold", "recipe"), [("cached", RECIPE), ("windowed", WINDOWED)])
def test_two_processes_of_torchrun_bring_each_shard_once_and_draw_each_frame_once(
    hold: str, recipe: Recipe, shards: Path, tmp_path: Path
) -> None:
    """They share a cache, and are the run of one process that reads the folder."""
    recipe = replace(recipe, watch=replace(recipe.watch, log_every=1))
    two, one = tmp_path / "two", tmp_path / "one"
    with served(shards) as (address, sent):
        words = ["--hold", hold, "--window", str(recipe.window or 1), "--cache", str(tmp_path / "cache")]
        done = worlds.finished(worlds.command(address, two, recipe, *words, ranks=2))
    opened = open_dataset(shards)
    n_frames = sum(opened.clips.column("frames", TRAINED))
    assert [line for line in done.stderr.splitlines() if line.startswith("epoch")] == [
        f"epoch {epoch}: {n_frames} frames drawn, 0 repeated, 0 missing"
        for epoch in range(recipe.steps * recipe.batch // n_frames)
    ]
    names, _ = opened.clips.locate_shards(TRAINED)
    assert [sent.count(name) for name in names] == [1, 1, 1], "each once, for both"
    run(shards, one, recipe, hold=hold, workers=1)
    ours, theirs = (
        [line["loss"] for line in read_metrics(folder / METRICS) if "loss" in line] for folder in (two, one)
    )
    assert ours[:7] == pytest.approx(theirs[:7], rel=1e-4), "before rounding adds up"
