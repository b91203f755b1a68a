"""Training speed: ours and the paper's way, on the same network and the same made data, on what is here.

    python benchmarks/train.py --ablate --profile kernels.txt --json train.json
    python benchmarks/train.py --small                      (half a minute on a CPU)

Ours is ``model.loop.train`` as users run it, read from the journal that it writes. The paper's way is the
authors' training step, in eager mode and fp32: their Adam, their average of the weights, their loss, a float
batch from the host at every step. Two things are in its favour: the network is ours, where theirs computes
attention twice, and their loader, which decodes files and runs MediaPipe on each, is left out.

frames/s is the median of 8 windows, after one that is not counted; compiling never is. "waiting" is the
share of the host's time spent in the data's code, which on a GPU includes standing behind the step before;
"data ms" is a batch made (theirs: moved) with nothing else running. Memory is the GPU's peak, on a CPU the
process, and TF32 is nothing there. A training step counts as three forward passes. The ways run one after
another: where others use the machine too, a ratio means no more than min..max lets it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from model import loop, objective
from model import run_log as journal
from model.audio import SILENCE_DB
from model.batch import make_evaluation_batch
from model.blocks import ResidualBlock
from model.checkpoint import TrainState
from model.denoiser import add_noise, gammas
from model.epochs import EpochCounter, batches
from model.execution import Execution, Ranks, joined
from model.recipe import PAPER_FRAMES, PAPER_OPTIM, PRESETS, ModelError, OptimParams, Recipe, build_recipe
from model.unet import UNet, UNetParams, count_parameters
from shards.frames import ClipTable
from shards.resident import Resident
from shards.schema import MELS_PER_FRAME

WINDOWS = 8  # that count
WARM_UP_STEPS = 3  # the first steps pick algorithms and make the optimizer's state
NEVER = 10**9
FORWARDS_PER_STEP = 3  # the backward pass costs two
# Dense bf16, by what PyTorch calls the device; a slice or another form of the same chip has another.
PEAK_TFLOPS = {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H200": 989.0}

N_CLIPS, N_CLIPS_SMALL = 64, 4
FRAMES_PER_CLIP = 75  # GRID's
MOUTH = (0.20, 0.48, 0.80, 0.92)  # x0 y0 x1 y1 of the mask box, as shares: 26 % of the frame
HOST_BATCHES = 4  # of the paper's way, taken in turn
PAPER_BATCH = 40  # per GPU
# For --small: the demo's network on 8 x 8 squares.
TINY = build_recipe(
    "demo", {"network": {"size": 64, "top": 0, "patch": 8, "attention_sizes": (8,)}, "batch": 4}
)


@dataclass(frozen=True)
class Speed:
    """What one way of training reached."""

    batch: int
    windows: list[float]  # frames/s
    waiting: float  # share of the time
    data_ms: float
    memory_gb: float

    @property
    def frames_per_second(self) -> float:
        return statistics.median(self.windows)

    @property
    def ms_per_step(self) -> float:
        return 1000 * self.batch / self.frames_per_second


# --- the device -----------------------------------------------------------------------------------


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_afresh(device: torch.device) -> None:
    """Forget what the way before has left: its memory, and its compiled code."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Trying out algorithms takes more memory than training does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


@contextlib.contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """In fp32 proper, or in TF32, which is PyTorch's default for convolutions alone."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # theirs too, since their seed is -1
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


# --- what is trained, and on what -----------------------------------------------------------------


def made_data(params: UNetParams, n_clips: int, device: torch.device) -> Resident:
    """Clips of noise with the mouth boxes of faces, as the loader would have put them on the device."""
    chance = np.random.default_rng(0)
    n_frames, audio = n_clips * FRAMES_PER_CLIP, params.audio
    pad = max(audio.rows_before, audio.rows_after)
    rows = MELS_PER_FRAME * FRAMES_PER_CLIP + 2 * pad  # of a clip
    frames = chance.integers(0, 256, (n_frames, params.size, params.size, 3), np.uint8)
    shakes = chance.integers(-2, 3, (n_frames, 4))
    boxes = (np.array(MOUTH) * params.size + shakes).round().astype(np.int16)
    clip, place = np.divmod(np.arange(n_frames), FRAMES_PER_CLIP)

    def there(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Resident(
        clips=ClipTable.of([f"made{i:03d}" for i in range(n_clips)], [FRAMES_PER_CLIP] * n_clips),
        frames=there(frames),
        boxes=there(boxes),
        mels=there(chance.uniform(SILENCE_DB, 0, (n_clips * rows, audio.n_mels)).astype(np.float32)),
        mel_row=there(clip * rows + pad + MELS_PER_FRAME * place),
    )


def forward_gflop(params: UNetParams) -> float:
    """Of one frame, counted on tensors without numbers."""
    with torch.device("meta"):
        x = torch.empty(1, params.in_channels, params.size, params.size)
        level, mels = torch.empty(1), torch.empty(1, params.audio.rows, params.audio.n_mels)
        # attention as plain products: the counter does not know every device's fused one
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            UNet(params)(x, level, mels)
    return counter.get_total_flops() / 1e9


def steps_per_window(seconds_per_step: float, seconds: float) -> int:
    return max(1, round(seconds / WINDOWS / seconds_per_step))


def alone_ms(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    work()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return 1000 * (time.perf_counter() - started) / repeats


# --- our way --------------------------------------------------------------------------------------

Change = Callable[[TrainState], contextlib.AbstractContextManager[object]]


def train_on(
    state: TrainState, data: Resident, recipe: Recipe, machine: Execution, ranks: Ranks, run: Path,
    *, steps_per_line: int, lines: int,
) -> list[dict[str, float]]:  # fmt: skip
    """``loop.train`` for some more steps, and what it then says of itself. Nothing is evaluated."""
    whole_lines = -(-state.step // steps_per_line) + lines
    watch = replace(recipe.watch, log_every=steps_per_line, evaluate_every=NEVER, save_every=NEVER)
    longer = replace(recipe, steps=whole_lines * steps_per_line, watch=watch)
    loop.train(state, data, None, recipe=longer, machine=machine, ranks=ranks, run=run, digest="made")
    return journal.read_metrics(run / journal.METRICS)[-lines:]


def our_way(
    data: Resident,
    recipe: Recipe,
    machine: Execution,
    ranks: Ranks,
    seconds: float,
    changed: Change = contextlib.nullcontext,
) -> Speed:
    """The loop starts its clock after compiling, and stops it when the GPU is done: its figures stand."""
    start_afresh(ranks.device)
    state = loop.create_state(recipe, ranks.device)
    with changed(state), tempfile.TemporaryDirectory() as folder:
        inputs = (state, data, recipe, machine, ranks, Path(folder))
        warm = train_on(*inputs, steps_per_line=WARM_UP_STEPS, lines=2)[-1]
        n_steps = steps_per_window(recipe.batch / warm["frames_per_second"], seconds)
        forget_peak(ranks.device)
        told = train_on(*inputs, steps_per_line=n_steps, lines=1 + WINDOWS)[1:]
        memory = memory_gb(ranks.device)
        made = batches(data, recipe, ranks, machine, state.drawn, EpochCounter(len(data)))
        data_ms = alone_ms(lambda: next(made), ranks.device)
    return Speed(
        recipe.batch,
        [line["frames_per_second"] for line in told],
        statistics.mean(line["waiting_for_data"] for line in told),
        data_ms,
        memory,
    )


# --- the paper's way ------------------------------------------------------------------------------


class PlainDropout(nn.Module):
    """PyTorch's, as the authors have it, in the place of ours, which takes keys."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor, _words: None) -> Tensor:
        return F.dropout(h, self.share, self.training)


class PaperTraining:
    """The authors' training step: their choices, however slow, in our words."""

    def __init__(self, data: Resident, recipe: Recipe, batch: int, device: torch.device) -> None:
        self.device = device
        self.takes_mask = recipe.network.mask_channel
        self.table = torch.from_numpy(gammas(recipe.noise)).to(device, torch.float32)
        self.network = UNet(recipe.network)
        for module in self.network.modules():
            if isinstance(module, ResidualBlock):
                module.dropout = PlainDropout(recipe.network.dropout)
        self.network = self.network.to(device).train()
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=PAPER_OPTIM.learning_rate)
        # Theirs come from 40 workers, each of which opens three images and a file of mels for every sample
        # and finds its face with MediaPipe. Here they are ready, and pinned.
        self.host_batches = cycle(
            [host_batch(data, recipe, batch, number, device) for number in range(HOST_BATCHES)]
        )
        self.waited_seconds = 0.0

    def fetch(self) -> list[Tensor]:
        return [part.to(self.device) for part in next(self.host_batches)]

    def step(self) -> None:
        before = time.perf_counter()
        y_0, previous, identity, mask, mels = self.fetch()
        self.waited_seconds += time.perf_counter() - before

        self.optimizer.zero_grad()
        t = torch.randint(1, len(self.table), (len(y_0),), device=self.device)
        gamma = torch.lerp(self.table[t - 1], self.table[t], torch.rand_like(self.table[t]))
        epsilon = torch.randn_like(y_0)
        y = add_noise(y_0, epsilon, gamma) * mask + (1 - mask) * y_0
        shown = [y, previous, identity, mask] if self.takes_mask else [y, previous, identity]
        said = self.network(torch.cat(shown, dim=1), gamma, mels)
        loss = F.mse_loss(mask * epsilon, mask * said)
        loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the GPU
        decay = PAPER_OPTIM.ema_decay
        for average, weight in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            average.data = average.data * decay + (1 - decay) * weight.data

    def seconds_of(self, n_steps: int) -> float:
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(n_steps):
            self.step()
        synchronize(self.device)
        return time.perf_counter() - started


def host_batch(
    data: Resident, recipe: Recipe, batch: int, number: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Frame, previous, identity, mask, mels: float, in the host's memory, each channel by itself."""
    shown = make_evaluation_batch(
        data,
        np.random.default_rng(number).integers(len(data), size=batch),
        torch.ones(batch),
        seed=0,
        frames=PAPER_FRAMES,
        audio=recipe.network.audio,
    )
    parts = (shown.y_0, shown.previous, shown.identity, shown.mask, shown.mels)
    host = tuple(part.cpu().contiguous() for part in parts)
    return tuple(part.pin_memory() for part in host) if device.type == "cuda" else host


def papers_way(
    data: Resident, recipe: Recipe, batch: int, device: torch.device, seconds: float, *, tf32: bool
) -> Speed:
    start_afresh(device)
    with float32_products(tf32=tf32):
        training = PaperTraining(data, recipe, batch, device)
        training.seconds_of(WARM_UP_STEPS)
        n_steps = steps_per_window(training.seconds_of(WARM_UP_STEPS) / WARM_UP_STEPS, seconds)
        training.seconds_of(n_steps)
        forget_peak(device)
        training.waited_seconds = 0.0
        windows = [training.seconds_of(n_steps) for _ in range(WINDOWS)]
        return Speed(
            batch,
            [n_steps * batch / window for window in windows],
            training.waited_seconds / sum(windows),
            alone_ms(training.fetch, device),
            memory_gb(device),
        )


# --- ours with one thing switched off -------------------------------------------------------------


@contextlib.contextmanager
def channels_first(state: TrainState) -> Iterator[None]:
    from torch._inductor import config as compiler

    def contiguous(*shown: Any) -> Tensor:
        return network_input(*shown).contiguous()

    network_input = objective.network_input
    for network in (state.network, state.ema):
        network.to(memory_format=torch.contiguous_format)
    # the compiler would lay out the convolutions' inputs anew
    with mock.patch.object(objective, "network_input", contiguous), compiler.patch(layout_optimization=False):
        yield


@contextlib.contextmanager
def default_adamw(state: TrainState) -> Iterator[None]:
    """On a GPU that is the one that goes over lists of tensors; on a CPU a Python loop."""
    wanted = {name: state.optimizer.defaults[name] for name in ("lr", "betas", "weight_decay")}
    state.optimizer = torch.optim.AdamW(state.network.parameters(), **wanted)
    yield


@torch.no_grad()
def update_ema_one_by_one(state: TrainState, params: OptimParams) -> None:
    for average, weight in zip(state.ema.parameters(), state.network.parameters(), strict=True):
        average.lerp_(weight, 1 - params.ema_decay)


@contextlib.contextmanager
def ema_one_by_one(state: TrainState) -> Iterator[None]:
    with mock.patch.object(loop, "update_ema", update_ema_one_by_one):
        yield


def ablations(machine: Execution, device: torch.device) -> dict[str, tuple[Execution, Change]]:
    """What can be switched off here: the other way of running, by what it lacks."""
    same: Change = contextlib.nullcontext
    ways: dict[str, tuple[Execution, Change]] = {
        "channels_last": (machine, channels_first),
        "fused AdamW": (machine, default_adamw),
        "foreach EMA": (machine, ema_one_by_one),
    }
    if is_compiled(machine, device):
        ways = {"compile": (replace(machine, compile=False), same)} | ways
    if device.type == "cuda":
        ways = {"bf16": (replace(machine, precision="fp32"), same)} | ways  # TF32 then, as the loop has it
    return ways


def is_compiled(machine: Execution, device: torch.device) -> bool:
    return device.type == "cuda" if machine.compile is None else machine.compile


# --- where the time goes --------------------------------------------------------------------------

PROFILED_STEPS = 5
LISTED = 25
# Events that span kernels which are listed by themselves.
SPANS = ("ProfilerStep", "Torch-Compiled", "## ", "Optimizer.")
# The first that is found in a kernel's name, upper or lower case. Order tells: attention's kernels may be
# cuDNN's, implicit GEMMs are convolutions, and the compiler names a bias after its convolution.
KINDS = (
    ("attention", r"attention|flash|fmha|sdpa"),
    ("norm and elementwise", r"^triton_(?!tem_)"),
    ("optimizer, clip, EMA", r"multi_tensor|foreach|adam"),
    ("random numbers", r"distribution_|aten::normal_"),
    ("copy", r"memcpy|memset|copy|nchwtonhwc|nhwctonchw|aten::(cat|clone|contiguous|to)$"),
    ("convolution", r"conv|fprop|dgrad|wgrad|cudnn"),
    ("matrix product", r"gemm|gemv|cublas|nvjet|cutlass|splitk|::(add|b|badd)?b?mm$|^triton_tem_"),
    ("norm and elementwise", r"norm|moments|elementwise|reduce|softmax|aten::"),
)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a GPU, or operator of a CPU, over a training step."""

    name: str
    kind: str
    ms: float
    calls: float


def kind_of(name: str) -> str:
    return next((kind for kind, words in KINDS if re.search(words, name, re.IGNORECASE)), "other")


def profiled(
    data: Resident, recipe: Recipe, machine: Execution, ranks: Ranks
) -> tuple[list[Kernel], dict[str, float]]:
    """Kernels of five steps of our way, the dearest first; the share of each kind in them."""
    on_gpu = ranks.device.type == "cuda"
    start_afresh(ranks.device)
    state = loop.create_state(recipe, ranks.device)
    found: list[Any] = []
    update_ema = loop.update_ema
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            # what is waited for is compiled, and picks its algorithms
            schedule=schedule(wait=WARM_UP_STEPS, warmup=1, active=PROFILED_STEPS, repeat=1),
            on_trace_ready=lambda ready: found.extend(ready.key_averages()),
        ) as profiler,
    ):

        def update_and_count(state: TrainState, params: OptimParams) -> None:
            """The last act of a step."""
            update_ema(state, params)
            synchronize(ranks.device)
            profiler.step()

        with mock.patch.object(loop, "update_ema", update_and_count):
            n_steps = WARM_UP_STEPS + 1 + PROFILED_STEPS
            train_on(state, data, recipe, machine, ranks, Path(folder), steps_per_line=n_steps, lines=1)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = []
    for event in found:
        if event.device_type != wanted or event.is_user_annotation or event.key.startswith(SPANS):
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kernels.append(
            Kernel(event.key, kind_of(event.key), us / 1000 / PROFILED_STEPS, event.count / PROFILED_STEPS)
        )
    kernels.sort(key=lambda kernel: -kernel.ms)
    total = sum(kernel.ms for kernel in kernels)
    shares: dict[str, float] = {}
    for kernel in kernels:
        shares[kernel.kind] = shares.get(kernel.kind, 0.0) + kernel.ms / total
    return kernels, dict(sorted(shares.items(), key=lambda item: -item[1]))


def profile_lines(kernels: list[Kernel]) -> Iterator[str]:
    total = sum(kernel.ms for kernel in kernels)
    yield f"{'ms/step':>9}{'share':>8}{'calls/step':>12}  {'kind':<22}name"
    for kernel in kernels[:LISTED]:
        yield (
            f"{kernel.ms:>9.3f}{kernel.ms / total:>8.1%}{kernel.calls:>12.1f}  {kernel.kind:<22}"
            f"{kernel.name[:160]}"
        )


# --- the command ----------------------------------------------------------------------------------

HEADINGS = f"{'way':<20}{'batch':>6}{'frames/s':>10}{'min..max':>18}{'ms/step':>10}{'memory GB':>11}" \
           f"{'waiting':>9}{'data ms':>9}{'TFLOP/s':>9}{'of peak':>9}"  # fmt: skip


def tried(measure: Callable[[], Speed]) -> Speed | str:
    """The figures, or why there are none; the other ways go on."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return "does not fit in the GPU's memory"
    except ModelError as err:
        return str(err)


def tflops_of(speed: Speed, gflop: float) -> float:
    return FORWARDS_PER_STEP * gflop * speed.frames_per_second / 1000


def row(name: str, speed: Speed | str, gflop: float, peak: float | None) -> str:
    if isinstance(speed, str):
        return f"{name:<20}{speed}"
    tflops = tflops_of(speed, gflop)
    span = f"{min(speed.windows):.1f}..{max(speed.windows):.1f}"
    share = f"{tflops / peak:.1%}" if peak else "-"
    return (
        f"{name:<20}{speed.batch:>6}{speed.frames_per_second:>10.1f}{span:>18}{speed.ms_per_step:>10.1f}"
        f"{speed.memory_gb:>11.2f}{speed.waiting:>9.1%}{speed.data_ms:>9.2f}{tflops:>9.2f}{share:>9}"
    )


def story_of(speed: Speed | str, gflop: float, peak: float | None) -> dict[str, Any]:
    if isinstance(speed, str):
        return {"problem": speed}
    tflops = tflops_of(speed, gflop)
    return {
        "batch": speed.batch,
        "frames_per_second": speed.frames_per_second,
        "windows": speed.windows,
        "ms_per_step": speed.ms_per_step,
        "memory_gb": speed.memory_gb,
        "waiting_for_data": speed.waiting,
        "data_ms": speed.data_ms,
        "tflops": tflops,
        "share_of_peak": tflops / peak if peak else None,
    }


def ratio(speed: Speed | str, other: Speed | str) -> float | None:
    if isinstance(speed, str) or isinstance(other, str):
        return None
    return speed.frames_per_second / other.frames_per_second


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["tiny", *PRESETS], default="multi-speaker")
    parser.add_argument("--batch", type=int, help="frames per step of ours; default: the preset's")
    parser.add_argument(
        "--paper-batch", type=int, default=PAPER_BATCH, help="of the paper's way; default: 40"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="per way, without warming up; default: 20"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="ours; default: on a GPU")
    parser.add_argument("--ablate", action="store_true", help="ours again, one thing off at a time")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="the dearest kernels of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.add_argument(
        "--small", action="store_true", help="other defaults: preset tiny, batches of 4, 2 seconds per way"
    )
    if parser.parse_args().small:
        parser.set_defaults(preset="tiny", batch=TINY.batch, paper_batch=TINY.batch, seconds=2.0)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    recipe = {"tiny": TINY, **PRESETS}[asked.preset]
    recipe = replace(recipe, batch=asked.batch or recipe.batch)
    machine = Execution(compile=asked.compile)
    try:
        with joined(asked.device) as ranks:
            data = made_data(recipe.network, N_CLIPS_SMALL if asked.small else N_CLIPS, ranks.device)
            story = measured(asked, data, recipe, machine, ranks)
            write(asked.json, json.dumps(story, indent=1))
            if asked.profile:
                kernels, story["profile"] = profiled(data, recipe, machine, ranks)
                write(asked.profile, "\n".join(profile_lines(kernels)))
                write(asked.json, json.dumps(story, indent=1))
                shares = ", ".join(f"{kind} {share:.1%}" for kind, share in story["profile"].items())
                print(f"ours, {sum(kernel.ms for kernel in kernels):.1f} ms in kernels a step: {shares}")
    except ModelError as err:
        raise SystemExit(str(err)) from err


def write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text + "\n")


def measured(
    asked: argparse.Namespace, data: Resident, recipe: Recipe, machine: Execution, ranks: Ranks
) -> dict[str, Any]:
    """Every way, printed line by line; all figures again for ``--json``."""
    device = ranks.device
    name, gflop = device_name(device), forward_gflop(recipe.network)
    peak = PEAK_TFLOPS.get(name)
    with torch.device("meta"):
        n_parameters = count_parameters(UNet(recipe.network))
    print(
        f"{name}, PyTorch {torch.__version__}, {asked.preset}: "
        f"{n_parameters:,} parameters, {gflop:.4g} GFLOP per forward pass of a frame"
    )

    def ours(machine: Execution, changed: Change = contextlib.nullcontext) -> Callable[[], Speed]:
        return lambda: our_way(data, recipe, machine, ranks, asked.seconds, changed)

    def papers(*, tf32: bool) -> Callable[[], Speed]:
        return lambda: papers_way(data, recipe, asked.paper_batch, device, asked.seconds, tf32=tf32)

    ways = {"ours": ours(machine), "paper, fp32": papers(tf32=False), "paper, TF32": papers(tf32=True)}
    if asked.ablate:
        ways |= {f"no {what}": ours(*other) for what, other in ablations(machine, device).items()}
    print(HEADINGS, flush=True)
    speeds: dict[str, Speed | str] = {}
    for way, measure in ways.items():
        speeds[way] = tried(measure)
        print(row(way, speeds[way], gflop, peak), flush=True)
    ratios = {way: ratio(speeds["ours"], speed) for way, speed in speeds.items() if way != "ours"}
    for way, times in ratios.items():
        print(f"ours / {way:<20}{'-' if times is None else f'{times:.2f}'}", flush=True)
    return {
        "device": name,
        "torch": torch.__version__,
        "preset": asked.preset,
        "parameters": n_parameters,
        "forward_gflop": gflop,
        "peak_tflops": peak,
        "to_be_compiled": is_compiled(machine, device),
        "ways": {way: story_of(speed, gflop, peak) for way, speed in speeds.items()},
        "ours_over": ratios,
    }


if __name__ == "__main__":
    main()
