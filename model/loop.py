"""Training: draw, noise, predict, step, until it is done or told to stop."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import run_log as journal
from model.batch import Batch
from model.checkpoint import TrainState
from model.epochs import EpochCounter, batches, recount
from model.execution import Execution, Ranks
from model.monitor import MetricsWindow, RunMonitor
from model.objective import Forward, compute_losses
from model.recipe import ModelError, OptimParams, Recipe
from model.rng import Purpose
from model.signals import catch_stop_signals, explain_out_of_memory
from model.unet import UNet
from shards.frames import FrameSource
from shards.rng import derive_key

log = logging.getLogger(__name__)


def new_state(recipe: Recipe, device: torch.device) -> TrainState:
    """A run before its first step: weights drawn by the recipe's seed, whatever happened before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(recipe.seed, Purpose.INITIAL) >> 1)
        network = UNet(recipe.network)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=recipe.optim.learning_rate,
        betas=recipe.optim.betas,
        weight_decay=recipe.optim.weight_decay,
        fused=True,
    )
    return TrainState(network, ema, optimizer)


def learning_rate(step: int, steps: int, params: OptimParams) -> float:
    """A straight rise, then constant, or a cosine down to a tenth at the last step."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    if params.after_warmup == "constant":
        return params.learning_rate
    gone = (step - params.warmup_steps) / max(1, steps - params.warmup_steps)
    return params.learning_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, gone)))


@torch.no_grad()
def update_ema(state: TrainState, params: OptimParams) -> None:
    """ema <- decay * ema + (1 - decay) * weights."""
    decay = params.ema_decay
    if params.ema_warmup:
        decay = min(decay, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.network.parameters()), 1 - decay)


def prepare_forward(
    state: TrainState, ranks: Ranks, machine: Execution, trial: Callable[[Forward], None]
) -> Forward:
    """The network as it is called: compiled where that works, and wrapped so that ranks share gradients."""
    module = machine.compiled(state.network, trial, ranks.device)
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if ranks.world > 1 else module


def train(
    state: TrainState,
    data: FrameSource,
    held: FrameSource | None,
    *,
    recipe: Recipe,
    machine: Execution,
    ranks: Ranks,
    run: Path,
    digest: str,
) -> str:
    """Train until ``recipe.steps``, or until asked to stop; returns which it was, in a word or two.

    Raises ModelError when the loss is not finite or explodes, and when memory does not suffice.
    """
    if recipe.batch > len(data):
        raise ModelError(f"batch {recipe.batch} is larger than the {len(data)} frames to train on")
    micro = machine.frames_at_once(recipe, ranks.world)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True

    tally = EpochCounter(len(data))
    recount(data, tally, state.drawn, recipe, ranks)
    examples = batches(data, recipe, ranks, machine, state.drawn, tally)

    def trial(forward: Forward) -> None:
        """One forward and backward pass, as a step makes it, that leaves no trace."""
        once = batches(data, recipe, ranks, machine, state.drawn, EpochCounter(len(data)), ahead=False)
        shown = next(once)[0]
        try:
            with machine.autocast(ranks.device):
                losses = compute_losses(forward, shown, recipe)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            state.optimizer.zero_grad(set_to_none=True)

    def after(shown: Batch) -> Tensor:
        """Losses with the weights as a step left them: if it broke them, its own losses do not show it."""
        with torch.no_grad(), machine.autocast(ranks.device):
            return compute_losses(state.network, shown, recipe)

    smaller = (
        f"--micro-batch {micro // 2}, which changes no result" if micro > 1 else "fewer network.channels"
    )
    with (
        contextlib.ExitStack() as open_files,
        explain_out_of_memory(f"a micro-batch of {micro} frames", ranks.device, advice=f"try {smaller}"),
        catch_stop_signals() as asked_to,
    ):
        book = open_files.enter_context(journal.opened(run, state.step)) if ranks.is_first else None
        keeper = RunMonitor(run, recipe, digest, ranks, book)
        forward = prepare_forward(state, ranks, machine, trial)
        state.network.train()
        window = MetricsWindow()
        shown_now: list[Batch] = []
        while state.step < recipe.steps and not ranks.any(asked_to.by is not None):
            rate = learning_rate(state.step, recipe.steps, recipe.optim)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            before = time.perf_counter()
            shown_now = next(examples)
            window.waited_seconds += time.perf_counter() - before

            for shown in shown_now:
                is_last = shown is shown_now[-1]
                with _shared_gradients(forward, is_last), machine.autocast(ranks.device):
                    losses = compute_losses(forward, shown, recipe)
                    # DDP takes the mean over ranks, so this is the mean over the whole batch
                    (losses.sum() * ranks.world / recipe.batch).backward()  # type: ignore[no-untyped-call]
                window.losses.append(losses.detach())
                window.levels.append(shown.gamma)
            limit = recipe.optim.max_grad_norm or math.inf
            window.grad_norms.append(nn.utils.clip_grad_norm_(state.network.parameters(), limit))
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.drawn += recipe.batch
            update_ema(state, recipe.optim)

            if state.drawn // len(data) > (state.drawn - recipe.batch) // len(data):
                proof = tally.close(state.drawn // len(data) - 1, ranks)
                if ranks.is_first:
                    log.info("%s", proof)
            due = _due(state.step, recipe)
            if due.log:
                keeper.tell(state, window, rate)
                window = MetricsWindow()
            if due.evaluate or due.save:
                paused = time.perf_counter()
                keeper.refuse_bad(state, window, after(shown_now[-1]))
                if due.evaluate and held is not None:
                    keeper.evaluate(state, held, machine)
                if due.save:
                    keeper.save(state)
                window.paused_seconds += time.perf_counter() - paused
        if shown_now:
            keeper.refuse_bad(state, window, after(shown_now[-1]))
        keeper.save(state)
    return "done" if state.step >= recipe.steps else f"stopped by {asked_to.by or 'another rank'}"


@dataclass(frozen=True, slots=True)
class _Due:
    log: bool
    evaluate: bool
    save: bool


def _due(step: int, recipe: Recipe) -> _Due:
    watch, last = recipe.watch, step == recipe.steps
    return _Due(
        log=last or step % watch.log_every == 0,
        evaluate=last or step % watch.evaluate_every == 0,
        save=last or step % watch.save_every == 0,
    )


def _shared_gradients(forward: Forward, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Ranks add up their gradients once a step, after the last micro-batch."""
    if isinstance(forward, DistributedDataParallel) and not is_last:
        quiet: contextlib.AbstractContextManager[None] = forward.no_sync()
        return quiet
    return contextlib.nullcontext()
