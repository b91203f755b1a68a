"""Looking at a run: means over a window, loss by noise level, held-out loss, pictures, what to keep."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import checkpoint
from model import run_log as journal
from model.batch import Batch, make_evaluation_batch, to_pixels
from model.checkpoint import TrainState
from model.denoiser import draw_gamma, estimate_y_0, gammas, log_snr
from model.execution import Execution, Ranks
from model.objective import asked, compute_losses, noised
from model.recipe import ModelError, Recipe
from model.run_log import RunLog
from model.unet import UNet
from shards.frames import FrameSource

# Borders of the noise bands that the loss is told by, in log-SNR: mostly noise ... mostly picture.
BANDS = (-4.0, 0.0, 4.0)
BAND_NAMES = ("below_-4", "-4_to_0", "0_to_4", "above_4")
PICTURE_GAMMAS = (0.02, 0.5, 0.95)

log = logging.getLogger(__name__)


@dataclass
class MetricsWindow:
    """What happened since the last line of the log; nothing here waits for the GPU until it is read."""

    losses: list[Tensor] = field(default_factory=list)  # (micro,) each
    levels: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    waited_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    paused_seconds: float = 0.0

    def read(self, ranks: Ranks) -> dict[str, float]:
        """Mean loss, and by noise band, over all ranks; the last gradient's norm."""
        losses, gamma = torch.cat(self.losses).double().cpu(), torch.cat(self.levels).double().cpu()
        sums = ranks.total(torch.stack(by_band(losses, gamma)))
        told = {"loss": float(sums[0].sum() / sums[1].sum())}
        for name, total, n in zip(BAND_NAMES, *sums, strict=True):
            if n:
                told[f"loss_log_snr/{name}"] = float(total / n)
        if self.grad_norms:
            told["grad_norm"] = float(self.grad_norms[-1])
        return told


def by_band(losses: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the losses in each noise band, (4,) each."""
    band = torch.bucketize(log_snr(gamma), torch.tensor(BANDS, dtype=gamma.dtype))
    sums = torch.zeros(len(BAND_NAMES), dtype=losses.dtype).index_add_(0, band, losses)
    return sums, torch.bincount(band, minlength=len(BAND_NAMES)).to(losses.dtype)


def even_gammas(n: int, table: Tensor) -> Tensor:
    """``n`` noise levels spread evenly over a schedule, and so is every part of them: (n,)."""
    golden = 0.6180339887498949  # whose multiples, modulo 1, are even in every part
    return draw_gamma(table, torch.arange(1, n + 1, dtype=torch.float64) * golden % 1)


@torch.no_grad()
def held_out_losses(
    network: UNet, data: FrameSource, recipe: Recipe, ranks: Ranks, machine: Execution
) -> dict[str, float]:
    """Mean loss on frames never trained on, the same frames and noise each time. Every rank must ask."""
    n_frames = min(recipe.watch.held_out_frames, len(data))
    index = np.linspace(0, len(data) - 1, n_frames).round().astype(np.int64)
    gamma = even_gammas(n_frames, torch.from_numpy(gammas(recipe.noise)))
    micro = machine.frames_at_once(recipe, ranks.world)
    losses = torch.zeros(n_frames, dtype=torch.float64)
    for start in ranks.own(range(0, n_frames, micro)):
        part = slice(start, start + micro)
        shown = _as_sampled(data, index[part], gamma[part], recipe)
        with machine.autocast(data.device):
            losses[part] = compute_losses(network, shown, recipe).double().cpu()
    ranks.total(losses)
    bands = {
        f"held_out_log_snr/{name}": float(total / n)
        for name, total, n in zip(BAND_NAMES, *by_band(losses, gamma), strict=True)
        if n
    }
    return {"held_out_loss": float(losses.mean())} | bands


@torch.no_grad()
def draw_held_out_frames(network: UNet, data: FrameSource, recipe: Recipe, machine: Execution) -> Tensor:
    """Rows of: input with noise for a mouth, the frame as guessed at three noise levels, truth with box."""
    n = min(recipe.watch.pictures, len(data))
    index = ((np.arange(n) + 0.5) * len(data) / n).astype(np.int64)
    columns = []
    for level in PICTURE_GAMMAS:
        shown = _as_sampled(data, index, torch.full((n,), level), recipe)
        y = noised(shown)
        with machine.autocast(y.device):
            said = asked(network, y, shown, shown.gamma, recipe)
        guessed = estimate_y_0(y, said, shown.gamma, recipe.noise.target)
        columns.append(to_pixels(torch.where(shown.mask > 0, guessed, shown.y_0)).cpu())
    noise = to_pixels(torch.where(shown.mask > 0, shown.epsilon, shown.y_0)).cpu()
    masks, frames = shown.mask.cpu(), to_pixels(shown.y_0).cpu()
    truth = [journal.framed(image, _box_of(mask)) for image, mask in zip(frames, masks, strict=True)]
    return journal.tile_images([[noise[i], *(column[i] for column in columns), truth[i]] for i in range(n)])


def _box_of(mask: Tensor) -> Tensor:
    """x0 y0 x1 y1 of the ones in (1, H, W), x1 and y1 exclusive."""
    low, high = torch.aminmax(mask[0].nonzero(), dim=0)
    return torch.cat([low.flip(0), high.flip(0) + 1])


def _as_sampled(data: FrameSource, index: NDArray[np.int64], gamma: Tensor, recipe: Recipe) -> Batch:
    audio = recipe.network.audio
    return make_evaluation_batch(data, index, gamma, seed=recipe.seed, frames=recipe.frames, audio=audio)


class RunMonitor:
    """Lines, held-out losses and checkpoints of one run."""

    def __init__(self, run: Path, recipe: Recipe, digest: str, ranks: Ranks, book: RunLog | None) -> None:
        self.run = run
        self.recipe = recipe
        self.digest = digest
        self.ranks = ranks
        self.book = book
        self.held_out: tuple[int, float] | None = None  # step, loss

    def tell(self, state: TrainState, window: MetricsWindow, rate: float) -> None:
        told = window.read(self.ranks)
        self._refuse(state, "loss", told["loss"], told["grad_norm"])
        if self.book is None:
            return
        seconds = time.perf_counter() - window.started - window.paused_seconds
        speed = {
            "learning_rate": rate,
            "frames_per_second": len(window.grad_norms) * self.recipe.batch / seconds,
            "waiting_for_data": window.waited_seconds / seconds,
            "memory_gb": _memory_gb(self.ranks.device),
        }
        self.book.record(state.step, told | speed)
        log.info(
            "step %d/%d  loss %.4f  lr %.2e  grad %.3f  %.4g frames/s  waiting %.1f %%  %.1f GB",
            state.step, self.recipe.steps, told["loss"], rate, told["grad_norm"], speed["frames_per_second"],
            100 * speed["waiting_for_data"], speed["memory_gb"],
        )  # fmt: skip

    def evaluate(self, state: TrainState, held: FrameSource, machine: Execution) -> None:
        told = held_out_losses(state.ema, held, self.recipe, self.ranks, machine)
        self._refuse(state, "held-out loss", told["held_out_loss"])
        self.held_out = state.step, told["held_out_loss"]
        if self.book is None:
            return
        self.book.record(state.step, told)
        if self.recipe.watch.pictures:
            picture = draw_held_out_frames(state.ema, held, self.recipe, machine)
            self.book.picture(state.step, "held-out", picture)
        log.info("step %d  held-out loss %.4f", state.step, told["held_out_loss"])

    def save(self, state: TrainState) -> None:
        """Write a checkpoint unless this very step has one."""
        if not self.ranks.is_first:
            self.ranks.meet()
            return
        measured = self.held_out[1] if self.held_out and self.held_out[0] == state.step else None
        if not any(saved.step == state.step for saved in checkpoint.listed(self.run)):
            checkpoint.save(state, self.run, self.recipe, self.digest, measured)
            checkpoint.prune(self.run, self.recipe.watch.keep_last)
        self.ranks.meet()

    def refuse_bad(self, state: TrainState, window: MetricsWindow, after: Tensor) -> None:
        """Keep a state that is broken out of the checkpoints; ``after`` are losses with its very weights."""
        if window.losses:
            told = window.read(self.ranks)
            self._refuse(state, "loss", told["loss"], told["grad_norm"])
        loss = self.ranks.total(after.detach().double().mean().cpu()) / self.ranks.world
        self._refuse(state, "loss after the step", float(loss))

    def _refuse(self, state: TrainState, name: str, loss: float, grad_norm: float = 0.0) -> None:
        limit = self.recipe.max_loss
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite and not (limit and loss > limit):
            return
        saved = checkpoint.listed(self.run) if self.run.is_dir() else []
        good = f"the last good checkpoint is {saved[-1].path}" if saved else "there is no checkpoint yet"
        wrong = f"more than max_loss {limit:g}" if finite else "not finite"
        norm = f", gradient norm {grad_norm:.4g}" if grad_norm else ""
        raise ModelError(
            f"step {state.step}: {name} {loss:.4g}{norm}: {wrong}; {good}; "
            f"try a lower optim.learning_rate than {self.recipe.optim.learning_rate:g}"
        )


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
