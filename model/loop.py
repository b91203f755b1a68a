"""Training: draw, noise, predict, step, until it is done or told to stop."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import journal
from model.chance import Purpose
from model.checkpoint import TrainState
from model.denoiser import gammas
from model.examples import Examples, draw
from model.machine import Machine, Ranks
from model.objective import Forward, losses_of
from model.recipe import ModelError, OptimParams, Recipe
from model.unet import UNet
from model.watch import Keeper, Window
from shards.loader import Resident
from shards.order import drawn, key_of

log = logging.getLogger(__name__)

# --- the state ------------------------------------------------------------------------------------


def new_state(recipe: Recipe, device: torch.device) -> TrainState:
    """A run before its first step: weights drawn by the recipe's seed, whatever happened before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(recipe.seed, Purpose.INITIAL) >> 1)
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


# --- the data -------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How often each frame was drawn, by epoch: the proof that an epoch held each of them once."""

    n_frames: int
    counts: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, positions: NDArray[np.int64], index: NDArray[np.int64]) -> None:
        epochs = positions // self.n_frames
        for epoch in np.unique(epochs):
            counts = self.counts.setdefault(int(epoch), np.zeros(self.n_frames, np.uint8))
            np.add.at(counts, index[epochs == epoch], 1)

    def close(self, epoch: int, ranks: Ranks) -> str:
        """One sentence on a finished epoch. Every rank must ask."""
        own = self.counts.pop(epoch, np.zeros(self.n_frames, np.uint8))
        counts = ranks.total(torch.from_numpy(own.astype(np.int32)))
        repeated, missing = int((counts > 1).sum()), int((counts == 0).sum())
        return f"epoch {epoch}: {int(counts.sum())} frames drawn, {repeated} repeated, {missing} missing"


def batches(
    data: Resident, recipe: Recipe, ranks: Ranks, machine: Machine, start: int, tally: Tally
) -> Iterator[list[Examples]]:
    """This rank's examples of one step after another, in micro-batches, from position ``start`` on."""
    share = recipe.batch // ranks.world
    micro = machine.frames_at_once(recipe, ranks.world)
    table = torch.from_numpy(gammas(recipe.noise))
    while True:
        positions = start + ranks.rank * share + np.arange(share)
        index = drawn(positions, len(data), seed=key_of(recipe.seed, Purpose.ORDER))
        tally.add(positions, index)
        yield [
            draw(
                data,
                index[k : k + micro],
                positions[k : k + micro],
                seed=recipe.seed,
                frames=recipe.frames,
                audio=recipe.network.audio,
                table=table,
            )
            for k in range(0, share, micro)
        ]
        start += recipe.batch


def one_ahead(examples: Iterator[list[Examples]]) -> Iterator[list[Examples]]:
    """The same, drawn by a thread while the step before runs: for frames that lie in the host's memory."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, examples)
        while True:
            ready = waiting.result()
            waiting = pool.submit(next, examples)
            yield ready


# --- the run --------------------------------------------------------------------------------------


class StopAsked:
    """Set by SIGTERM or Ctrl-C; the step that runs is finished first."""

    by: str | None = None


@contextlib.contextmanager
def stop_asked() -> Iterator[StopAsked]:
    """While inside, the first signal asks to stop, and a second one of the same kind does stop."""
    asked_to = StopAsked()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: object) -> None:
        asked_to.by = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# How PyTorch, oneDNN and C++ say it, besides OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "out of memory", "bad_alloc")


@contextlib.contextmanager
def memory_told(what: str, device: torch.device, *, advice: str) -> Iterator[None]:
    """Turn an allocation that failed into a sentence on ``what`` did not fit. Raises ModelError."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        known = isinstance(err, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in str(err) for words in OUT_OF_MEMORY):
            raise
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
        raise ModelError(
            f"out of memory on {device}: {what} does not fit, {free / 1e9:.1f} of {total / 1e9:.1f} GB are "
            f"free; {advice}"
        ) from err


def forward_of(
    state: TrainState, ranks: Ranks, machine: Machine, trial: Callable[[Forward], None]
) -> Forward:
    """The network as it is called: compiled where that works, and wrapped so that ranks share gradients."""
    module = machine.compiled(state.network, trial, ranks.device)
    return DistributedDataParallel(module, gradient_as_bucket_view=True) if ranks.world > 1 else module


def train(
    state: TrainState,
    data: Resident,
    held: Resident | None,
    *,
    recipe: Recipe,
    machine: Machine,
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

    tally = Tally(len(data))
    _recount(tally, state.drawn, recipe, ranks)
    examples = batches(data, recipe, ranks, machine, state.drawn, tally)
    if data.frames.device != data.boxes.device:
        examples = one_ahead(examples)

    def trial(forward: Forward) -> None:
        """One forward and backward pass, as a step makes it, that leaves no trace."""
        shown = next(batches(data, recipe, ranks, machine, state.drawn, Tally(len(data))))[0]
        try:
            with machine.autocast(ranks.device):
                losses = losses_of(forward, shown, recipe)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            state.optimizer.zero_grad(set_to_none=True)

    def after(shown: Examples) -> Tensor:
        """Losses with the weights as a step left them: if it broke them, its own losses do not show it."""
        with torch.no_grad(), machine.autocast(ranks.device):
            return losses_of(state.network, shown, recipe)

    smaller = (
        f"--micro-batch {micro // 2}, which changes no result" if micro > 1 else "fewer network.channels"
    )
    with (
        contextlib.ExitStack() as open_files,
        memory_told(f"a micro-batch of {micro} frames", ranks.device, advice=f"try {smaller}"),
        stop_asked() as asked_to,
    ):
        book = open_files.enter_context(journal.opened(run, state.step)) if ranks.is_first else None
        keeper = Keeper(run, recipe, digest, ranks, book)
        forward = forward_of(state, ranks, machine, trial)
        state.network.train()
        window = Window()
        shown_now: list[Examples] = []
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
                    losses = losses_of(forward, shown, recipe)
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
                window = Window()
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


def _recount(tally: Tally, reached: int, recipe: Recipe, ranks: Ranks) -> None:
    """Count what this epoch held before a resume; the first rank does it for all."""
    if ranks.is_first and reached % tally.n_frames:
        positions = np.arange(reached - reached % tally.n_frames, reached)
        tally.add(positions, drawn(positions, tally.n_frames, seed=key_of(recipe.seed, Purpose.ORDER)))
