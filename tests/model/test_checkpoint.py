"""Checkpoints are restored bit for bit; a damaged file is named in the error; nothing is unpickled."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
import subprocess
import sys
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
    HeldOutSize,
    TrainState,
    check_resumable,
    find_best,
    list_checkpoints,
    load_network,
    prune_checkpoints,
    restore_state,
)
from model.recipe import ModelError, Recipe
from shards import atomic
from shards.atomic import remove_partials
from tests.model import worlds
from tests.model.worlds import CPU, TINY

STEPS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Path]:
    """A run of three steps, and its folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    data = worlds.load_dataset(worlds.make_dataset(folder / "shards", [9]))
    return worlds.train_on(data, folder / "run", steps=STEPS), folder / "run"


@pytest.fixture
def run(trained: tuple[TrainState, Path], tmp_path: Path) -> Path:
    """A copy of the run's folder, to damage."""
    return shutil.copytree(trained[1], tmp_path / "run")


def save(state: TrainState, run: Path, step: int, held_out_loss: float | None = None) -> Checkpoint:
    state.step = step
    return checkpoint.save_checkpoint(state, run, TINY, "digest", held_out_loss)


def list_steps(run: Path) -> list[int]:
    return [saved.step for saved in list_checkpoints(run)]


# --- round trips ----------------------------------------------------------------------------------


def test_a_state_is_restored_bit_for_bit(trained: tuple[TrainState, Path]) -> None:
    state, run = trained
    [saved] = list_checkpoints(run)
    other = loop.create_state(TINY, CPU)
    restore_state(other, saved)
    assert (other.step, other.position) == (STEPS, STEPS * TINY.batch)
    assert saved.recipe == replace(TINY, steps=STEPS)
    for written, restored in ((state.network, other.network), (state.ema, other.ema)):
        for name, value in written.state_dict().items():
            other_value = restored.state_dict()[name]
            assert torch.equal(other_value, value) and other_value.dtype == value.dtype, name
    pairs = zip(state.network.parameters(), other.network.parameters(), strict=True)
    for parameter, other_parameter in pairs:
        moments = state.optimizer.state[parameter]
        other_moments = other.optimizer.state[other_parameter]
        assert set(moments) == set(other_moments)
        for moment, value in moments.items():
            other_value = other_moments[moment]
            assert torch.equal(other_value, value) and other_value.stride() == value.stride(), moment


def test_a_run_stopped_before_its_first_step_is_restored_too(tmp_path: Path) -> None:
    state, other = loop.create_state(TINY, CPU), loop.create_state(replace(TINY, seed=1), CPU)
    restore_state(other, save(state, tmp_path, 0))
    assert other.step == 0 and not other.optimizer.state
    assert torch.equal(other.network.stem.weight, state.network.stem.weight)


def test_sampling_uses_the_averaged_weights_by_default(trained: tuple[TrainState, Path]) -> None:
    state, run = trained
    before = torch.get_rng_state()
    for path in (run, list_checkpoints(run)[0].path):
        for (network, saved), expected in (
            (load_network(path), state.ema),
            (load_network(path, weights="trained"), state.network),
        ):
            assert saved.step == STEPS and not network.training
            for name, value in expected.state_dict().items():
                assert torch.equal(network.state_dict()[name], value), name
    assert not torch.equal(state.ema.stem.weight, state.network.stem.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_a_file_of_weights_contains_its_recipe(trained: tuple[TrainState, Path]) -> None:
    _, run = trained
    for name in (WEIGHTS, EMA):
        with safe_open(list_checkpoints(run)[0].path / name, "pt") as file:
            metadata = json.loads(file.metadata()["redub"])
        assert metadata["step"] == STEPS
        assert metadata["recipe"]["network"]["audio"]["n_mels"] == worlds.N_MELS


# --- pruning --------------------------------------------------------------------------------------


def test_pruning_leaves_the_newest_and_the_best(trained: tuple[TrainState, Path], tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: None, 5: 0.4, 6: 0.6, 7: float("nan")}
    steps = []
    for step, loss in losses.items():
        save(state, tmp_path, step, loss)
        prune_checkpoints(tmp_path, 2)
        steps.append(list_steps(tmp_path))
    assert steps == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [2, 6, 7]]
    best = find_best(list_checkpoints(tmp_path))
    assert best is not None and best.step == 2
    assert load_network(tmp_path)[1].step == 2
    assert load_network(tmp_path, which="newest")[1].step == 7


PRUNE_AND_BE_KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
from model.checkpoint import prune_checkpoints

run, copies = map(Path, sys.argv[1:])
for n_steps in count():
    copy = shutil.copytree(run, copies / str(n_steps))
    process = os.fork()
    if not process:
        done = 0
        def count_steps(event, arguments):
            global done
            if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
                done += 1
                if done > n_steps:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count_steps)
        prune_checkpoints(copy, 1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if not status:
        break
"""


def test_a_kill_at_any_step_of_pruning_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    run, copies = tmp_path / "run", tmp_path / "copies"
    state = loop.create_state(TINY, CPU)
    for step in (1, 2, 3, 4):
        save(state, run, step, 0.1 if step == 2 else 0.9)
    command = [sys.executable, "-W", "ignore", "-c", PRUNE_AND_BE_KILLED, str(run), str(copies)]
    subprocess.run(command, check=True)
    assert len(list(copies.iterdir())) > 10, "two checkpoints of four files, renamed and removed"
    for copy in copies.iterdir():
        steps = list_steps(copy)
        assert steps in ([1, 2, 3, 4], [2, 3, 4], [2, 4]), copy
        for step in steps:
            load_network(copy / CHECKPOINTS / f"step-{step:08d}")
        remove_partials(copy)
        assert len(list((copy / CHECKPOINTS).iterdir())) == len(steps), "nothing half is left"
        prune_checkpoints(copy, 1)
        assert list_steps(copy) == [2, 4]


@pytest.mark.parametrize("files", [[STATE], [STATE, EMA], [STATE, EMA, WEIGHTS, OPTIMIZER]])
def test_half_an_old_checkpoint_is_skipped_with_a_warning_unless_it_is_asked_for(
    files: list[str], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As versions before this one left it when they were killed."""
    old = run / CHECKPOINTS / "step-00000001"
    shutil.copytree(run / CHECKPOINTS / "step-00000003", old)
    for name in files:
        (old / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert [list_steps(run) for _ in range(3)] == [[3]] * 3
    assert [str(old / STATE) in message for message in caplog.messages] == [True], "it is said once"
    assert load_network(run)[1].step == 3
    with pytest.raises(ModelError, match=f"{old}.*(no checkpoint|missing)"):
        load_network(old)
    prune_checkpoints(run, 1)
    (run / CHECKPOINTS / "step-00000003" / STATE).unlink()
    with pytest.raises(ModelError, match="step-00000003"):
        load_network(run)


@pytest.mark.parametrize("name", [STATE, WEIGHTS, OPTIMIZER])
def test_a_damaged_newest_checkpoint_says_from_where_the_run_can_go_on(name: str, tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    for step in (2, 3, 4):
        save(state, tmp_path / "run", step)
    newest = tmp_path / "run" / CHECKPOINTS / "step-00000004"
    (newest / name).write_text("x")
    (newest.parent / "step-00000003" / STATE).unlink()
    with pytest.raises(ModelError, match=rf"; delete {newest} to go on from step 2$"):
        restore_state(loop.create_state(TINY, CPU), list_checkpoints(tmp_path / "run")[-1])
    shutil.rmtree(newest.parent / "step-00000002")
    with pytest.raises(ModelError) as caught:
        restore_state(loop.create_state(TINY, CPU), list_checkpoints(tmp_path / "run")[-1])
    assert "delete" not in str(caught.value)


def test_folders_that_are_no_checkpoints_are_neither_read_nor_removed(run: Path) -> None:
    names = ["step-best-of-all", "step-00000001.bak", "step-1", "backup"]
    for name in names:
        (run / CHECKPOINTS / name).mkdir()
    assert list_steps(run) == [3]
    prune_checkpoints(run, 1)
    assert all((run / CHECKPOINTS / name).is_dir() for name in names)


def test_only_losses_of_the_same_frames_are_compared_and_the_best_of_others_is_not_removed(
    tmp_path: Path,
) -> None:
    state = loop.create_state(TINY, CPU)
    few, many, older = HeldOutSize(8, 2), HeldOutSize(512, 2), None
    for step, loss, size in (
        (1, 0.15, older), (2, 0.1, few), (3, 0.3, few), (4, 0.5, many), (5, 0.4, many), (6, None, None),
    ):  # fmt: skip
        state.step = step
        checkpoint.save_checkpoint(state, tmp_path, TINY, "digest", loss, None, size)
    assert [saved.held_out_size for saved in list_checkpoints(tmp_path)] == [
        older,
        few,
        few,
        many,
        many,
        None,
    ]

    def find_best_step(*steps: int) -> int | None:
        best = find_best([saved for saved in list_checkpoints(tmp_path) if saved.step in steps])
        return best.step if best else None

    assert find_best_step(2, 3, 4, 5, 6) == 5
    assert find_best_step(2, 3) == 2
    assert find_best_step(1, 2, 3, 4) == 1, "an older file does not say what it was measured on"
    prune_checkpoints(tmp_path, 1)
    assert list_steps(tmp_path) == [1, 2, 5, 6]


def test_without_held_out_losses_the_newest_is_the_best(tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    for step in (1, 2, 3):
        save(state, tmp_path, step)
        prune_checkpoints(tmp_path, 1)
    assert list_steps(tmp_path) == [3]
    assert load_network(tmp_path)[1].step == 3


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    for step in (1000, 20, 3):
        save(state, tmp_path, step)
    assert list_steps(tmp_path) == [3, 20, 1000]


# --- a folder is complete or absent ---------------------------------------------------------------


def test_a_failed_write_leaves_the_older_checkpoints(
    trained: tuple[TrainState, Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    for module, name in ((atomic, "sync_to_disk"), (checkpoint, "_get_moments")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="No space"):
                save(trained[0], run, 8)
        trained[0].step = STEPS
        assert list_steps(run) == [STEPS]
        assert load_network(run)[1].step == STEPS
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["step-00000003"]


SAVE_WITH_LITTLE_DISK = """
import resource, sys
from pathlib import Path
from model import checkpoint, loop
from tests.model.worlds import CPU, TINY

state = loop.create_state(TINY, CPU)
[saved] = checkpoint.list_checkpoints(Path(sys.argv[1]))
checkpoint.restore_state(state, saved)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoint.save_checkpoint(state, Path(sys.argv[2]), TINY, "digest", None)
except OSError as err:
    print(err.errno, err.filename)
"""


def test_a_full_disk_is_an_error_that_names_the_checkpoint(
    trained: tuple[TrainState, Path], run: Path, tmp_path: Path
) -> None:
    """The limit on the size of a file makes the same system call fail; safetensors reports it as a text."""
    command = [sys.executable, "-c", SAVE_WITH_LITTLE_DISK, str(run), str(tmp_path / "new")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stdout == f"{errno.EFBIG} {tmp_path / 'new' / CHECKPOINTS / 'step-00000003'}\n", (
        finished.stderr
    )
    assert list((tmp_path / "new" / CHECKPOINTS).iterdir()) == []


def test_a_resumed_run_removes_the_partial_checkpoint_of_a_killed_one(tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", [9])
    fresh = tmp_path / "fresh"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = f".redub-{atomic._identify_machine()}-{process.pid}-{'0' * 12}.partial"
    for folder in (name, ".step-00000009.partial", "backup.partial"):
        (fresh / CHECKPOINTS / folder).mkdir(parents=True)
        (fresh / CHECKPOINTS / folder / WEIGHTS).write_bytes(b"half")
    worlds.run_training(shards, fresh, replace(TINY, steps=1))
    names = {path.name for path in (fresh / CHECKPOINTS).iterdir()}
    assert names == {"step-00000001", ".step-00000009.partial", "backup.partial"}, "a user's folders stay"


def test_a_checkpoint_of_the_same_step_is_replaced(trained: tuple[TrainState, Path], run: Path) -> None:
    save(trained[0], run, STEPS, held_out_loss=0.25)
    assert [saved.held_out_loss for saved in list_checkpoints(run)] == [0.25]


# --- damage ---------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


class Bomb:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("exploded", "w")


def pickle_file(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def torch_save(path: Path) -> None:
    torch.save({"weights": Bomb()}, path)


def change_a_shape(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in tensors if "stem.weight" in name and "step" not in name)
    save_file(tensors | {name: torch.zeros(3, 3)}, path)


def remove_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors[max(tensors)]
    save_file(tensors, path)


def read_error(run: Path) -> str:
    """The message, of one line, of the error that resuming raises."""
    with pytest.raises(ModelError) as caught:
        restore_state(loop.create_state(TINY, CPU), list_checkpoints(run)[0])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, EMA, OPTIMIZER])
@pytest.mark.parametrize(
    "damage", [truncate, empty, pickle_file, torch_save, change_a_shape, remove_a_tensor, Path.unlink]
)
def test_a_damaged_file_of_tensors_is_named(
    run: Path, name: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = list_checkpoints(run)[0].path / name
    damage(path)
    assert read_error(run).startswith(f"{path}: ")
    assert not (tmp_path / "exploded").exists()
    if name == EMA:
        with pytest.raises(ModelError) as caught:
            load_network(run)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def change_values(**change: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a checkpoint's state"),
        (empty, "not a checkpoint's state"),
        (pickle_file, "not a checkpoint's state"),
        (lambda path: path.write_text("[1, 2]"), "not a checkpoint's state"),
        (lambda path: path.write_text("{}"), "not a checkpoint's state: format is missing"),
        (lambda path: path.write_text("[" * 100_000), "not a checkpoint's state"),
        (change_values(format=99), "format is 99, expected 1"),
        (change_values(step="soon"), "not a checkpoint's state"),
        (change_values(step=float("inf")), "not a checkpoint's state"),
        (change_values(held_out="low"), "not a checkpoint's state"),
        (change_values(recipe=7), "recipe is 7, expected "),
        (change_values(recipe={"bogus": 1}), "recipe.bogus is not known; known are network, noise, frames"),
        (Path.unlink, "is missing, so"),
    ],
)
def test_a_damaged_state_is_named(run: Path, damage: Callable[[Path], None], message: str) -> None:
    path = list_checkpoints(run)[0].path / STATE
    damage(path)
    with pytest.raises(ModelError) as caught:
        load_network(run)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_for_a_folder_without_checkpoints_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=r"no checkpoint here; `pipeline train --run .*` makes one"):
            load_network(path)


# --- resuming with another recipe -----------------------------------------------------------------


def test_resuming_with_another_recipe_or_dataset_is_refused_and_names_the_difference(
    trained: tuple[TrainState, Path],
) -> None:
    [saved] = list_checkpoints(trained[1])
    check_resumable(saved, replace(TINY, steps=99), "d")
    other = replace(TINY, optim=replace(TINY.optim, learning_rate=7e-5))
    with pytest.raises(
        ModelError, match=r"was trained with optim\.learning_rate 0\.001, not 7e-05; .* --run"
    ):
        check_resumable(saved, other, "d")
    with pytest.raises(ModelError, match=r"was trained on the dataset d, not e; .* another --run"):
        check_resumable(saved, TINY, "e")


def test_a_run_gets_a_decay_only_while_its_rate_is_constant(tmp_path: Path) -> None:
    state = loop.create_state(TINY, CPU)
    state.step = 8

    def set_end(steps: int, decay_steps: int) -> Recipe:
        return replace(TINY, steps=steps, optim=replace(TINY.optim, decay_steps=decay_steps))

    constant = checkpoint.save_checkpoint(state, tmp_path / "constant", set_end(8, 0), "d", None)
    check_resumable(constant, set_end(20, 12), "d")
    with pytest.raises(ModelError, match=r"step-00000008 is of step 8, but .* falls from step 7 on"):
        check_resumable(constant, set_end(20, 13), "d")
    falling = checkpoint.save_checkpoint(state, tmp_path / "falling", set_end(10, 4), "d", None)
    check_resumable(falling, set_end(10, 4), "d")
    with pytest.raises(ModelError, match=r"falls from step 6 on"):
        check_resumable(falling, set_end(20, 4), "d")
