"""Monitoring a run: mean losses, losses by noise level, held-out loss, pictures, and which states to save."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import Batch, ChangeBatch, make_evaluation_batch, to_pixels
from model.checkpoint import (
    HeldOutSize,
    TrainState,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from model.denoiser import estimate_y_0, gammas, interpolate_gamma, log_snr
from model.execution import Execution, Ranks
from model.objective import add_noise_in_mask, compute_losses, predict, select_base
from model.recipe import ModelError, Recipe
from model.run_log import SELECTING_LOSSES, RunLog, draw_box, tile_images
from model.start_record import StartRecord
from model.unet import UNet
from shards.frames import FrameSource

# Borders of the noise bands in which the loss is logged, in log-SNR: mostly noise ... mostly image.
BANDS = (-4.0, 0.0, 4.0)
BAND_NAMES = ("below_-4", "-4_to_0", "0_to_4", "above_4")
PICTURE_GAMMAS = (0.02, 0.5, 0.95)
GOLDEN_RATIO = 0.6180339887498949

log = logging.getLogger(__name__)


@dataclass
class MetricsWindow:
    """Measurements since the last log line. Nothing here waits for the GPU until ``summarize``."""

    losses: list[Tensor] = field(default_factory=list)  # (micro,) each
    gammas: list[Tensor] = field(default_factory=list)  # (micro,) each
    grad_norms: list[Tensor] = field(default_factory=list)
    wait_seconds: float = 0.0  # for data
    pause_seconds: float = 0.0  # for evaluation and checkpoints
    start: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def time_waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time inside as training."""
        start = time.perf_counter()
        yield
        self.pause_seconds += time.perf_counter() - start

    def summarize(self, ranks: Ranks) -> dict[str, float]:
        """Mean loss over all ranks, in total and by noise band, and the last gradient norm. Collective."""
        losses, gamma = torch.cat(self.losses).double().cpu(), torch.cat(self.gammas).double().cpu()
        sums, counts = ranks.sum(torch.stack(sum_by_band(losses, gamma)))
        metrics = {"loss": float(sums.sum() / counts.sum())}
        for name, total, n in zip(BAND_NAMES, sums, counts, strict=True):
            if n:
                metrics[f"loss_log_snr/{name}"] = float(total / n)
        if self.grad_norms:
            metrics["grad_norm"] = float(self.grad_norms[-1])
        return metrics


def sum_by_band(losses: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the losses in each noise band, (4,) each."""
    band = torch.bucketize(log_snr(gamma), torch.tensor(BANDS, dtype=gamma.dtype))
    sums = torch.zeros(len(BAND_NAMES), dtype=losses.dtype).index_add_(0, band, losses)
    return sums, torch.bincount(band, minlength=len(BAND_NAMES)).to(losses.dtype)


def spread_gammas(n: int, table: Tensor) -> Tensor:
    """``n`` noise levels spread evenly over a schedule, as is any consecutive part of them: (n,).

    Multiples of the golden ratio modulo 1 have this property.
    """
    return interpolate_gamma(table, torch.arange(1, n + 1, dtype=torch.float64) * GOLDEN_RATIO % 1)


def count_held_out(data: FrameSource, recipe: Recipe) -> HeldOutSize:
    """How many frames the held-out losses are measured on, and of how many clips these are taken."""
    return HeldOutSize(min(recipe.watch.held_out_frames, len(data)), len(data.clips.ids))


@torch.no_grad()
def compute_held_out_losses(
    network: UNet,
    data: FrameSource,
    recipe: Recipe,
    ranks: Ranks,
    execution: Execution,
    change_batch: ChangeBatch | None = None,
) -> dict[str, float]:
    """Mean losses on held-out frames, with the same frames and noise at each call. Collective.

    `held_out_loss`: with the previous frame visible. `listening_loss`: with its mouth hidden and the mask's
    surroundings from another frame, so that only the audio tells how the mouth moves. `deaf_loss`: the same
    without the audio; how much higher it is shows how much the network uses the audio.
    """
    n_frames = count_held_out(data, recipe).frames
    frames = np.linspace(0, len(data) - 1, n_frames).round().astype(np.int64)
    gamma = spread_gammas(n_frames, torch.from_numpy(gammas(recipe.noise)))
    micro = execution.choose_micro_batch(recipe, ranks.world)

    def measure(*, listening: bool = False, deaf: bool = False) -> Tensor:
        losses = torch.zeros(n_frames, dtype=torch.float64)
        for start in ranks.split(range(0, n_frames, micro)):
            part = slice(start, start + micro)
            batch = _make_held_out_batch(data, frames[part], gamma[part], recipe, listening=listening)
            if change_batch is not None:
                batch = change_batch(batch)
            if deaf:
                batch = replace(batch, has_audio=torch.zeros_like(batch.has_audio))
            with execution.autocast(data.device):
                losses[part] = compute_losses(network, batch, recipe).double().cpu()
        return ranks.sum(losses)

    losses = measure()
    metrics = {"held_out_loss": float(losses.mean())}
    if recipe.distill:  # all losses are of one noise level, and with the audio
        return metrics | {"listening_loss": float(measure(listening=True).mean())}
    for name, total, n in zip(BAND_NAMES, *sum_by_band(losses, gamma), strict=True):
        if n:
            metrics[f"held_out_log_snr/{name}"] = float(total / n)
    metrics["listening_loss"] = float(measure(listening=True).mean())
    if recipe.network.audio.null:
        metrics["deaf_loss"] = float(measure(listening=True, deaf=True).mean())
    return metrics


@torch.no_grad()
def draw_held_out_picture(network: UNet, data: FrameSource, recipe: Recipe, execution: Execution) -> Tensor:
    """An image (H', W', 3) uint8 with a row for each of some held-out frames.

    The columns: noise in the mask, estimates of the frame at three noise levels, ground truth with its box.
    """
    n = min(recipe.watch.pictures, len(data))
    frames = ((np.arange(n) + 0.5) * len(data) / n).astype(np.int64)
    estimates = []
    for gamma in PICTURE_GAMMAS:
        batch = _make_held_out_batch(data, frames, torch.full((n,), gamma), recipe)
        y = add_noise_in_mask(batch)
        with execution.autocast(y.device):
            prediction = predict(network, y, batch, recipe)
        base = select_base(batch.identity, recipe)
        y_0 = estimate_y_0(y, prediction, batch.gamma, recipe.noise.target, base)
        estimates.append(to_pixels(torch.where(batch.mask > 0, y_0, batch.y_0)).cpu())
    noise = to_pixels(torch.where(batch.mask > 0, batch.epsilon, batch.y_0)).cpu()
    masks, truth = batch.mask.cpu(), to_pixels(batch.y_0).cpu()
    boxed = [draw_box(image, _find_box(mask)) for image, mask in zip(truth, masks, strict=True)]
    return tile_images([[noise[i], *(column[i] for column in estimates), boxed[i]] for i in range(n)])


def _find_box(mask: Tensor) -> Tensor:
    """x0 y0 x1 y1 of the ones in (1, H, W), x1 and y1 exclusive."""
    low, high = torch.aminmax(mask[0].nonzero(), dim=0)
    return torch.cat([low.flip(0), high.flip(0) + 1])


def _make_held_out_batch(
    data: FrameSource, frames: NDArray[np.int64], gamma: Tensor, recipe: Recipe, *, listening: bool = False
) -> Batch:
    return make_evaluation_batch(
        data,
        frames,
        gamma,
        seed=recipe.seed,
        frames=recipe.frames,
        audio=recipe.network.audio,
        listening=listening,
    )


class RunMonitor:
    """Logs metrics, evaluates on held-out frames, checks losses and saves checkpoints of one run.

    All methods are collective: call them on every rank.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        digest: str,
        ranks: Ranks,
        run_log: RunLog | None,
        start: StartRecord | None = None,
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.digest = digest
        self.start = start
        self.ranks = ranks
        self.run_log = run_log  # the first rank's
        self.held_out_loss: tuple[int, float] | None = None  # step, and the loss that selects the best
        self.held_out_size: HeldOutSize | None = None  # what it was measured on

    def log_metrics(self, state: TrainState, window: MetricsWindow) -> None:
        """Write the metrics of a window. Raises ModelError when the loss is not finite or too large."""
        metrics = window.summarize(self.ranks)
        self._check_loss(state, "loss", metrics["loss"], metrics["grad_norm"])
        if self.run_log is None:
            return
        seconds = time.perf_counter() - window.start - window.pause_seconds
        rate = state.optimizer.param_groups[0]["lr"]
        speed = {
            "learning_rate": rate,
            "frames_per_second": len(window.grad_norms) * self.recipe.batch / seconds,
            "waiting_for_data": window.wait_seconds / seconds,
            "memory_gb": measure_memory_gb(self.ranks.device),
        }
        self.run_log.write_metrics(state.step, metrics | speed)
        log.info(
            "step %d/%d  loss %.4f  lr %.2e  grad %.3f  %.4g frames/s  waiting %.1f %%  %.1f GB",
            state.step, self.recipe.steps, metrics["loss"], rate, metrics["grad_norm"],
            speed["frames_per_second"], 100 * speed["waiting_for_data"], speed["memory_gb"],
        )  # fmt: skip

    def evaluate(
        self,
        state: TrainState,
        held_out: FrameSource,
        execution: Execution,
        change_batch: ChangeBatch | None = None,
    ) -> None:
        """Measure the loss on held-out frames and draw the picture, with the averaged weights."""
        metrics = compute_held_out_losses(
            state.ema, held_out, self.recipe, self.ranks, execution, change_batch
        )
        self._check_loss(state, "held-out loss", metrics["held_out_loss"])
        for name, value in metrics.items():
            if not math.isfinite(value):
                self._check_loss(state, name, value)
        self.held_out_loss = state.step, metrics[SELECTING_LOSSES[self.recipe.best_by]]
        self.held_out_size = count_held_out(held_out, self.recipe)
        if self.run_log is None:
            return
        self.run_log.write_metrics(state.step, metrics)
        if self.recipe.watch.pictures and not self.recipe.distill:  # which knows none of their noise levels
            picture = draw_held_out_picture(state.ema, held_out, self.recipe, execution)
            self.run_log.write_picture(state.step, "held-out", picture)
        deaf = f", {metrics['deaf_loss']:.4f} without audio" if "deaf_loss" in metrics else ""
        log.info(
            "step %d  held-out loss %.4f  by listening %.4f%s",
            state.step, metrics["held_out_loss"], metrics["listening_loss"], deaf,
        )  # fmt: skip

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, unless there is one of this step, and remove old ones."""
        if self.ranks.is_first and not any(
            checkpoint.step == state.step for checkpoint in list_checkpoints(self.run)
        ):
            step, loss = self.held_out_loss or (None, None)
            measured_loss = loss if step == state.step else None
            save_checkpoint(
                state, self.run, self.recipe, self.digest, measured_loss, self.start, self.held_out_size
            )
            prune_checkpoints(self.run, self.recipe.watch.keep_last)
        self.ranks.barrier()

    def check_state(self, state: TrainState, window: MetricsWindow, losses: Tensor) -> None:
        """Raise ModelError for a diverged state, so that it is not saved.

        ``losses`` are computed with the current weights: those of the window are from before the last update.
        """
        if window.losses:
            metrics = window.summarize(self.ranks)
            self._check_loss(state, "loss", metrics["loss"], metrics["grad_norm"])
        loss = self.ranks.sum(losses.detach().double().mean().cpu()) / self.ranks.world
        self._check_loss(state, "loss after the step", float(loss))

    def _check_loss(self, state: TrainState, name: str, loss: float, grad_norm: float = 0.0) -> None:
        limit = self.recipe.max_loss
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and not (limit and loss > limit):
            return
        checkpoints = list_checkpoints(self.run) if self.run.is_dir() else []
        good = "there is no checkpoint yet"
        if checkpoints:
            good = f"the last good checkpoint is {checkpoints[-1].path}"
        problem = f"more than max_loss {limit:g}" if finite else "not finite"
        norm = f", gradient norm {grad_norm:.4g}" if grad_norm else ""
        raise ModelError(
            f"step {state.step}: {name} {loss:.4g}{norm}: {problem}; {good}; "
            f"try a lower optim.learning_rate than {self.recipe.optim.learning_rate:g}"
        )


def measure_memory_gb(device: torch.device) -> float:
    """The peak of the GPU's memory, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
