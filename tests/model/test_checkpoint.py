"""What is saved is read back bit for bit; what is damaged is named, and nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model import checkpoint, loop
from model.checkpoint import (
    CHECKPOINTS,
    EMA,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Checkpoint,
    TrainState,
    check_same,
    find_best,
    listed,
    load_into,
    load_network,
    prune,
)
from model.recipe import ModelError, build_recipe
from shards.atomic import remove_partials
from tests.model import worlds
from tests.model.worlds import CPU, TINY

STEPS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Path]:
    """A run of three steps, and its folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    data = worlds.resident(worlds.dataset(folder / "shards", [9]))
    return worlds.trained(data, folder / "run", steps=STEPS), folder / "run"


@pytest.fixture
def run(trained: tuple[TrainState, Path], tmp_path: Path) -> Path:
    """A copy of the run's folder, to do harm to."""
    return shutil.copytree(trained[1], tmp_path / "run")


def save(state: TrainState, run: Path, step: int, held_out: float | None = None) -> Checkpoint:
    state.step = step
    return checkpoint.save(state, run, TINY, "digest", held_out)


def steps_of(run: Path) -> list[int]:
    return [saved.step for saved in listed(run)]


# --- there and back -------------------------------------------------------------------------------


def test_a_state_is_read_back_bit_for_bit(trained: tuple[TrainState, Path]) -> None:
    state, run = trained
    [saved] = listed(run)
    other = loop.new_state(TINY, CPU)
    load_into(other, saved)
    assert (other.step, other.drawn) == (STEPS, STEPS * TINY.batch)
    assert saved.recipe == replace(TINY, steps=STEPS)
    for ours, theirs in ((state.network, other.network), (state.ema, other.ema)):
        for name, value in ours.state_dict().items():
            read = theirs.state_dict()[name]
            assert torch.equal(read, value) and read.dtype == value.dtype, name
    pairs = zip(state.network.parameters(), other.network.parameters(), strict=True)
    for ours_p, theirs_p in pairs:
        kept, read = state.optimizer.state[ours_p], other.optimizer.state[theirs_p]
        assert set(kept) == set(read)
        for moment, value in kept.items():
            assert torch.equal(read[moment], value) and read[moment].stride() == value.stride(), moment


def test_a_run_that_was_stopped_before_its_first_step_is_read_back_too(tmp_path: Path) -> None:
    state, other = loop.new_state(TINY, CPU), loop.new_state(replace(TINY, seed=1), CPU)
    load_into(other, save(state, tmp_path, 0))
    assert other.step == 0 and not other.optimizer.state
    assert torch.equal(other.network.stem.weight, state.network.stem.weight)


def test_sampling_takes_the_averaged_weights_unless_asked_otherwise(trained: tuple[TrainState, Path]) -> None:
    state, run = trained
    before = torch.get_rng_state()
    for place in (run, listed(run)[0].path):
        for found, ours in (
            (load_network(place), state.ema),
            (load_network(place, weights="trained"), state.network),
        ):
            network, saved = found
            assert saved.step == STEPS and not network.training
            for name, value in ours.state_dict().items():
                assert torch.equal(network.state_dict()[name], value), name
    assert not torch.equal(state.ema.stem.weight, state.network.stem.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_file_of_weights_tells_its_recipe(trained: tuple[TrainState, Path]) -> None:
    _, run = trained
    for name in (WEIGHTS, EMA):
        with safe_open(listed(run)[0].path / name, "pt") as file:
            story = json.loads(file.metadata()["redub"])
        assert story["step"] == STEPS
        assert story["recipe"]["network"]["audio"]["n_mels"] == worlds.N_MELS


# --- which are kept -------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(trained: tuple[TrainState, Path], tmp_path: Path) -> None:
    state = loop.new_state(TINY, CPU)
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: None, 5: 0.4, 6: 0.6, 7: float("nan")}
    kept = []
    for step, loss in losses.items():
        save(state, tmp_path, step, loss)
        prune(tmp_path, 2)
        kept.append(steps_of(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [2, 6, 7]]
    best = find_best(listed(tmp_path))
    assert best is not None and best.step == 2
    assert load_network(tmp_path)[1].step == 2
    assert load_network(tmp_path, which="newest")[1].step == 7


def test_without_held_out_losses_the_newest_counts_as_best(tmp_path: Path) -> None:
    state = loop.new_state(TINY, CPU)
    for step in (1, 2, 3):
        save(state, tmp_path, step)
        prune(tmp_path, 1)
    assert steps_of(tmp_path) == [3]
    assert load_network(tmp_path)[1].step == 3


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    state = loop.new_state(TINY, CPU)
    for step in (1000, 20, 3):
        save(state, tmp_path, step)
    assert steps_of(tmp_path) == [3, 20, 1000]


# --- a folder is whole or absent ------------------------------------------------------------------


def test_a_write_that_is_broken_off_leaves_what_was_there(
    trained: tuple[TrainState, Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    for name in ("_flush", "_moments"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full)
            with pytest.raises(OSError, match="No space"):
                save(trained[0], run, 8)
        trained[0].step = STEPS
        assert steps_of(run) == [STEPS]
        assert load_network(run)[1].step == STEPS
    assert list((run / CHECKPOINTS).glob(".step-*")), "as a kill would leave it"
    remove_partials(run)
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["step-00000003"]


def test_a_resumed_run_removes_what_a_killed_one_left_half_written(run: Path, tmp_path: Path) -> None:
    half = run / CHECKPOINTS / ".step-00000009.partial"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"half")
    shards = worlds.dataset(tmp_path / "shards", [9])
    fresh = tmp_path / "fresh"
    (fresh / CHECKPOINTS).mkdir(parents=True)
    shutil.move(half, fresh / CHECKPOINTS)
    worlds.run(shards, fresh, replace(TINY, steps=1))
    assert [path.name for path in (fresh / CHECKPOINTS).iterdir()] == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_is_replaced(trained: tuple[TrainState, Path], run: Path) -> None:
    save(trained[0], run, STEPS, held_out=0.25)
    assert [saved.held_out for saved in listed(run)] == [0.25]


# --- damage ---------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


class Bomb:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("exploded", "w")


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def pickled_by_torch(path: Path) -> None:
    torch.save({"weights": Bomb()}, path)


def of_another_network(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in tensors if "stem.weight" in name and "step" not in name)
    save_file(tensors | {name: torch.zeros(3, 3)}, path)


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors[max(tensors)]
    save_file(tensors, path)


def refusal(run: Path) -> str:
    """The one line that resuming is refused with."""
    with pytest.raises(ModelError) as caught:
        load_into(loop.new_state(TINY, CPU), listed(run)[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, EMA, OPTIMIZER])
@pytest.mark.parametrize(
    "harm", [cut, emptied, pickled, pickled_by_torch, of_another_network, without_a_tensor, Path.unlink]
)
def test_a_damaged_file_of_tensors_is_named(
    run: Path, name: str, harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = listed(run)[0].path / name
    harm(path)
    assert refusal(run).startswith(f"{path}: ")
    assert not (tmp_path / "exploded").exists()
    if name == EMA:
        with pytest.raises(ModelError) as caught:
            load_network(run)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def changed(**change: Any) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return harm


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut, "not a checkpoint's state"),
        (emptied, "not a checkpoint's state"),
        (pickled, "not a checkpoint's state"),
        (lambda path: path.write_text("[1, 2]"), "not a checkpoint's state"),
        (lambda path: path.write_text("{}"), "not a checkpoint's state (KeyError: 'format')"),
        (lambda path: path.write_text("[" * 100_000), "not a checkpoint's state"),
        (changed(format=99), "format 99, this redub reads 1"),
        (changed(step="soon"), "not a checkpoint's state"),
        (changed(step=float("inf")), "not a checkpoint's state"),
        (changed(held_out="low"), "not a checkpoint's state"),
        (changed(recipe=7), "the recipe is 7: "),
        (changed(recipe={"bogus": 1}), "bogus is 1: "),
        (Path.unlink, "is missing, so"),
    ],
)
def test_a_damaged_state_is_named(run: Path, harm: Callable[[Path], None], told: str) -> None:
    path = listed(run)[0].path / STATE
    harm(path)
    with pytest.raises(ModelError) as caught:
        load_network(run)
    assert str(caught.value).startswith(f"{path}: ") and told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_checkpoints_says_how_to_make_one(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=r"no checkpoint here; `pipeline train --run .*` makes one"):
            load_network(place)


# --- another run ----------------------------------------------------------------------------------


def test_going_on_with_other_numbers_or_other_data_is_refused_by_name(
    trained: tuple[TrainState, Path],
) -> None:
    [saved] = listed(trained[1])
    check_same(saved, replace(TINY, steps=99), "d")
    other = build_recipe("demo", {"optim": {"learning_rate": 7e-5}}).optim
    with pytest.raises(
        ModelError, match=r"was trained with optim\.learning_rate 0\.001, not 7e-05; .* --run"
    ):
        check_same(saved, replace(TINY, optim=replace(TINY.optim, learning_rate=other.learning_rate)), "d")
    with pytest.raises(ModelError, match=r"was trained on the dataset d, not e; .* another --run"):
        check_same(saved, TINY, "e")
