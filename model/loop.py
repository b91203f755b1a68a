"""The training loop: load a batch, compute gradients, update the weights, until done or asked to stop."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.batch import Batch, ChangeBatch
from model.checkpoint import TrainState
from model.epochs import EpochCounter, count_resumed_epoch, load_batches
from model.execution import Execution, Ranks
from model.monitor import MetricsWindow, RunMonitor
from model.objective import Forward, compute_losses
from model.recipe import ModelError, OptimParams, Recipe
from model.run_log import open_run_log
from model.signals import catch_stop_signals, explain_out_of_memory
from model.start_record import StartRecord
from model.unet import UNet
from shards.frames import FrameSource
from shards.rng import Purpose, derive_key
from shards.speech_scale import SpeechScale

log = logging.getLogger(__name__)


def create_state(
    recipe: Recipe,
    device: torch.device,
    speech_scale: SpeechScale | None = None,
    start: UNet | None = None,
) -> TrainState:
    """A run before its first step. The initial weights depend on the recipe's seed alone.

    ``speech_scale``: of the training clips, for a network that takes speech features. ``start``: a network
    whose weights and scale of speech features are the initial ones instead; its recipe has this network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(recipe.seed, Purpose.INITIAL) >> 1)
        network = UNet(recipe.network)
    if start is not None:
        network.load_state_dict(start.state_dict())
    elif speech_scale is not None:
        network.embed_audio.speech.set_scale(*map(torch.from_numpy, speech_scale))
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
    """Linear warm-up, then constant, or a cosine down to a tenth at the last step; the decay on top."""
    rate = params.learning_rate
    if step < params.warmup_steps:
        rate *= (step + 1) / params.warmup_steps
    elif params.after_warmup == "cosine":
        progress = (step - params.warmup_steps) / max(1, steps - params.warmup_steps)
        rate *= 0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))
    if params.decay_steps and step > steps - params.decay_steps:
        rate *= max(0, steps - step) / params.decay_steps
    return rate


@torch.no_grad()
def update_ema(state: TrainState, params: OptimParams) -> None:
    """ema <- decay * ema + (1 - decay) * weights."""
    decay = params.ema_decay
    if params.ema_warmup:
        decay = min(decay, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(list(state.ema.parameters()), list(state.network.parameters()), 1 - decay)


def train(
    state: TrainState,
    data: FrameSource,
    held_out: FrameSource | None,
    *,
    recipe: Recipe,
    execution: Execution,
    ranks: Ranks,
    run: Path,
    digest: str,
    start: StartRecord | None = None,
    change_batch: ChangeBatch | None = None,
    dvclive: Path | None = None,
    report_step: Callable[[int, int], None] | None = None,
) -> str:
    """Train until ``recipe.steps`` or until asked to stop; return which of the two, e.g. "done".

    ``start`` says where the run started, for its checkpoints. ``change_batch`` is applied to each batch
    before its losses are computed, and to held-out ones. ``dvclive`` is a folder for DVC's files on the
    run, besides the run's own log. ``report_step`` is called after each step with the steps done and
    ``recipe.steps``; what it raises ends the training at once.

    Raises ModelError when the loss is not finite or too large, and when memory does not suffice.
    """
    assert change_batch is not None or not recipe.distill, "the start's frames are the targets"
    trainer = Trainer(state, data, recipe, execution, ranks, change_batch)
    with (
        contextlib.ExitStack() as open_files,
        trainer.explain_out_of_memory(),
        catch_stop_signals() as stop,
    ):
        # Now and not when it is freed: at the end of the process, workers would be waited for for ever.
        open_files.callback(trainer.batches.close)
        run_log = open_files.enter_context(open_run_log(run, state.step, dvclive)) if ranks.is_first else None
        monitor = RunMonitor(run, recipe, digest, ranks, run_log, start)
        trainer.prepare_forward()
        batches: list[Batch] = []
        while state.step < recipe.steps and not ranks.any(stop.signal_name is not None):
            batches = trainer.load_step()
            trainer.step(batches)
            trainer.log_finished_epoch()
            if report_step is not None:
                report_step(state.step, recipe.steps)
            if _is_due(recipe.watch.log_every, state.step, recipe):
                monitor.log_metrics(state, trainer.window)
                trainer.window = MetricsWindow()
            evaluates = _is_due(recipe.watch.evaluate_every, state.step, recipe)
            saves = _is_due(recipe.watch.save_every, state.step, recipe)
            if evaluates or saves:
                with trainer.window.pause():
                    monitor.check_state(state, trainer.window, trainer.recompute_losses(batches[-1]))
                    if evaluates and held_out is not None:
                        monitor.evaluate(state, held_out, execution, change_batch)
                    if saves:
                        monitor.save(state)
        if batches:
            monitor.check_state(state, trainer.window, trainer.recompute_losses(batches[-1]))
        monitor.save(state)
    return "done" if state.step >= recipe.steps else f"stopped by {stop.signal_name or 'another rank'}"


class Trainer:
    """What a training step needs on one rank: the state, the batches and the prepared network."""

    def __init__(
        self,
        state: TrainState,
        data: FrameSource,
        recipe: Recipe,
        execution: Execution,
        ranks: Ranks,
        change_batch: ChangeBatch | None = None,
    ) -> None:
        if recipe.batch > len(data):
            raise ModelError(f"batch {recipe.batch} is larger than the {len(data)} frames to train on")
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.state = state
        self.data = data
        self.recipe = recipe
        self.execution = execution
        self.ranks = ranks
        self.change_batch = change_batch
        self.micro_batch = execution.choose_micro_batch(recipe, ranks.world)
        self.forward: Forward = state.network
        self.compute_losses: Callable[[Batch], Tensor] = partial(compute_losses, state.network, recipe=recipe)
        self.window = MetricsWindow()
        self.counter = EpochCounter(len(data))
        if data.has_exact_epochs:
            count_resumed_epoch(data, self.counter, state.position, recipe, ranks)
        self.batches = load_batches(data, recipe, ranks, execution, state.position, self.counter)

    def prepare_forward(self) -> None:
        """Compile the network where that works, wrap it so that ranks share gradients, start the clock."""
        # No function here refers to this object: it would be freed late, and what it holds with it.
        network, recipe = self.state.network, self.recipe
        if self.ranks.world == 1:  # the loss in the same graph, with the noise and the mask

            def compute(batch: Batch) -> Tensor:
                return compute_losses(network, batch, recipe)

            self.compute_losses = self.execution.try_compile(compute, self._try_step, self.ranks.device)
        else:

            def run_trial(forward: Forward) -> None:
                self._try_step(partial(compute_losses, forward, recipe=recipe))

            module = self.execution.try_compile(network, run_trial, self.ranks.device)
            self.forward = DistributedDataParallel(module, gradient_as_bucket_view=True)
            self.compute_losses = partial(compute_losses, self.forward, recipe=recipe)
        network.train()
        self.window = MetricsWindow()

    def _try_step(self, compute: Callable[[Batch], Tensor]) -> None:
        """One forward and backward pass, as in a step, without lasting effects."""
        counter = EpochCounter(len(self.data))
        args = (self.data, self.recipe, self.ranks, self.execution, self.state.position, counter)
        batch = next(load_batches(*args, prefetch=False))[0]
        try:
            with self.execution.autocast(self.ranks.device):
                losses = compute(batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self.state.optimizer.zero_grad(set_to_none=True)

    def load_step(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        with self.window.time_waiting():
            batches = next(self.batches)
        return batches if self.change_batch is None else [self.change_batch(batch) for batch in batches]

    def step(self, batches: list[Batch]) -> None:
        """One update of the weights, from the gradients of all micro-batches on all ranks."""
        state, optim = self.state, self.recipe.optim
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(state.step, self.recipe.steps, optim)
        for batch in batches:
            self._accumulate_gradients(batch, is_last=batch is batches[-1])
        max_norm = optim.max_grad_norm or math.inf
        self.window.grad_norms.append(nn.utils.clip_grad_norm_(state.network.parameters(), max_norm))
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.position += self.recipe.batch
        update_ema(state, optim)

    def _accumulate_gradients(self, batch: Batch, *, is_last: bool) -> None:
        with _sync_gradients(self.forward, is_last), self.execution.autocast(self.ranks.device):
            losses = self.compute_losses(batch)
            # DDP takes the mean over ranks, so this is the mean over the whole batch
            (losses.sum() * self.ranks.world / self.recipe.batch).backward()  # type: ignore[no-untyped-call]
        self.window.losses.append(losses.detach())
        self.window.gammas.append(batch.gamma)

    @torch.no_grad()
    def recompute_losses(self, batch: Batch) -> Tensor:
        """Losses with the current weights: the losses of a step do not show whether its update broke them."""
        with self.execution.autocast(self.ranks.device):
            return compute_losses(self.state.network, batch, self.recipe)

    def log_finished_epoch(self) -> None:
        """Log how often each frame was used, if the last step finished an epoch."""
        n_frames, position = len(self.data), self.state.position
        if not self.data.has_exact_epochs:
            return
        if position // n_frames > (position - self.recipe.batch) // n_frames:
            summary = self.counter.summarize_epoch(position // n_frames - 1, self.ranks)
            if self.ranks.is_first:
                log.info("%s", summary)

    def explain_out_of_memory(self) -> contextlib.AbstractContextManager[None]:
        """Turn a failed allocation into a ModelError that suggests a smaller micro-batch or network."""
        advice = "try fewer network.channels"
        if self.micro_batch > 1:
            advice = f"try --micro-batch {self.micro_batch // 2}, which changes no result"
        what = f"a micro-batch of {self.micro_batch} frames"
        return explain_out_of_memory(what, self.ranks.device, advice=advice)


def _is_due(every: int, step: int, recipe: Recipe) -> bool:
    return step % every == 0 or step == recipe.steps


def _sync_gradients(forward: Forward, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Ranks add up their gradients once a step, after the last micro-batch."""
    if isinstance(forward, DistributedDataParallel) and not is_last:
        no_sync: contextlib.AbstractContextManager[None] = forward.no_sync()
        return no_sync
    return contextlib.nullcontext()
