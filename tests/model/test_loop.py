"""Training: the same run however it is cut, killed or spread; what goes wrong is one line."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import loop, objective
from model.batch import select_batch
from model.checkpoint import EMA, OPTIMIZER, WEIGHTS, Checkpoint, listed, load_network
from model.denoiser import gammas
from model.epochs import EpochCounter, batches
from model.execution import Execution
from model.loop import learning_rate, update_ema
from model.monitor import held_out_losses
from model.recipe import ModelError, OptimParams, Recipe
from model.run_log import METRICS, PICTURES, TENSORBOARD, read_metrics
from model.signals import catch_stop_signals
from shards.resident import Resident, one_ahead, split_held_out
from shards.schema import ShardError
from stages.engine.lock import LOCK_NAME
from stages.engine.outcome import StageError
from tests.model import worlds
from tests.model.worlds import ALONE, CPU, ONE_THREAD, SIZE, TINY, finished

# Every step is a line, so that two runs can be held side by side.
TOLD = replace(TINY, watch=replace(TINY.watch, log_every=1))
ENDLESS = replace(TOLD, steps=100_000)
SPEED = ("frames_per_second", "waiting_for_data", "memory_gb")
TRAINED, HELD = split_held_out(
    [f"s1_clip{number}" for number in range(4)], TINY.held_out_share, seed=TINY.seed
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of floats hang on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of noise, of which one is held out."""
    return worlds.dataset(tmp_path_factory.mktemp("shards") / "shards")


@pytest.fixture(scope="module")
def data(shards: Path) -> Resident:
    return worlds.resident(shards, TRAINED)


@pytest.fixture(scope="module")
def held(shards: Path) -> Resident:
    return worlds.resident(shards, HELD)


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps that nothing happened to."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert worlds.run(shards, run, TOLD) == "done"
    return run


def files_of(saved: Checkpoint) -> dict[str, bytes]:
    return {name: (saved.path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER)}


def curve(run: Path) -> list[dict[str, float]]:
    """What was told of each step, but for how fast it went."""
    return [{name: value for name, value in line.items() if name not in SPEED}
            for line in read_metrics(run / METRICS)]  # fmt: skip


def compute_losses(run: Path) -> list[float]:
    return [line["loss"] for line in curve(run) if "loss" in line]


def weights_of(saved: Checkpoint) -> torch.Tensor:
    network, _ = load_network(saved.path, weights="trained")
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


# --- closed forms ---------------------------------------------------------------------------------


def test_the_learning_rate_is_its_closed_form_at_the_corners() -> None:
    straight = OptimParams(learning_rate=2.0, warmup_steps=10)
    assert [learning_rate(step, 100, straight) for step in (0, 4, 9, 10, 99, 10**6)] == [0.2, 1, 2, 2, 2, 2]
    bent = replace(straight, after_warmup="cosine")
    told = [learning_rate(step, 110, bent) for step in (0, 9, 10, 60, 110)]
    assert told == pytest.approx([0.2, 2.0, 2.0, 1.1, 0.2])
    falling = [learning_rate(step, 110, bent) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(0, 5, replace(straight, warmup_steps=0)) == 2.0
    assert learning_rate(4, 5, replace(bent, warmup_steps=50)) == 0.2, "a run that ends while it warms up"


def test_the_average_of_weights_that_stand_still_is_its_closed_form() -> None:
    for warmup in (False, True):
        params = OptimParams(ema_decay=0.8, ema_warmup=warmup)
        state = loop.new_state(TINY, CPU)
        start = [value.clone() for value in state.ema.parameters()]
        with torch.no_grad():
            for value in state.network.parameters():
                value.add_(1.0)
        left = 1.0  # of the start
        for step in range(1, 31):
            state.step = step
            update_ema(state, params)
            left *= min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        for before, now in zip(start, state.ema.parameters(), strict=True):
            torch.testing.assert_close(now - before, torch.full_like(now, 1 - left), atol=1e-5, rtol=0)


def test_gradients_are_clipped_to_the_norm_that_was_said(data: Resident, tmp_path: Path) -> None:
    """After one step AdamW's first moment is a tenth of the gradient that it was given."""
    norms = {}
    for limit in (0.0, 0.05, 1e6):
        recipe = replace(TINY, steps=1, optim=replace(TINY.optim, max_grad_norm=limit))
        state = worlds.trained(data, tmp_path / f"{limit}", recipe)
        moments = [kept["exp_avg"].flatten() for kept in state.optimizer.state.values()]
        norms[limit] = torch.cat(moments).norm().item() / (1 - TINY.optim.betas[0])
        [line] = read_metrics(tmp_path / f"{limit}" / METRICS)
        if limit != 0.05:
            assert line["grad_norm"] == pytest.approx(norms[limit], rel=1e-5)
    assert norms[0.05] == pytest.approx(0.05, rel=1e-3)
    assert norms[0.0] == norms[1e6] > 0.05


def test_a_first_step_moves_no_weight_further_than_the_learning_rate(data: Resident, tmp_path: Path) -> None:
    """AdamW's first step is the gradient's sign times the rate, here in the first of ten warming steps."""
    recipe = replace(TINY, steps=1, optim=OptimParams(learning_rate=1e-2, warmup_steps=10))
    before = loop.new_state(recipe, CPU).network.parameters()
    after = worlds.trained(data, tmp_path, recipe).network.parameters()
    moved = torch.cat([(now - then).abs().flatten() for now, then in zip(after, before, strict=True)])
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)


def test_the_network_learns_to_look_at_the_frames_beside(data: Resident, tmp_path: Path) -> None:
    """On clips that stand still, the loss falls below the best that noise and level alone allow.

    For frames of independent values with variance s, the best guess of v is linear in y and leaves
    s / (gamma s + 1 - gamma).
    """
    still = replace(data, frames=data.frames[data.clips.starts[data.clips.clip_of(np.arange(len(data)))]])
    recipe = replace(TINY, steps=48, optim=replace(TINY.optim, learning_rate=3e-3))
    worlds.trained(still, tmp_path, recipe)
    gamma = gammas(recipe.noise)
    floor = np.mean((1 / 3) / (gamma / 3 + 1 - gamma))
    losses = compute_losses(tmp_path)
    assert losses[0] > floor > 0.5
    assert np.mean(losses[-4:]) < 0.8 * floor


# --- the same run however it is cut ---------------------------------------------------------------


def test_two_runs_of_one_recipe_are_the_same_and_move_no_generator(
    shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    torch.manual_seed(99)
    worlds.run(shards, tmp_path, TOLD)
    torch.set_rng_state(before[0])
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert files_of(listed(tmp_path)[-1]) == files_of(listed(unbroken)[-1])
    assert curve(tmp_path) == curve(unbroken)


@pytest.mark.parametrize("at", [6, 7])
def test_a_run_that_stopped_and_went_on_equals_an_unbroken_one(
    shards: Path, unbroken: Path, tmp_path: Path, at: int
) -> None:
    assert TOLD.network.dropout > 0
    assert worlds.run(shards, tmp_path, replace(TOLD, steps=at)) == "done"
    assert worlds.run(shards, tmp_path, TOLD) == "done"
    assert files_of(listed(tmp_path)[-1]) == files_of(listed(unbroken)[-1])
    steps = [line for line in curve(tmp_path) if "loss" in line]
    assert steps == [line for line in curve(unbroken) if "loss" in line]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_change_nothing_but_rounding(
    shards: Path, unbroken: Path, tmp_path: Path, micro_batch: int
) -> None:
    assert Execution(micro_batch=3).frames_at_once(TOLD, 1) == 2, "a part that divides 8"
    worlds.run(shards, tmp_path, replace(TOLD, steps=4), micro_batch=micro_batch)
    told = [line for line in curve(tmp_path) if "loss" in line]
    assert told == [pytest.approx(line, rel=1e-4) for line in curve(unbroken)[:4]], "gradients' norms too"


def test_frames_in_the_hosts_memory_are_found_a_step_ahead_in_the_same_order(data: Resident) -> None:
    wanted = [
        select_batch(data.clips, part, part, seed=0, frames=TINY.frames, audio=TINY.network.audio)
        for part in np.split(np.arange(20), 4)
    ]
    plain, ahead = map(data.seen, wanted), one_ahead(map(data.seen, wanted))
    for one, other in zip(plain, ahead, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one[1:], other[1:], strict=True))


def started(shards: Path, run: Path, recipe: Recipe, *, until: int, ranks: int = 1) -> subprocess.Popen[str]:
    """`pipeline train` as a process that has made at least ``until`` steps."""
    process = subprocess.Popen(
        worlds.command(shards, run, recipe, ranks=ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
    )
    deadline = time.monotonic() + 120
    while not any(line["step"] >= until for line in read_metrics(run / METRICS)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return process


def test_a_killed_run_that_goes_on_equals_an_unbroken_one(shards: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = started(shards, killed, ENDLESS, until=7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps = int(read_metrics(killed / METRICS)[-1]["step"]) + 6
    until = replace(ENDLESS, steps=steps)
    done = finished(worlds.command(shards, killed, until))
    assert "going on at step" in done.stderr
    assert "frames drawn, 0 repeated, 0 missing" in done.stderr
    assert done.stdout == f"{killed}: done\n"
    worlds.run(shards, whole, until)
    assert listed(killed)[-1].step == steps
    assert files_of(listed(killed)[-1]) == files_of(listed(whole)[-1])
    assert curve(killed) == curve(whole), "and no step is told twice"


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_where_it_was(shards: Path, tmp_path: Path) -> None:
    asked, whole = tmp_path / "asked", tmp_path / "whole"
    process = started(shards, asked, ENDLESS, until=7)
    process.terminate()
    told, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert told == f"{asked}: stopped by SIGTERM\n"
    reached = listed(asked)[-1].step
    assert reached == read_metrics(asked / METRICS)[-1]["step"], "the step that ran was saved"
    until = replace(ENDLESS, steps=reached + 5)
    worlds.run(shards, asked, until)
    worlds.run(shards, whole, until)
    assert files_of(listed(asked)[-1]) == files_of(listed(whole)[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_what_was_there_before_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_stop_signals() as asked_to:
        assert asked_to.by is None
        os.kill(os.getpid(), number)
        assert asked_to.by == number.name
        assert signal.getsignal(number) == before, "a second signal does stop"
    assert signal.getsignal(number) == before


# --- ranks ----------------------------------------------------------------------------------------


def test_two_ranks_are_one_run_and_one_goes_on_with_what_two_began(shards: Path, tmp_path: Path) -> None:
    """torchrun on two processes, asked to stop after some steps, against one process."""
    two, one = tmp_path / "two", tmp_path / "one"
    process = started(shards, two, ENDLESS, until=13, ranks=2)
    process.terminate()
    told, log = process.communicate(timeout=100)
    assert f"{two}: stopped by SIGTERM" in told, log
    assert [line for line in log.splitlines() if line.startswith("epoch")][:3] == [
        f"epoch {epoch}: 28 frames drawn, 0 repeated, 0 missing" for epoch in range(3)
    ]
    reached = listed(two)[-1].step
    until = replace(ENDLESS, steps=reached + 4)
    worlds.run(shards, two, until)
    worlds.run(shards, one, until)
    ours, theirs = curve(two), curve(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for left, right in zip(ours, theirs, strict=True):
        assert left == pytest.approx(right, rel=5e-3)
    assert "held_out_loss" in theirs[6]
    assert ours[:7] == [pytest.approx(line, rel=1e-4) for line in theirs[:7]], "before rounding adds up"
    apart = (weights_of(listed(two)[-1]) - weights_of(listed(one)[-1])).norm()
    moved = (weights_of(listed(one)[-1]) - weights_of(listed(one)[0])).norm()
    assert apart < 0.02 * moved


def test_a_batch_that_does_not_divide_among_ranks_is_refused() -> None:
    with pytest.raises(ModelError, match="batch 8 does not divide among 3 ranks"):
        Execution().frames_at_once(TINY, 3)


# --- each frame once an epoch ---------------------------------------------------------------------


def proofs(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("epoch")]


def test_every_epoch_is_proved_to_hold_each_frame_once(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """28 frames and batches of 8: the third ends nowhere near an epoch's end, nor do the others."""
    caplog.set_level("INFO", "model")
    for steps in (5, 11):
        worlds.run(shards, tmp_path, replace(TOLD, steps=steps))
    assert proofs(caplog) == [f"epoch {epoch}: 28 frames drawn, 0 repeated, 0 missing" for epoch in range(3)]


def test_the_tally_sees_a_repeated_and_a_missing_frame() -> None:
    tally = EpochCounter(5)
    tally.add(np.arange(3), np.array([4, 0, 1]))
    tally.add(np.arange(3, 8), np.array([0, 2, 1, 1, 1]))
    assert tally.close(0, ALONE) == "epoch 0: 5 frames drawn, 1 repeated, 1 missing"
    assert tally.close(1, ALONE) == "epoch 1: 3 frames drawn, 1 repeated, 4 missing"
    assert not tally.counts, "and then forgets them"


# --- what goes wrong ------------------------------------------------------------------------------


def refusal(kind: type[Exception], shards: Path, run: Path, recipe: Recipe, **machine: Any) -> str:
    """The one line that training is refused with."""
    with pytest.raises(kind) as caught:
        worlds.run(shards, run, recipe, **machine)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("save_every", "evaluate_every"), [(1, 1), (1, 1000), (1000, 1), (1000, 1000)])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    shards: Path, tmp_path: Path, save_every: int, evaluate_every: int
) -> None:
    """The step before the first broken loss is the one that breaks the weights."""
    watch = replace(TOLD.watch, save_every=save_every, evaluate_every=evaluate_every)
    recipe = replace(TOLD, watch=watch, optim=replace(TOLD.optim, learning_rate=1e30))
    told = refusal(ModelError, shards, tmp_path, recipe)
    assert "not finite; there is no checkpoint yet; try a lower optim.learning_rate than 1e+30" in told
    assert listed(tmp_path) == []


def test_a_weight_that_breaks_leaves_the_last_good_checkpoint_and_names_it(
    data: Resident, held: Resident, tmp_path: Path
) -> None:
    for log_every in (1, 1000):  # whether or not a line is due before the next checkpoint
        run = tmp_path / str(log_every)
        recipe = replace(TINY, watch=replace(TINY.watch, log_every=log_every))
        state = worlds.trained(data, run, recipe, steps=6)
        with torch.no_grad():
            next(state.network.parameters())[0] = float("nan")
        with pytest.raises(ModelError, match=r"loss nan.* the last good checkpoint is .*step-00000006;"):
            worlds.trained(data, run, recipe, state=state)
        assert [saved.step for saved in listed(run)] == [6]
        assert weights_of(listed(run)[0]).isfinite().all()


def test_a_loss_that_explodes_stops_the_run(shards: Path, tmp_path: Path) -> None:
    told = refusal(ModelError, shards, tmp_path, replace(TOLD, max_loss=0.01))
    assert "more than max_loss 0.01; there is no checkpoint yet" in told
    assert listed(tmp_path) == []
    assert worlds.run(shards, tmp_path, replace(TOLD, max_loss=0, steps=2)) == "done"


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """As on a machine with 100 MB left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100 * 2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("_little_memory")
def test_memory_that_ends_is_one_line_that_says_what_to_change(tmp_path: Path) -> None:
    shards = worlds.dataset(tmp_path / "shards", [512])
    wide = replace(TINY.network, channels=128, patch=1)
    recipe = replace(TOLD, batch=512, network=wide, held_out_share=0)
    told = refusal(ModelError, shards, tmp_path / "run", recipe)
    assert "out of memory on cpu: a micro-batch of 512 frames does not fit" in told
    assert "GB are free; try --micro-batch 256, which changes no result" in told


@pytest.mark.usefixtures("_little_memory")
def test_a_network_that_does_not_fit_the_memory_is_one_line(shards: Path, tmp_path: Path) -> None:
    huge = replace(TINY.network, channels=2048)
    told = refusal(ModelError, shards, tmp_path, replace(TOLD, network=huge))
    assert told.startswith("out of memory on cpu: the network does not fit")
    assert told.endswith("GB are free; try fewer network.channels")


def test_a_batch_larger_than_the_dataset_is_refused(shards: Path, tmp_path: Path) -> None:
    told = refusal(ModelError, shards, tmp_path, replace(TINY, batch=29))
    assert told == "batch 29 is larger than the 28 frames to train on"


def test_two_processes_do_not_train_in_one_folder(shards: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK_NAME):
        told = refusal(StageError, shards, tmp_path, TINY)
    assert told == f"--run {tmp_path}: another process trains there"


def test_clips_of_another_size_are_refused(shards: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, network=replace(TINY.network, size=32))
    assert "holds 16 px crops, the network takes 32" in refusal(ShardError, shards, tmp_path, recipe)


def test_a_dataset_without_training_clips_is_refused(tmp_path: Path) -> None:
    shards = worlds.dataset(tmp_path / "shards", [9], test=["s1_clip0"])
    assert "no clip is in the split 'train'" in refusal(StageError, shards, tmp_path / "run", TINY)


# --- going on with another run --------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_recipe_and_data_alone(
    shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(unbroken, tmp_path / "run")
    other = replace(TOLD, optim=replace(TOLD.optim, learning_rate=1e-4))
    told = refusal(ModelError, shards, run, other)
    assert "was trained with optim.learning_rate 0.001, not 0.0001; give this one another --run" in told
    told = refusal(ModelError, shards, run, replace(TOLD, seed=5))
    assert "was trained with seed 0, not 5" in told
    others = worlds.dataset(tmp_path / "others", seed=1)
    assert "was trained on the dataset" in refusal(ModelError, others, run, TOLD)
    assert files_of(listed(run)[-1]) == files_of(listed(unbroken)[-1])
    longer = replace(TOLD, steps=13, watch=replace(TOLD.watch, log_every=5, keep_last=1, pictures=0))
    assert worlds.run(shards, run, longer) == "done"
    assert listed(run)[-1].step == 13


# --- clips held out -------------------------------------------------------------------------------


def test_held_out_and_test_clips_have_no_part_in_training(tmp_path: Path) -> None:
    """Whatever they show, the weights are the same; the held-out loss is not."""
    lengths, test = (9, 12, 7, 11, 8), ["s1_clip4"]
    recipe = replace(TOLD, steps=4)
    for name, otherwise in (("a", []), ("b", HELD), ("c", test)):
        shards = worlds.dataset(tmp_path / f"{name}-shards", lengths, test=test, otherwise=otherwise)
        worlds.run(shards, tmp_path / name, recipe)
    a, b, c = (listed(tmp_path / name)[-1] for name in "abc")
    assert files_of(a) == files_of(b) == files_of(c)
    assert a.held_out != b.held_out
    assert a.held_out == c.held_out
    assert len({saved.digest for saved in (a, b, c)}) == 3


def test_the_held_out_loss_is_the_same_at_every_call_and_for_any_micro_batch(held: Resident) -> None:
    network = loop.new_state(TINY, CPU).ema
    torch.nn.init.normal_(network.out.weight, std=0.1, generator=torch.Generator())
    told = [held_out_losses(network, held, TINY, ALONE, Execution(micro_batch=n)) for n in (8, 8, 1, 3)]
    assert told[0] == told[1]
    assert told[2] == pytest.approx(told[0], rel=1e-5) and told[3] == pytest.approx(told[0], rel=1e-5)


def test_the_best_checkpoint_is_the_one_whose_average_has_the_lowest_held_out_loss(
    unbroken: Path, held: Resident
) -> None:
    losses = {line["step"]: line["held_out_loss"] for line in curve(unbroken) if "held_out_loss" in line}
    assert {saved.step: saved.held_out for saved in listed(unbroken)} == losses
    network, best = load_network(unbroken)
    assert best.step == min(losses, key=lambda step: losses[step])
    assert held_out_losses(network, held, TOLD, ALONE, Execution())["held_out_loss"] == best.held_out


# --- what a run tells -----------------------------------------------------------------------------


def test_pictures_show_the_held_out_frames(unbroken: Path, held: Resident) -> None:
    names = sorted(path.name for path in (unbroken / PICTURES).iterdir())
    assert names == ["held-out-00000006.png", "held-out-00000012.png"]
    pixels = np.asarray(Image.open(unbroken / PICTURES / names[-1]))
    assert pixels.shape == (2 * (SIZE + 2), 5 * (SIZE + 2), 3)
    x0, y0, x1, y1 = held.boxes[0].tolist()
    for row, frame in enumerate((2, 8)):  # the middles of two halves of 11 frames
        true = held.frames[frame].numpy()
        line = pixels[row * (SIZE + 2) : row * (SIZE + 2) + SIZE]
        shown = [line[:, k * (SIZE + 2) : k * (SIZE + 2) + SIZE] for k in range(5)]
        for image in shown:
            assert np.array_equal(image[:y0], true[:y0]), "above the mouth every column is the frame"
        for image in shown[:4]:
            assert not np.array_equal(image[y0:y1, x0:x1], true[y0:y1, x0:x1])
        assert np.array_equal(
            shown[4][y0 + 1 : y1 - 1, x0 + 1 : x1 - 1], true[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
        )
        assert shown[4][y0, x0].tolist() == [255, 220, 0]


def test_tensorboard_tells_what_the_lines_tell(shards: Path, tmp_path: Path) -> None:
    for steps in (7, 9):  # a resumed run takes back nothing and tells nothing twice
        worlds.run(shards, tmp_path, replace(TOLD, steps=steps))
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    scalars = {event.step: event.value for event in events.Scalars("loss")}
    assert list(scalars) == list(range(1, 10))
    assert list(scalars.values()) == pytest.approx(compute_losses(tmp_path))
    assert [event.step for event in events.Scalars("held_out_loss")] == [6, 7, 9]
    assert {"learning_rate", "grad_norm", "frames_per_second"} <= set(events.Tags()["scalars"])
    pictures = events.Images("held-out")
    assert [picture.step for picture in pictures] == [6, 7, 9]
    assert (pictures[0].width, pictures[0].height) == (5 * (SIZE + 2), 2 * (SIZE + 2))


def test_lines_after_the_last_checkpoint_are_told_anew(shards: Path, tmp_path: Path) -> None:
    """As a kill leaves them: steps that were told and not saved, and half a line."""
    worlds.run(shards, tmp_path, replace(TOLD, steps=6))
    lost = '{"step": 7, "loss": 99.0}\n{"step": 8, "lo'
    with (tmp_path / METRICS).open("a") as file:
        file.write(lost)
    worlds.run(shards, tmp_path, replace(TOLD, steps=8))
    assert [line["step"] for line in curve(tmp_path) if "loss" in line] == list(range(1, 9))
    assert 99.0 not in compute_losses(tmp_path)


# --- torch.compile --------------------------------------------------------------------------------


def test_a_compiler_can_follow_a_training_pass_from_end_to_end(data: Resident) -> None:
    """Dropout's whole numbers too. It is the tracing that is tried here: generating code takes minutes."""
    network = loop.new_state(TINY, CPU).network
    torch.nn.init.normal_(network.out.weight, std=0.1, generator=torch.Generator())
    [shown] = next(batches(data, TINY, ALONE, Execution(), 0, EpochCounter(len(data))))
    traced = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.equal(
        objective.compute_losses(traced, shown, TINY), objective.compute_losses(network, shown, TINY)
    )


def test_a_compiler_that_does_not_work_is_told_and_changes_nothing(shards: Path, tmp_path: Path) -> None:
    small = replace(TINY.network, multiples=(1,), dropout=0.0)  # a small graph is a quick one
    recipe = replace(TINY, steps=2, network=small)
    done = finished(
        worlds.command(shards, tmp_path / "compiled", recipe, "--compile"),
        CXX=str(tmp_path / "no-compiler"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
        TORCHINDUCTOR_COMPILE_THREADS="1",
    )
    [line] = [line for line in done.stderr.splitlines() if "torch.compile" in line]
    assert line.startswith("torch.compile does not work here, going on without: ")
    assert "compiler" in line.lower(), "and why, which is the one thing that is wrong here"
    worlds.run(shards, tmp_path / "plain", recipe)
    assert files_of(listed(tmp_path / "compiled")[-1]) == files_of(listed(tmp_path / "plain")[-1])
