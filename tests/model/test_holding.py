"""However a dataset is held, each frame is used once an epoch, and a run resumes exactly."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import loop
from model.checkpoint import EMA, OPTIMIZER, WEIGHTS, list_checkpoints
from model.execution import Execution
from model.recipe import ModelError, Recipe
from model.run_log import METRICS, read_metrics
from pipeline.main import cli
from shards.reader import open_dataset
from shards.resident import split_held_out
from shards.schema import ShardError
from stages.engine.outcome import StageError
from stages.train import run as train
from stages.train.run import TrainRequest
from stages.train.run_file import read_run_file
from tests import s3
from tests.model import worlds
from tests.model.worlds import TINY
from tests.shards.test_publish import serve

# 39 frames, of which 30 or so are trained on: more than three epochs.
RECIPE = replace(TINY, steps=14, watch=replace(TINY.watch, save_every=5))
WINDOWED = replace(RECIPE, window=2)
# What makes a network look at people that it does not know.
PEOPLE = replace(
    RECIPE,
    frames=replace(RECIPE.frames, common_gamma=1.0, common_hue=20.0, mirror_share=0.5, context_share=1.0),
    noise=replace(RECIPE.noise, base="identity"),
)
TRAIN_IDS, _ = split_held_out(
    [f"s1_clip{number}" for number in range(4)], TINY.held_out_share, seed=TINY.seed
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_dataset(tmp_path_factory.mktemp("shards") / "shards", per_shard=1)


def run_training(shards: Path | str, folder: Path, recipe: Recipe = RECIPE, **settings: Any) -> str:
    request = TrainRequest(str(shards), folder, "tiny", device="cpu", execution=Execution(), **settings)
    return train.run(request, recipe)


def read_weights(folder: Path) -> dict[str, bytes]:
    return {
        name: (list_checkpoints(folder)[-1].path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER)
    }


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def get_epoch_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "drawn" in record.message]


def test_resident_and_cached_train_the_same_weights_bit_for_bit(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    for hold in ("resident", "cached"):
        caplog.clear()
        assert run_training(shards, tmp_path / hold, hold=hold, workers=2) == "done"
        lines = get_epoch_lines(caplog)
        assert len(lines) >= 3 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in lines)
    assert read_weights(tmp_path / "resident") == read_weights(tmp_path / "cached")


def test_a_run_resumed_with_another_hold_ends_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    run_training(shards, tmp_path / "uninterrupted")
    run_training(shards, tmp_path / "resumed", replace(RECIPE, steps=5), hold="cached", workers=1)
    assert list_checkpoints(tmp_path / "resumed")[-1].step == 5
    run_training(shards, tmp_path / "resumed", hold="resident")
    assert read_weights(tmp_path / "resumed") == read_weights(tmp_path / "uninterrupted")


def test_a_windowed_run_uses_each_frame_once_an_epoch_and_resumes_exactly(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    run_training(shards, tmp_path / "uninterrupted", WINDOWED, hold="windowed", workers=1)
    run_training(shards, tmp_path / "resumed", replace(WINDOWED, steps=5), hold="windowed", workers=1)
    run_training(shards, tmp_path / "resumed", WINDOWED, hold="windowed", workers=2)
    assert read_weights(tmp_path / "resumed") == read_weights(tmp_path / "uninterrupted")
    lines = get_epoch_lines(caplog)
    assert len(lines) >= 6 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in lines)


def test_a_run_resumed_with_another_batch_size_still_uses_each_frame_once(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "model")
    run_training(shards, tmp_path / "run", replace(RECIPE, steps=5))
    run_training(shards, tmp_path / "run", replace(RECIPE, steps=20, batch=5), hold="cached", workers=1)
    lines = get_epoch_lines(caplog)
    assert len(lines) >= 3 and all(line.endswith("drawn, 0 repeated, 0 missing") for line in lines)


def test_the_window_is_part_of_the_recipe(shards: Path, tmp_path: Path) -> None:
    for recipe, hold in ((RECIPE, "windowed"), (WINDOWED, "cached")):
        with pytest.raises(
            StageError, match=f"--hold {hold} cannot be combined with a recipe whose window is"
        ):
            run_training(shards, tmp_path / "wrong", recipe, hold=hold)
    run_training(shards, tmp_path / "run", replace(WINDOWED, steps=1), hold="windowed")
    with pytest.raises(ModelError, match="was trained with window 2, not 3"):
        run_training(shards, tmp_path / "run", replace(WINDOWED, window=3), hold="windowed")


def test_training_from_a_bucket_gives_the_weights_of_training_from_a_folder(
    shards: Path, tmp_path: Path, s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.create_bucket()
    for path in shards.iterdir():
        s3_server.client().upload_file(str(path), bucket, path.name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    for hold, recipe in (("cached", replace(RECIPE, steps=5)), ("windowed", replace(WINDOWED, steps=5))):
        remote, local = tmp_path / f"{hold}-remote", tmp_path / f"{hold}-local"
        run_training(
            f"s3://{bucket}", remote, recipe, hold=hold, workers=1, cache=tmp_path / "cache", cache_gb=1e-4
        )
        run_training(shards, local, recipe, hold=hold, workers=1)
        assert read_weights(remote) == read_weights(local)


def test_with_turns_of_speakers_a_run_is_the_same_however_it_is_held_divided_and_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    speakers = ("s1", "s2", "s1", "s3")
    shards = worlds.make_dataset(tmp_path / "shards", per_shard=1, speakers=speakers)
    for balance in ("clips", "speakers"):
        recipe, folder = replace(PEOPLE, balance=balance), tmp_path / balance
        run_training(shards, folder / "uninterrupted", recipe)
        run_training(shards, folder / "resumed", replace(recipe, steps=5), hold="cached", workers=2)
        run_training(shards, folder / "resumed", recipe)
        assert read_weights(folder / "resumed") == read_weights(folder / "uninterrupted")
        windowed = replace(recipe, window=2)
        run_training(shards, folder / "windowed", windowed, hold="windowed", workers=1)
        run_training(shards, folder / "halves", replace(windowed, steps=5), hold="windowed", workers=1)
        run_training(shards, folder / "halves", windowed, hold="windowed", workers=2)
        assert read_weights(folder / "windowed") == read_weights(folder / "halves")
        messages = [record.message for record in caplog.records]
        assert f"balance {balance}: drawn evenly, no exact epochs" in messages
        assert not any(message.endswith("missing") for message in messages), "claims no exact epochs"
    assert read_weights(tmp_path / "clips/resumed") != read_weights(tmp_path / "speakers/resumed")


def test_what_cannot_take_turns_is_refused_in_one_line(shards: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, balance="speakers")
    with pytest.raises(StageError) as caught:
        run_training(shards, tmp_path / "run", recipe, hold="streamed")
    assert str(caught.value) == (
        "--hold streamed cannot be combined with a recipe whose balance is speakers: it reads clips in the "
        "shards' order; use --hold resident, cached or windowed"
    )
    run_training(shards, tmp_path / "run", replace(recipe, steps=1))
    with pytest.raises(ModelError, match="was trained with balance 'speakers', not 'clips'"):
        run_training(shards, tmp_path / "run", replace(recipe, balance="clips"))


def test_a_resident_dataset_is_copied_to_the_cache_that_is_named(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(loop, "train", lambda *_, **__: "done")
    digest = open_dataset(shards).manifest["digest"]
    with serve(shards) as (address, sent):
        with pytest.raises(ShardError, match="the limit is"):
            run_training(address, tmp_path / "run", cache=tmp_path / "cache", cache_gb=1e-9)
        for _ in range(2):
            assert run_training(address, tmp_path / "run", cache=tmp_path / "cache") == "done"
    assert (tmp_path / "cache" / digest / "dataset.json").is_file()
    assert [sent.count(path.name) for path in shards.glob("*.tar")] == [1] * 4
    assert not (tmp_path / "user").exists()


def test_a_run_does_not_write_down_what_opens_its_dataset(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_, **__: "done")
    with serve(shards) as (address, _):
        secret = address.replace("http://", "http://me:hidden@") + "?sig=hidden"
        run_training(secret, tmp_path / "run", hold="cached", cache=tmp_path / "cache")
        with pytest.raises(SystemExit) as exit_info:
            cli(["verify", secret, "--json"])
    assert exit_info.value.code == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["shards"] == read_run_file(tmp_path / "run")["shards"] == address


@pytest.mark.parametrize(("hold", "recipe"), [("cached", RECIPE), ("windowed", WINDOWED)])
def test_two_processes_of_torchrun_download_each_shard_once_and_use_each_frame_once(
    hold: str, recipe: Recipe, shards: Path, tmp_path: Path
) -> None:
    """They share a cache, and have the losses of one process that reads the folder."""
    recipe = replace(recipe, watch=replace(recipe.watch, log_every=1))
    two, one = tmp_path / "two", tmp_path / "one"
    with serve(shards) as (address, sent):
        options = ["--hold", hold, "--window", str(recipe.window or 1), "--cache", str(tmp_path / "cache")]
        result = worlds.run_command(worlds.make_command(address, two, recipe, *options, ranks=2))
    dataset = open_dataset(shards)
    n_frames = sum(dataset.clips.column("frames", TRAIN_IDS))
    assert [line for line in result.stderr.splitlines() if line.startswith("epoch")] == [
        f"epoch {epoch}: {n_frames} frames drawn, 0 repeated, 0 missing"
        for epoch in range(recipe.steps * recipe.batch // n_frames)
    ]
    names, _ = dataset.clips.locate_shards(TRAIN_IDS)
    assert [sent.count(name) for name in names] == [1, 1, 1], "downloaded once, for both ranks"
    run_training(shards, one, recipe, hold=hold, workers=1)
    losses_two, losses_one = (
        [line["loss"] for line in read_metrics(folder / METRICS) if "loss" in line] for folder in (two, one)
    )
    assert losses_two[:7] == pytest.approx(losses_one[:7], rel=1e-4), "before rounding errors accumulate"


@pytest.mark.parametrize("recipe", [RECIPE, WINDOWED], ids=["cached", "windowed"])
def test_when_a_run_has_ended_nothing_reads_ahead_any_more(
    recipe: Recipe, shards: Path, tmp_path: Path
) -> None:
    """At once, and not when Python's collector finds a cycle: the end of the process would wait for it."""
    threads = set(threading.enumerate())
    gc.disable()
    try:
        hold = "windowed" if recipe.window else "cached"
        run_training(shards, tmp_path / "run", replace(recipe, steps=2), hold=hold, workers=1)
        assert multiprocessing.active_children() == []
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)  # of a queue that is closed: it ends, however busy the machine is
        assert set(threading.enumerate()) <= threads
    finally:
        gc.enable()
