"""Which way of training is fastest on a processor: a few steps of each, before a run that lasts."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from model.batch import Batch
from model.execution import Execution, emulates_bf16
from model.objective import compute_losses
from model.recipe import Recipe
from model.signals import explain_out_of_memory
from model.unet import UNet

# A run that would last longer as it is pays for the compiler, which takes one to three minutes of a core.
LONG_SECONDS = 1800.0
MIN_STEPS = 300  # shorter runs are not even measured
MIN_GAIN = 1.1  # as many times as fast as the reference; less is within the noise
N_TIMED_STEPS = 3

Measure = Callable[[UNet, Recipe, torch.device, Execution], float]

log = logging.getLogger(__name__)


def measure_step_seconds(network: UNet, recipe: Recipe, device: torch.device, execution: Execution) -> float:
    """How long a training step takes here, not compiled: the second of two on a batch of zeros.

    Changes the network.
    """
    seconds, _ = _time_steps(network, recipe, device, replace(execution, compile=False), n_steps=1)
    return seconds


def measure_trial(network: UNet, recipe: Recipe, device: torch.device, execution: Execution) -> float:
    """How long a step takes, for a comparison; infinite where the compiler that it needs does not work."""
    seconds, is_compiled = _time_steps(network, recipe, device, execution, N_TIMED_STEPS)
    return math.inf if execution.compile and not is_compiled else seconds


def _time_steps(
    network: UNet, recipe: Recipe, device: torch.device, execution: Execution, n_steps: int
) -> tuple[float, bool]:
    """Seconds of a step, the median of ``n_steps`` after one more, and whether they were compiled."""
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = make_empty_batch(recipe, execution.choose_micro_batch(recipe, 1), device)

    def compute(batch: Batch) -> torch.Tensor:
        return compute_losses(network, batch, recipe)

    def run_step(compute: Callable[[Batch], torch.Tensor]) -> None:
        with execution.autocast(device):
            losses = compute(batch)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        float(losses.detach().sum())  # waits for the GPU

    chosen = execution.try_compile(compute, run_step, device)
    run_step(chosen)
    seconds = []
    for _ in range(n_steps):
        began = time.perf_counter()
        run_step(chosen)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * recipe.batch / len(batch), chosen is not compute


def choose_execution(
    execution: Execution,
    recipe: Recipe,
    device: torch.device,
    n_steps: int,
    measure: Measure = measure_trial,
) -> Execution:
    """``execution`` with the fastest way of training here, where it leaves precision and compiler open.

    On a processor, and for ``n_steps`` that would last LONG_SECONDS or more. Tried are fp32 without the
    compiler, which is the reference and what shorter runs get; compiled fp32; and compiled bf16, unless the
    processor would emulate it. The results differ by rounding. Raises ModelError when memory is too small.
    """
    if not execution.is_open(device) or n_steps < MIN_STEPS:
        return execution

    def try_execution(candidate: Execution) -> float:
        with torch.random.fork_rng(devices=[]):
            network = UNet(recipe.network)
        frames = execution.choose_micro_batch(recipe, 1)
        advice = f"try --micro-batch {max(1, frames // 2)}"
        with explain_out_of_memory(f"a micro-batch of {frames} frames", device, advice=advice):
            return measure(network, recipe, device, candidate)

    reference = replace(execution, precision="fp32", compile=False)
    seconds = {reference: try_execution(reference)}
    if seconds[reference] * n_steps < LONG_SECONDS:
        return execution
    log.info("trial of ways to train here, some minutes; --precision fp32 --no-compile goes without")
    seconds |= {
        candidate: try_execution(candidate)
        for candidate in (
            replace(execution, precision="fp32", compile=True),
            *([] if emulates_bf16(device) else [replace(execution, precision="bf16", compile=True)]),
        )
    }
    fastest = min(seconds, key=lambda candidate: seconds[candidate])
    if seconds[reference] < MIN_GAIN * seconds[fastest]:
        fastest = reference
    measured = ", ".join(f"{_describe(each)} {value:.3g}" for each, value in seconds.items())
    log.info("seconds a step: %s; this run uses %s", measured, _describe(fastest))
    return fastest


def _describe(execution: Execution) -> str:
    return f"{'compiled ' if execution.compile else ''}{execution.precision}"


def make_empty_batch(recipe: Recipe, n: int, device: torch.device) -> Batch:
    """A batch of n zeros that a recipe's network takes."""
    size, audio = recipe.network.size, recipe.network.audio
    image, mask = torch.zeros(n, 3, size, size, device=device), torch.ones(n, 1, size, size, device=device)
    speech = None
    if audio.takes_speech:
        speech = torch.zeros(n, audio.speech_rows, audio.speech_size, dtype=torch.float16, device=device)
    return Batch(
        y_0=image,
        previous=image,
        identity=image,
        context=image,
        mask=mask,
        lips=mask,
        mels=torch.zeros(n, audio.rows, audio.n_mels, device=device),
        speech=speech,
        has_audio=torch.ones(n, dtype=torch.bool, device=device),
        gamma=torch.full((n,), 0.5, device=device),
        epsilon=image,
        dropout_keys=torch.zeros(n, dtype=torch.int32, device=device),
    )
