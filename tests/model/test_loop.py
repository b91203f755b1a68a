"""Training: a run is the same when stopped, killed or on several ranks; errors are one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import execution as execution_module
from model import loop, objective
from model import monitor as monitor_module
from model.batch import select_batch
from model.checkpoint import EMA, OPTIMIZER, WEIGHTS, Checkpoint, list_checkpoints, load_network
from model.denoiser import gammas
from model.epochs import EpochCounter, load_batches
from model.execution import Execution, Ranks
from model.loop import learning_rate, update_ema
from model.monitor import RunMonitor, compute_held_out_losses
from model.recipe import ModelError, OptimParams, Recipe, build_recipe
from model.run_log import METRICS, PICTURES, TENSORBOARD, read_metrics
from model.signals import catch_stop_signals
from shards.background import prefetch
from shards.resident import Resident, split_held_out
from shards.schema import ShardError
from stages.engine.lock import LOCK_NAME
from stages.engine.outcome import StageError
from stages.train import run as train
from tests import datasets
from tests.model import worlds
from tests.model.worlds import ALONE, CPU, ONE_THREAD, SIZE, TINY, run_command
from tests.waiting import GUARD_SECONDS

# Every step is logged, so that two runs can be compared.
LOGGED = replace(TINY, watch=replace(TINY.watch, log_every=1))
ENDLESS = replace(LOGGED, steps=100_000)
SPEED = ("frames_per_second", "waiting_for_data", "memory_gb")
TRAIN_IDS, HELD_OUT_IDS = split_held_out(
    [f"s1_clip{number}" for number in range(4)], TINY.held_out_share, seed=TINY.seed
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of noise, one of which is held out."""
    return worlds.make_dataset(tmp_path_factory.mktemp("shards") / "shards")


@pytest.fixture(scope="module")
def data(shards: Path) -> Resident:
    return worlds.load_dataset(shards, TRAIN_IDS)


@pytest.fixture(scope="module")
def held_out(shards: Path) -> Resident:
    return worlds.load_dataset(shards, HELD_OUT_IDS)


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps without interruption."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert worlds.run_training(shards, run, LOGGED) == "done"
    return run


def read_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: (checkpoint.path / name).read_bytes() for name in (WEIGHTS, EMA, OPTIMIZER)}


def read_curve(run: Path) -> list[dict[str, float]]:
    """The metrics of each step, without its speed."""
    return [{name: value for name, value in line.items() if name not in SPEED}
            for line in read_metrics(run / METRICS)]  # fmt: skip


def read_losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_curve(run) if "loss" in line]


def flatten_weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def read_weights(checkpoint: Checkpoint) -> torch.Tensor:
    return flatten_weights(load_network(checkpoint.path, weights="trained")[0])


# --- closed forms ---------------------------------------------------------------------------------


def test_the_learning_rate_matches_its_closed_form_at_the_corners() -> None:
    constant = OptimParams(learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(step, 100, constant) for step in (0, 4, 9, 10, 99, 10**6)]
    assert rates == [0.05, 0.25, 0.5, 0.5, 0.5, 0.5]
    cosine = replace(constant, after_warmup="cosine")
    rates = [learning_rate(step, 110, cosine) for step in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.05, 0.5, 0.5, 0.275, 0.05])
    falling = [learning_rate(step, 110, cosine) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(0, 5, replace(constant, warmup_steps=0)) == 0.5
    assert learning_rate(4, 5, replace(cosine, warmup_steps=50)) == 0.05, "a run that ends during warm-up"
    decayed = replace(constant, decay_steps=40)
    rates = [learning_rate(step, 100, decayed) for step in (9, 60, 70, 99, 100, 101)]
    assert rates == pytest.approx([0.5, 0.5, 0.375, 0.0125, 0, 0])


def test_the_average_of_constant_weights_matches_its_closed_form() -> None:
    for warmup in (False, True):
        params = OptimParams(ema_decay=0.8, ema_warmup=warmup)
        state = loop.create_state(TINY, CPU)
        start = [value.clone() for value in state.ema.parameters()]
        with torch.no_grad():
            for value in state.network.parameters():
                value.add_(1.0)
        share = 1.0  # of the initial weights
        for step in range(1, 31):
            state.step = step
            update_ema(state, params)
            share *= min(0.8, (1 + step) / (10 + step)) if warmup else 0.8
        for before, now in zip(start, state.ema.parameters(), strict=True):
            torch.testing.assert_close(now - before, torch.full_like(now, 1 - share), atol=1e-5, rtol=0)


def test_gradients_are_clipped_to_max_grad_norm(data: Resident, tmp_path: Path) -> None:
    """After one step AdamW's first moment is a tenth of the gradient."""
    norms = {}
    for limit in (0.0, 0.05, 1e4):
        recipe = replace(TINY, steps=1, optim=replace(TINY.optim, max_grad_norm=limit))
        state = worlds.train_on(data, tmp_path / f"{limit}", recipe)
        first_moments = [moments["exp_avg"].flatten() for moments in state.optimizer.state.values()]
        norms[limit] = torch.cat(first_moments).norm().item() / (1 - TINY.optim.betas[0])
        [line] = read_metrics(tmp_path / f"{limit}" / METRICS)
        if limit != 0.05:
            assert line["grad_norm"] == pytest.approx(norms[limit], rel=1e-5)
    assert norms[0.05] == pytest.approx(0.05, rel=1e-3)
    assert norms[0.0] == norms[1e4] > 0.05


def test_a_first_step_moves_no_weight_further_than_the_learning_rate(data: Resident, tmp_path: Path) -> None:
    """AdamW's first step is the gradient's sign times the rate, here in the first of ten warm-up steps."""
    recipe = replace(TINY, steps=1, optim=OptimParams(learning_rate=1e-2, warmup_steps=10))
    before = loop.create_state(recipe, CPU).network.parameters()
    after = worlds.train_on(data, tmp_path, recipe).network.parameters()
    moved = torch.cat([(now - then).abs().flatten() for now, then in zip(after, before, strict=True)])
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)


def test_after_a_first_step_the_average_has_its_share_of_the_trained_weights(
    data: Resident, tmp_path: Path
) -> None:
    """A tenth of them at a decay of 0.9, and with warm-up, which counts from step 1, 1 - 2 / 11."""
    for warmup, share in ((True, 9 / 11), (False, 0.1)):
        recipe = replace(TINY, steps=1, optim=replace(TINY.optim, ema_decay=0.9, ema_warmup=warmup))
        before = flatten_weights(loop.create_state(recipe, CPU).network)
        state = worlds.train_on(data, tmp_path / str(warmup), recipe)
        change = flatten_weights(state.network) - before
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(flatten_weights(state.ema) - before, share * change, atol=1e-6, rtol=0)


def test_the_network_learns_to_use_the_previous_and_the_identity_frame(
    data: Resident, tmp_path: Path
) -> None:
    """On clips of one repeated frame, the loss falls below the minimum without the conditioning frames.

    For frames of independent values with variance s, the best estimate of v from y is linear, with the error
    s / (gamma s + 1 - gamma).
    """
    still = replace(data, frames=data.frames[data.clips.starts[data.clips.find_clips(np.arange(len(data)))]])
    recipe = replace(TINY, steps=48, optim=replace(TINY.optim, learning_rate=3e-3))
    worlds.train_on(still, tmp_path, recipe)
    gamma = gammas(recipe.noise)
    floor = np.mean((1 / 3) / (gamma / 3 + 1 - gamma))
    losses = read_losses(tmp_path)
    assert losses[0] > floor > 0.5
    assert np.mean(losses[-4:]) < 0.8 * floor


# --- the same run when it is divided --------------------------------------------------------------


def test_two_runs_of_one_recipe_are_equal_and_advance_no_generator(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    torch.manual_seed(99)
    worlds.run_training(shards, tmp_path, LOGGED)
    torch.set_rng_state(before[0])
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert read_files(list_checkpoints(tmp_path)[-1]) == read_files(list_checkpoints(uninterrupted)[-1])
    assert read_curve(tmp_path) == read_curve(uninterrupted)


@pytest.mark.parametrize("at", [6, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(
    shards: Path, uninterrupted: Path, tmp_path: Path, at: int
) -> None:
    assert LOGGED.network.dropout > 0
    assert worlds.run_training(shards, tmp_path, replace(LOGGED, steps=at)) == "done"
    assert worlds.run_training(shards, tmp_path, LOGGED) == "done"
    assert read_files(list_checkpoints(tmp_path)[-1]) == read_files(list_checkpoints(uninterrupted)[-1])
    steps = [line for line in read_curve(tmp_path) if "loss" in line]
    assert steps == [line for line in read_curve(uninterrupted) if "loss" in line]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_change_results_by_rounding_only(
    shards: Path, uninterrupted: Path, tmp_path: Path, micro_batch: int
) -> None:
    assert Execution(micro_batch=3).choose_micro_batch(LOGGED, 1) == 2, "a divisor of 8"
    worlds.run_training(shards, tmp_path, replace(LOGGED, steps=4), micro_batch=micro_batch)
    lines = [line for line in read_curve(tmp_path) if "loss" in line]
    assert lines == [pytest.approx(line, rel=1e-4) for line in read_curve(uninterrupted)[:4]], (
        "the gradient norms too"
    )


def test_frames_in_the_hosts_memory_are_prefetched_in_the_same_order(data: Resident) -> None:
    indices = [
        select_batch(data.clips, part, part, seed=0, frames=TINY.frames, audio=TINY.network.audio)
        for part in np.split(np.arange(20), 4)
    ]
    plain, prefetched = map(data.read_batch, indices), prefetch(map(data.read_batch, indices), 1)
    for one, other in zip(plain, prefetched, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one[1:4], other[1:4], strict=True))


def start_command(
    shards: Path, run: Path, recipe: Recipe, *, until: int, ranks: int = 1, options: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`pipeline train` as a process that has made at least ``until`` steps."""
    process = subprocess.Popen(
        worlds.make_command(shards, run, recipe, *options, ranks=ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD,
    )
    deadline = time.monotonic() + GUARD_SECONDS
    while not any(line["step"] >= until for line in read_metrics(run / METRICS)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return process


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(shards: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start_command(shards, killed, ENDLESS, until=7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    steps = int(read_metrics(killed / METRICS)[-1]["step"]) + 6
    until = replace(ENDLESS, steps=steps)
    result = run_command(worlds.make_command(shards, killed, until))
    assert "going on at step" in result.stderr
    assert "frames drawn, 0 repeated, 0 missing" in result.stderr
    assert result.stdout == f"{killed}: done\n"
    worlds.run_training(shards, whole, until)
    assert list_checkpoints(killed)[-1].step == steps
    assert read_files(list_checkpoints(killed)[-1]) == read_files(list_checkpoints(whole)[-1])
    assert read_curve(killed) == read_curve(whole), "and no step is logged twice"


def test_a_run_stopped_by_a_signal_saves_and_resumes_there(shards: Path, tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start_command(shards, stopped, ENDLESS, until=7)
    process.terminate()
    output, log = process.communicate(timeout=GUARD_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM, log
    assert output == f"{stopped}: stopped by SIGTERM\n"
    last_step = list_checkpoints(stopped)[-1].step
    assert last_step == read_metrics(stopped / METRICS)[-1]["step"], "the step in progress was saved"
    until = replace(ENDLESS, steps=last_step + 5)
    worlds.run_training(shards, stopped, until)
    worlds.run_training(shards, whole, until)
    assert read_files(list_checkpoints(stopped)[-1]) == read_files(list_checkpoints(whole)[-1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_requests_a_stop_and_the_old_handler_is_restored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_stop_signals() as request:
        assert request.signal_name is None
        os.kill(os.getpid(), number)
        assert request.signal_name == number.name
        assert signal.getsignal(number) == before, "a second signal acts as usual"
    assert signal.getsignal(number) == before


# --- ranks ----------------------------------------------------------------------------------------


def test_two_ranks_train_the_same_run_as_one_and_one_can_resume_it(shards: Path, tmp_path: Path) -> None:
    """torchrun with two processes, stopped after some steps, against one process."""
    two, one = tmp_path / "two", tmp_path / "one"
    process = start_command(shards, two, ENDLESS, until=13, ranks=2)
    process.terminate()
    output, log = process.communicate(timeout=GUARD_SECONDS)
    assert f"{two}: stopped by SIGTERM" in output, log
    assert [line for line in log.splitlines() if line.startswith("epoch")][:3] == [
        f"epoch {epoch}: 28 frames drawn, 0 repeated, 0 missing" for epoch in range(3)
    ]
    last_step = list_checkpoints(two)[-1].step
    until = replace(ENDLESS, steps=last_step + 4)
    worlds.run_training(shards, two, until)
    worlds.run_training(shards, one, until)
    curve_two, curve_one = read_curve(two), read_curve(one)
    assert [line["step"] for line in curve_two] == [line["step"] for line in curve_one]
    for line_two, line_one in zip(curve_two, curve_one, strict=True):
        assert line_two == pytest.approx(line_one, rel=5e-3)
    assert "held_out_loss" in curve_one[6]
    first_lines = [pytest.approx(line, rel=1e-4) for line in curve_one[:7]]
    assert curve_two[:7] == first_lines, "before rounding errors accumulate"
    distance = (read_weights(list_checkpoints(two)[-1]) - read_weights(list_checkpoints(one)[-1])).norm()
    change = (read_weights(list_checkpoints(one)[-1]) - read_weights(list_checkpoints(one)[0])).norm()
    assert distance < 0.02 * change


def test_ranks_that_find_different_checkpoints_end_with_one_line_each(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Two nodes whose --run is a disk of their own."""
    runs = [shutil.copytree(uninterrupted, tmp_path / "0" / "run"), tmp_path / "1" / "run"]
    runs[1].parent.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            worlds.make_command(shards, run, replace(LOGGED, steps=13)),
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD | meeting | {"RANK": str(rank)},
        )
        for rank, run in enumerate(runs)
    ]
    for process, run in zip(processes, runs, strict=True):
        _, log = process.communicate(timeout=GUARD_SECONDS)
        assert process.returncode == 1, log
        assert log.splitlines()[-1] == (
            "Error: the newest checkpoint is of step 12, position 96 on rank 0 and not there on rank 1; "
            f"--run {run} has to be a folder that all nodes see"
        )
    assert not list_checkpoints(runs[1])


class TwoRanks(Ranks):
    """The first of two ranks; ``other`` is what the second one gathers."""

    other: Any = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_ranks_with_other_numbers_end_with_both_values() -> None:
    ranks = TwoRanks(0, 2, CPU)
    TwoRanks.other = {"batch": 8, "seed": 1}
    ranks.check_equal({"batch": 8, "seed": 1}, {"": "do it"})
    with pytest.raises(ModelError, match=r"^seed is 0 on rank 0 and 1 on rank 1; do it$"):
        ranks.check_equal({"batch": 8, "seed": 0}, {"": "do it"})


def test_the_error_of_one_rank_ends_all() -> None:
    TwoRanks.other = "shards: no dataset here"
    with (
        pytest.raises(ModelError, match=r"^rank 1: shards: no dataset here$"),
        TwoRanks(0, 2, CPU).share_errors(),
    ):
        pass
    TwoRanks.other = None
    with pytest.raises(ShardError, match=r"^mine$"), TwoRanks(0, 2, CPU).share_errors():
        raise ShardError("mine")


def test_ranks_wait_for_hours_only_while_others_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's own limit of ten minutes is for training."""
    timeouts = {}
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(
            execution_module.dist, name, lambda *args, name=name, **named: timeouts.update({name: named})
        )
    monkeypatch.setattr(execution_module.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(execution_module.dist, "destroy_process_group", lambda: None)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with execution_module.join_ranks("cpu") as ranks:
        assert ranks.rank == 1
    assert "timeout" not in timeouts["init_process_group"]
    assert timeouts["new_group"] == {"timeout": timedelta(hours=24), "backend": "gloo"}


def test_a_batch_that_does_not_divide_among_ranks_is_refused() -> None:
    with pytest.raises(ModelError, match="batch 8 does not divide among 3 ranks"):
        Execution().choose_micro_batch(TINY, 3)


# --- each frame once an epoch ---------------------------------------------------------------------


def get_epoch_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("epoch")]


def test_the_log_shows_that_every_epoch_held_each_frame_once(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """28 frames and batches of 8: no batch ends where an epoch ends."""
    caplog.set_level("INFO", "model")
    for steps in (5, 11):
        worlds.run_training(shards, tmp_path, replace(LOGGED, steps=steps))
    assert get_epoch_lines(caplog) == [
        f"epoch {epoch}: 28 frames drawn, 0 repeated, 0 missing" for epoch in range(3)
    ]


def test_the_counter_reports_repeated_and_missing_frames() -> None:
    counter = EpochCounter(5)
    counter.add(np.arange(3), np.array([4, 0, 1]))
    counter.add(np.arange(3, 8), np.array([0, 2, 1, 1, 1]))
    assert counter.summarize_epoch(0, ALONE) == "epoch 0: 5 frames drawn, 1 repeated, 1 missing"
    assert counter.summarize_epoch(1, ALONE) == "epoch 1: 3 frames drawn, 1 repeated, 4 missing"
    assert not counter.counts, "a summary deletes the counts"


# --- what goes wrong ------------------------------------------------------------------------------


def read_error(kind: type[Exception], shards: Path, run: Path, recipe: Recipe) -> str:
    """The message, of one line, of the error that training raises."""
    with pytest.raises(kind) as caught:
        worlds.run_training(shards, run, recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("save_every", "evaluate_every"), [(1, 1), (1, 1000), (1000, 1), (1000, 1000)])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    shards: Path, tmp_path: Path, save_every: int, evaluate_every: int
) -> None:
    """The weights break in the step before the first loss that is not finite."""
    watch = replace(LOGGED.watch, save_every=save_every, evaluate_every=evaluate_every)
    optim = replace(LOGGED.optim)
    object.__setattr__(optim, "learning_rate", 1e17)  # which no params allow: no step breaks sooner
    recipe = replace(LOGGED, watch=watch, optim=optim)
    message = read_error(ModelError, shards, tmp_path, recipe)
    assert "not finite; there is no checkpoint yet; try a lower optim.learning_rate than 1e+17" in message
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["listening_loss", "deaf_loss", "held_out_log_snr/above_4"])
def test_a_held_out_measurement_that_is_not_finite_stops_the_run_with_one_line(
    name: str, data: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"held_out_loss": 0.1, "listening_loss": 0.2, "deaf_loss": 0.3, name: float("nan")}
    monkeypatch.setattr(monitor_module, "compute_held_out_losses", lambda *_: losses)
    monitor = RunMonitor(tmp_path, TINY, "d", ALONE, None)
    with pytest.raises(ModelError, match=f"^step 0: {name} nan: not finite; there is no checkpoint yet"):
        monitor.evaluate(loop.create_state(TINY, CPU), data, Execution())


def test_a_weight_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(
    data: Resident, held_out: Resident, tmp_path: Path
) -> None:
    for log_every in (1, 1000):  # with and without a log line before the next checkpoint
        run = tmp_path / str(log_every)
        recipe = replace(TINY, watch=replace(TINY.watch, log_every=log_every))
        state = worlds.train_on(data, run, recipe, steps=6)
        with torch.no_grad():
            next(state.network.parameters())[0] = float("nan")
        with pytest.raises(ModelError, match=r"loss nan.* the last good checkpoint is .*step-00000006;"):
            worlds.train_on(data, run, recipe, state=state)
        assert [saved.step for saved in list_checkpoints(run)] == [6]
        assert read_weights(list_checkpoints(run)[0]).isfinite().all()


def test_a_loss_that_explodes_stops_the_run(shards: Path, tmp_path: Path) -> None:
    message = read_error(ModelError, shards, tmp_path, replace(LOGGED, max_loss=0.01))
    assert "more than max_loss 0.01; there is no checkpoint yet" in message
    assert list_checkpoints(tmp_path) == []
    assert worlds.run_training(shards, tmp_path, replace(LOGGED, max_loss=0, steps=2)) == "done"


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """As on a machine with 100 MB of free memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100 * 2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("_little_memory")
def test_running_out_of_memory_raises_one_line_that_says_what_to_change(tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", [512])
    wide = replace(TINY.network, channels=128, patch=1)
    recipe = replace(LOGGED, batch=512, network=wide, held_out_share=0)
    message = read_error(ModelError, shards, tmp_path / "run", recipe)
    assert "out of memory on cpu: a micro-batch of 512 frames does not fit" in message
    assert "GB are free; try --micro-batch 256, which changes no result" in message


@pytest.mark.usefixtures("_little_memory")
def test_a_network_that_does_not_fit_into_memory_raises_one_line(shards: Path, tmp_path: Path) -> None:
    huge = replace(TINY.network, channels=2048)
    message = read_error(ModelError, shards, tmp_path, replace(LOGGED, network=huge))
    assert message.startswith("out of memory on cpu: the network does not fit")
    assert message.endswith("GB are free; try fewer network.channels")


def test_a_batch_larger_than_the_dataset_is_refused(shards: Path, tmp_path: Path) -> None:
    message = read_error(ModelError, shards, tmp_path, replace(TINY, batch=29))
    assert message == "batch 29 is larger than the 28 frames to train on"


def test_two_processes_cannot_train_in_one_folder(shards: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK_NAME):
        message = read_error(StageError, shards, tmp_path, TINY)
    assert message == f"--run {tmp_path}: another process trains there"


def test_a_preset_for_256_px_trains_on_crops_of_256_px_alone(tmp_path: Path) -> None:
    """With the preset's resolutions and attention, and few channels."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)
    clip = datasets.pack("s1_a", frames, box=(60, 140, 200, 240), mels=np.full((8, 256), -40, np.float32))
    params = {"align": {"size": 256}, "mels": {"n_mels": 256, "top_db": 80.0}}
    shards = datasets.write(tmp_path / "shards", [clip], params=params)
    small = {"network": {"channels": 32, "head_channels": 32, "blocks": 1}, "watch": {"pictures": 0}}
    recipe = build_recipe("multi-speaker-256", small, {"batch": 2, "steps": 1, "held_out_share": 0})
    assert worlds.run_training(shards, tmp_path / "run", recipe) == "done"
    assert load_network(tmp_path / "run")[0].params == recipe.network
    message = read_error(ShardError, shards, tmp_path / "other", build_recipe("multi-speaker"))
    assert message.endswith("holds 256 px crops, the network takes 128")


def test_clips_of_another_size_are_refused(shards: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, network=replace(TINY.network, size=32))
    assert "holds 16 px crops, the network takes 32" in read_error(ShardError, shards, tmp_path, recipe)


def test_a_dataset_without_training_clips_is_refused(tmp_path: Path) -> None:
    shards = worlds.make_dataset(tmp_path / "shards", [9], test=["s1_clip0"])
    assert "no clip is in the split 'train'" in read_error(StageError, shards, tmp_path / "run", TINY)


# --- resuming with another recipe -----------------------------------------------------------------


def test_a_run_resumes_only_with_its_own_recipe_and_dataset(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    other = replace(LOGGED, optim=replace(LOGGED.optim, learning_rate=1e-4))
    message = read_error(ModelError, shards, run, other)
    assert "was trained with optim.learning_rate 0.001, not 0.0001; give this one another --run" in message
    message = read_error(ModelError, shards, run, replace(LOGGED, seed=5))
    assert "was trained with seed 0, not 5" in message
    others = worlds.make_dataset(tmp_path / "others", seed=1)
    assert "was trained on the dataset" in read_error(ModelError, others, run, LOGGED)
    assert read_files(list_checkpoints(run)[-1]) == read_files(list_checkpoints(uninterrupted)[-1])
    longer = replace(LOGGED, steps=13, watch=replace(LOGGED.watch, log_every=5, keep_last=1, pictures=0))
    assert worlds.run_training(shards, run, longer) == "done"
    assert list_checkpoints(run)[-1].step == 13


def test_a_run_of_other_numbers_is_set_aside_only_when_asked_and_the_new_one_starts_afresh(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run-1").mkdir()
    assert worlds.run_training(shards, run, LOGGED, set_aside=True) == "done"
    assert not (tmp_path / "run-2").exists(), "it can go on"
    other = replace(LOGGED, optim=replace(LOGGED.optim, learning_rate=1e-4), steps=2)
    assert worlds.run_training(shards, run, other, set_aside=True) == "done"
    assert [checkpoint.step for checkpoint in list_checkpoints(run)] == [2]
    assert list_checkpoints(tmp_path / "run-2")[-1].step == 12
    assert len(read_losses(run)) == 2


def test_a_finished_run_loads_nothing_to_say_so(
    shards: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    monkeypatch.setattr(train, "open_frame_sources", lambda *_: pytest.fail("loads the dataset"))
    assert worlds.run_training(shards, run, LOGGED) == "done"
    assert "was trained with seed 0" in read_error(ModelError, shards, run, replace(LOGGED, seed=5))


def test_a_run_is_set_aside_only_for_one_that_can_start(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    for recipe, message in (
        (replace(LOGGED, batch=1000, seed=1), "batch 1000 is larger than the 27 frames to train on"),
        (replace(LOGGED, window=2), "cannot be combined with a recipe whose window is 2"),
    ):
        with pytest.raises((ModelError, StageError), match=message):
            worlds.run_training(shards, run, recipe, set_aside=True)
    with pytest.raises(ShardError, match="no dataset"):
        worlds.run_training(tmp_path, run, replace(LOGGED, seed=1), set_aside=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_of_a_link_the_run_that_it_leads_to_is_set_aside(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    disk = shutil.copytree(uninterrupted, tmp_path / "disk" / "run").parent
    link = tmp_path / "link"
    link.symlink_to(disk / "run")
    assert worlds.run_training(shards, link, replace(LOGGED, seed=1, steps=1), set_aside=True) == "done"
    assert link.is_symlink()
    assert [list_checkpoints(disk / name)[-1].step for name in ("run", "run-1")] == [1, 12]


def test_a_log_without_a_checkpoint_is_replaced_only_by_the_run_that_was_killed_so_early(
    shards: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The first checkpoint is of step 6."""
    run, other = shutil.copytree(uninterrupted, tmp_path / "run"), replace(LOGGED, seed=1, steps=1)
    shutil.rmtree(run / "checkpoints")
    log = (run / METRICS).read_text()
    message = f"{run}: has a log up to step 12 and no checkpoint; give another --run, or --set-aside"
    for recipe in (LOGGED, other):
        assert read_error(ModelError, shards, run, recipe).startswith(message)
    assert (run / METRICS).read_text() == log
    early = "".join(line for line in log.splitlines(keepends=True) if json.loads(line)["step"] <= 6)
    (run / METRICS).write_text(early)
    assert "has a log up to step 6 and no checkpoint" in read_error(ModelError, shards, run, other)
    (run / METRICS).write_text("")
    assert worlds.run_training(shards, run, other) == "done", "a run that logged no step has nothing to lose"
    shutil.rmtree(run)
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "checkpoints")
    (run / METRICS).write_text(early)
    assert worlds.run_training(shards, run, LOGGED) == "done"
    assert read_curve(run) == read_curve(uninterrupted)
    shutil.rmtree(run / "checkpoints")
    (run / "run.json").unlink()
    assert read_error(ModelError, shards, run, LOGGED).startswith(message)
    assert worlds.run_training(shards, run, other, set_aside=True) == "done"
    assert len(read_losses(run)) == 1
    assert len(read_losses(tmp_path / "run-1")) == 12


# --- clips held out -------------------------------------------------------------------------------


def test_held_out_and_test_clips_do_not_affect_training(tmp_path: Path) -> None:
    """With other frames in them the weights are the same; the held-out loss is not."""
    lengths, test = (9, 12, 7, 11, 8), ["s1_clip4"]
    recipe = replace(LOGGED, steps=4)
    for name, other_noise in (("a", []), ("b", HELD_OUT_IDS), ("c", test)):
        shards = worlds.make_dataset(tmp_path / f"{name}-shards", lengths, test=test, other_noise=other_noise)
        worlds.run_training(shards, tmp_path / name, recipe)
    a, b, c = (list_checkpoints(tmp_path / name)[-1] for name in "abc")
    assert read_files(a) == read_files(b) == read_files(c)
    assert a.held_out_loss != b.held_out_loss
    assert a.held_out_loss == c.held_out_loss
    assert len({saved.digest for saved in (a, b, c)}) == 3


def test_the_held_out_loss_is_the_same_at_every_call_and_for_any_micro_batch(held_out: Resident) -> None:
    network = loop.create_state(TINY, CPU).ema
    torch.nn.init.normal_(network.out.weight, std=0.1, generator=torch.Generator())
    losses = [
        compute_held_out_losses(network, held_out, TINY, ALONE, Execution(micro_batch=n))
        for n in (8, 8, 1, 3)
    ]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5) and losses[3] == pytest.approx(losses[0], rel=1e-5)


def test_a_network_that_only_copies_has_no_gap_between_hearing_and_deaf(held_out: Resident) -> None:
    """An untrained network predicts zero, whether it hears or not; with another last layer it hears."""
    network = loop.create_state(TINY, CPU).ema
    losses = compute_held_out_losses(network, held_out, TINY, ALONE, Execution())
    assert losses["listening_loss"] == losses["deaf_loss"] > 0
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    losses = compute_held_out_losses(network, held_out, TINY, ALONE, Execution())
    assert losses["listening_loss"] != losses["deaf_loss"]


@pytest.mark.parametrize(
    ("best_by", "column"), [("seeing", "held_out_loss"), ("listening", "listening_loss")]
)
def test_the_best_checkpoint_is_chosen_by_the_loss_that_the_recipe_names(
    held_out: Resident, tmp_path: Path, best_by: Literal["seeing", "listening"], column: str
) -> None:
    recipe = replace(TINY, best_by=best_by)
    state = loop.create_state(recipe, CPU)
    torch.nn.init.normal_(state.ema.out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    monitor = RunMonitor(tmp_path, recipe, "digest", ALONE, None)
    monitor.evaluate(state, held_out, Execution())
    losses = compute_held_out_losses(state.ema, held_out, recipe, ALONE, Execution())
    assert monitor.held_out_loss == (0, losses[column])
    assert monitor.held_out_size == (min(recipe.watch.held_out_frames, len(held_out)), 1)
    assert losses["listening_loss"] != losses["held_out_loss"]


def test_the_best_checkpoint_is_the_one_whose_average_has_the_lowest_held_out_loss(
    uninterrupted: Path, held_out: Resident
) -> None:
    losses = {
        line["step"]: line["held_out_loss"] for line in read_curve(uninterrupted) if "held_out_loss" in line
    }
    assert {saved.step: saved.held_out_loss for saved in list_checkpoints(uninterrupted)} == losses
    network, best = load_network(uninterrupted)
    assert best.step == min(losses, key=lambda step: losses[step])
    assert (
        compute_held_out_losses(network, held_out, LOGGED, ALONE, Execution())["held_out_loss"]
        == best.held_out_loss
    )


# --- logs and pictures ----------------------------------------------------------------------------


def test_a_picture_has_a_row_for_each_of_some_held_out_frames(
    uninterrupted: Path, held_out: Resident
) -> None:
    names = sorted(path.name for path in (uninterrupted / PICTURES).iterdir())
    assert names == ["held-out-00000006.png", "held-out-00000012.png"]
    pixels = np.asarray(Image.open(uninterrupted / PICTURES / names[-1]))
    assert pixels.shape == (2 * (SIZE + 2), 5 * (SIZE + 2), 3)
    x0, y0, x1, y1 = held_out.boxes[0].tolist()
    for row, frame in enumerate((2, 8)):  # the middle frames of the two halves of 11 frames
        truth = held_out.frames[frame].numpy()
        line = pixels[row * (SIZE + 2) : row * (SIZE + 2) + SIZE]
        images = [line[:, k * (SIZE + 2) : k * (SIZE + 2) + SIZE] for k in range(5)]
        for image in images:
            assert np.array_equal(image[:y0], truth[:y0]), "above the mask every image is the frame"
        for image in images[:4]:
            assert not np.array_equal(image[y0:y1, x0:x1], truth[y0:y1, x0:x1])
        assert np.array_equal(
            images[4][y0 + 1 : y1 - 1, x0 + 1 : x1 - 1], truth[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
        )
        assert images[4][y0, x0].tolist() == [255, 220, 0]


def test_tensorboard_has_the_values_of_the_metrics_file(shards: Path, tmp_path: Path) -> None:
    for steps in (7, 9):  # a resumed run removes no event and repeats none
        worlds.run_training(shards, tmp_path, replace(LOGGED, steps=steps))
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    scalars = {event.step: event.value for event in events.Scalars("loss")}
    assert list(scalars) == list(range(1, 10))
    assert list(scalars.values()) == pytest.approx(read_losses(tmp_path))
    assert [event.step for event in events.Scalars("held_out_loss")] == [6, 7, 9]
    assert {"learning_rate", "grad_norm", "frames_per_second"} <= set(events.Tags()["scalars"])
    pictures = events.Images("held-out")
    assert [picture.step for picture in pictures] == [6, 7, 9]
    assert (pictures[0].width, pictures[0].height) == (5 * (SIZE + 2), 2 * (SIZE + 2))


def test_metrics_after_the_last_checkpoint_are_replaced_on_resume(shards: Path, tmp_path: Path) -> None:
    """A killed run leaves steps that were logged and not saved, and an incomplete line."""
    worlds.run_training(shards, tmp_path, replace(LOGGED, steps=6))
    lost = '{"step": 7, "loss": 99.0}\n{"step": 8, "lo'
    with (tmp_path / METRICS).open("a") as file:
        file.write(lost)
    worlds.run_training(shards, tmp_path, replace(LOGGED, steps=8))
    assert [line["step"] for line in read_curve(tmp_path) if "loss" in line] == list(range(1, 9))
    assert 99.0 not in read_losses(tmp_path)


# --- torch.compile --------------------------------------------------------------------------------


def test_torch_compile_can_trace_a_training_pass_without_a_break(data: Resident) -> None:
    """With loss and dropout's integer hash. Only tracing is tested: generating code takes minutes."""
    network = loop.create_state(TINY, CPU).network
    torch.nn.init.normal_(network.out.weight, std=0.1, generator=torch.Generator())
    [batch] = next(load_batches(data, TINY, ALONE, Execution(), 0, EpochCounter(len(data))))
    traced = torch.compile(objective.compute_losses, backend="eager", fullgraph=True)
    assert torch.equal(traced(network, batch, TINY), objective.compute_losses(network, batch, TINY))


def test_a_failing_compiler_is_reported_and_changes_no_result(shards: Path, tmp_path: Path) -> None:
    small = replace(TINY.network, multiples=(1,), dropout=0.0)  # a small graph compiles quickly
    recipe = replace(TINY, steps=2, network=small)
    result = run_command(
        worlds.make_command(shards, tmp_path / "compiled", recipe, "--compile"),
        CXX=str(tmp_path / "no-compiler"),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
        TORCHINDUCTOR_COMPILE_THREADS="1",
    )
    [line] = [line for line in result.stderr.splitlines() if "torch.compile" in line]
    assert line.startswith("torch.compile does not work here, continuing without it: ")
    assert "compiler" in line.lower(), "and the reason, which is the missing compiler"
    worlds.run_training(shards, tmp_path / "plain", recipe)
    assert read_files(list_checkpoints(tmp_path / "compiled")[-1]) == read_files(
        list_checkpoints(tmp_path / "plain")[-1]
    )
