"""Training speed: our training loop and the paper's, on one machine, network and synthetic dataset.

    python benchmarks/train.py --ablate --profile kernels.txt --json train.json
    python benchmarks/train.py --small                      (half a minute on a CPU)

Ours is ``model.loop.train`` as users run it, measured by the metrics that it logs. The paper's is the
authors' training step, in eager mode and fp32: their Adam, their average of the weights, their loss, a float
batch from the host at every step. Two things are in its favour: the network is ours, where theirs computes
attention twice, and their loader, which decodes files and runs MediaPipe on each, is left out.

frames/s is the median of 8 windows, after one that is not counted; neither is compilation. "waiting" is the
share of the host's time spent in the data code, which on a GPU includes waiting for the previous step;
"data ms" is the time to make a batch (the paper's: to copy it) with nothing else running. Memory is the peak
of the GPU, on a CPU that of the process; TF32 has no effect on a CPU. A training step counts as three forward
passes. The variants run one after another: if others use the machine, a ratio is only as good as min..max.
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
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from model import loop, objective
from model.audio import SILENCE_DB
from model.batch import make_evaluation_batch
from model.blocks import ResidualBlock
from model.checkpoint import TrainState
from model.denoiser import add_noise, gammas
from model.epochs import EpochCounter, load_batches
from model.execution import Execution, Ranks, join_ranks
from model.monitor import measure_memory_gb
from model.recipe import PAPER_FRAMES, PAPER_OPTIM, PRESETS, ModelError, OptimParams, Recipe, build_recipe
from model.run_log import METRICS, read_metrics
from model.unet import UNet, UNetParams, count_parameters, make_empty_network
from shards.frames import ClipTable
from shards.resident import Resident
from shards.schema import MELS_PER_FRAME

WINDOWS = 8  # that are counted
WARM_UP_STEPS = 3  # the first steps select algorithms and allocate the optimizer's state
NEVER = 10**9
FORWARDS_PER_STEP = 3  # the backward pass costs two
# Dense bf16, by PyTorch's name of the device; a slice or another form of the same chip has another peak.
PEAK_TFLOPS = {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H200": 989.0}

N_CLIPS, N_CLIPS_SMALL = 64, 4
FRAMES_PER_CLIP = 75  # GRID's
MOUTH = (0.20, 0.48, 0.80, 0.92)  # x0 y0 x1 y1 of the mask box, as shares: 26 % of the frame
HOST_BATCHES = 4  # of the paper's loop, used in turn
PAPER_BATCH = 40  # per GPU
# For --small: the demo's network on 8 x 8 squares.
TINY = build_recipe(
    "demo", {"network": {"size": 64, "top": 0, "patch": 8, "attention_sizes": (8,)}, "batch": 4}
)


@dataclass(frozen=True)
class Speed:
    """The measurements of one variant."""

    batch: int
    windows: list[float]  # frames/s
    wait_share: float  # of the time
    data_ms: float
    memory_gb: float

    @property
    def frames_per_second(self) -> float:
        return statistics.median(self.windows)

    @property
    def ms_per_step(self) -> float:
        return 1000 * self.batch / self.frames_per_second


# --- the device -----------------------------------------------------------------------------------


def get_device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_resources(device: torch.device) -> None:
    """Release the memory and the compiled code of the previous variant."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Selecting algorithms takes more memory than training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@contextlib.contextmanager
def set_float32_precision(*, tf32: bool) -> Iterator[None]:
    """Matrix products in fp32, or in TF32, which is PyTorch's default for convolutions only."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # the authors' code too, since its seed is -1
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True


# --- network and data -----------------------------------------------------------------------------


def make_data(
    params: UNetParams, n_clips: int, device: torch.device, *, frames_on_host: bool = False
) -> Resident:
    """Clips of noise with the mask boxes of faces, as the loader puts them on the device.

    ``frames_on_host``: the frames stay in the host's memory, pinned if the device is a GPU.
    """
    rng = np.random.default_rng(0)
    n_frames, audio = n_clips * FRAMES_PER_CLIP, params.audio
    pad = max(audio.rows_before, audio.rows_after)
    rows = MELS_PER_FRAME * FRAMES_PER_CLIP + 2 * pad  # of a clip
    frames = rng.integers(0, 256, (n_frames, params.size, params.size, 3), np.uint8)
    jitter = rng.integers(-2, 3, (n_frames, 4))
    boxes = (np.array(MOUTH) * params.size + jitter).round().astype(np.int16)
    clip, place = np.divmod(np.arange(n_frames), FRAMES_PER_CLIP)

    def to_device(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    host_frames = torch.from_numpy(frames)
    if frames_on_host and device.type == "cuda":
        host_frames = host_frames.pin_memory()
    return Resident(
        clips=ClipTable.from_lengths([f"made{i:03d}" for i in range(n_clips)], [FRAMES_PER_CLIP] * n_clips),
        frames=host_frames if frames_on_host else host_frames.to(device),
        boxes=to_device(boxes),
        mels=to_device(rng.uniform(SILENCE_DB, 0, (n_clips * rows, audio.n_mels)).astype(np.float32)),
        mel_row=to_device(clip * rows + pad + MELS_PER_FRAME * place),
    )


def count_forward_gflop(params: UNetParams) -> float:
    """GFLOP of the forward pass of one frame, counted on meta tensors."""
    with torch.device("meta"):
        x = torch.empty(1, params.in_channels, params.size, params.size)
        level, mels = torch.empty(1), torch.empty(1, params.audio.rows, params.audio.n_mels)
        # attention as matrix products: the counter does not know the fused kernels of every device
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            UNet(params)(x, level, mels)
    return counter.get_total_flops() / 1e9


def choose_steps_per_window(seconds_per_step: float, seconds: float) -> int:
    return max(1, round(seconds / WINDOWS / seconds_per_step))


def measure_ms(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return 1000 * (time.perf_counter() - start) / repeats


# --- our loop -------------------------------------------------------------------------------------

Change = Callable[[TrainState], contextlib.AbstractContextManager[object]]


def train_on(
    state: TrainState, data: Resident, recipe: Recipe, execution: Execution, ranks: Ranks, run: Path,
    *, steps_per_line: int, lines: int,
) -> list[dict[str, float]]:  # fmt: skip
    """``loop.train`` for some more steps without evaluation; returns the metrics that it logs."""
    whole_lines = -(-state.step // steps_per_line) + lines
    watch = replace(recipe.watch, log_every=steps_per_line, evaluate_every=NEVER, save_every=NEVER)
    longer = replace(recipe, steps=whole_lines * steps_per_line, watch=watch)
    loop.train(state, data, None, recipe=longer, execution=execution, ranks=ranks, run=run, digest="made")
    return read_metrics(run / METRICS)[-lines:]


def measure_our_loop(
    data: Resident,
    recipe: Recipe,
    execution: Execution,
    ranks: Ranks,
    seconds: float,
    change: Change = contextlib.nullcontext,
) -> Speed:
    """By the metrics of the loop, whose clock starts after compilation and is read when the GPU is done."""
    release_resources(ranks.device)
    state = loop.create_state(recipe, ranks.device)
    with change(state), tempfile.TemporaryDirectory() as folder:
        inputs = (state, data, recipe, execution, ranks, Path(folder))
        warm = train_on(*inputs, steps_per_line=WARM_UP_STEPS, lines=2)[-1]
        n_steps = choose_steps_per_window(recipe.batch / warm["frames_per_second"], seconds)
        reset_peak_memory(ranks.device)
        metrics = train_on(*inputs, steps_per_line=n_steps, lines=1 + WINDOWS)[1:]
        memory = measure_memory_gb(ranks.device)
        batches = load_batches(data, recipe, ranks, execution, state.position, EpochCounter(len(data)))
        data_ms = measure_ms(lambda: next(batches), ranks.device)
    return Speed(
        recipe.batch,
        [line["frames_per_second"] for line in metrics],
        statistics.mean(line["waiting_for_data"] for line in metrics),
        data_ms,
        memory,
    )


# --- the paper's loop -----------------------------------------------------------------------------


class PlainDropout(nn.Module):
    """PyTorch's dropout, as in the authors' code, in place of ours, which takes keys."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, h: Tensor, _dropout_keys: None) -> Tensor:
        return F.dropout(h, self.share, self.training)


class PaperTraining:
    """The authors' training step: their choices, however slow, in our code."""

    def __init__(self, data: Resident, recipe: Recipe, batch: int, device: torch.device) -> None:
        self.device = device
        self.has_mask_channel = recipe.network.mask_channel
        self.table = torch.from_numpy(gammas(recipe.noise)).to(device, torch.float32)
        self.network = UNet(recipe.network)
        for module in self.network.modules():
            if isinstance(module, ResidualBlock):
                module.dropout = PlainDropout(recipe.network.dropout)
        self.network = self.network.to(device).train()
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=PAPER_OPTIM.learning_rate)
        # The authors' come from 40 workers, each of which opens three images and a file of mels for every
        # sample and finds its face with MediaPipe. Here they are ready in pinned memory.
        self.host_batches = cycle(
            [make_host_batch(data, recipe, batch, number, device) for number in range(HOST_BATCHES)]
        )
        self.wait_seconds = 0.0

    def fetch(self) -> list[Tensor]:
        return [part.to(self.device) for part in next(self.host_batches)]

    def step(self) -> None:
        start = time.perf_counter()
        y_0, previous, identity, mask, mels = self.fetch()
        self.wait_seconds += time.perf_counter() - start

        self.optimizer.zero_grad()
        t = torch.randint(1, len(self.table), (len(y_0),), device=self.device)
        gamma = torch.lerp(self.table[t - 1], self.table[t], torch.rand_like(self.table[t]))
        epsilon = torch.randn_like(y_0)
        y = add_noise(y_0, epsilon, gamma) * mask + (1 - mask) * y_0
        channels = [y, previous, identity, mask] if self.has_mask_channel else [y, previous, identity]
        prediction = self.network(torch.cat(channels, dim=1), gamma, mels)
        loss = F.mse_loss(mask * epsilon, mask * prediction)
        loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the GPU
        decay = PAPER_OPTIM.ema_decay
        for average, weight in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            average.data = average.data * decay + (1 - decay) * weight.data

    def time_steps(self, n_steps: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(n_steps):
            self.step()
        synchronize(self.device)
        return time.perf_counter() - start


def make_host_batch(
    data: Resident, recipe: Recipe, batch: int, number: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Target, previous, identity, mask, mels: float, in the host's memory, channels first."""
    evaluation_batch = make_evaluation_batch(
        data,
        np.random.default_rng(number).integers(len(data), size=batch),
        torch.ones(batch),
        seed=0,
        frames=PAPER_FRAMES,
        audio=recipe.network.audio,
    )
    names = ("y_0", "previous", "identity", "mask", "mels")
    parts = [getattr(evaluation_batch, name) for name in names]
    host = tuple(part.cpu().contiguous() for part in parts)
    return tuple(part.pin_memory() for part in host) if device.type == "cuda" else host


def measure_papers_loop(
    data: Resident, recipe: Recipe, batch: int, device: torch.device, seconds: float, *, tf32: bool
) -> Speed:
    release_resources(device)
    with set_float32_precision(tf32=tf32):
        training = PaperTraining(data, recipe, batch, device)
        training.time_steps(WARM_UP_STEPS)
        n_steps = choose_steps_per_window(training.time_steps(WARM_UP_STEPS) / WARM_UP_STEPS, seconds)
        training.time_steps(n_steps)
        reset_peak_memory(device)
        training.wait_seconds = 0.0
        windows = [training.time_steps(n_steps) for _ in range(WINDOWS)]
        return Speed(
            batch,
            [n_steps * batch / window for window in windows],
            training.wait_seconds / sum(windows),
            measure_ms(training.fetch, device),
            measure_memory_gb(device),
        )


# --- our loop with one thing switched off ---------------------------------------------------------


@contextlib.contextmanager
def use_channels_first(state: TrainState) -> Iterator[None]:
    from torch._inductor import config as compiler

    def stack_contiguous(*args: Any) -> Tensor:
        return stack_channels(*args).contiguous()

    stack_channels = objective.stack_channels
    for network in (state.network, state.ema):
        network.to(memory_format=torch.contiguous_format)
    # the compiler would change the layout of the convolutions' inputs
    patch = mock.patch.object(objective, "stack_channels", stack_contiguous)
    with patch, compiler.patch(layout_optimization=False):
        yield


@contextlib.contextmanager
def use_default_adamw(state: TrainState) -> Iterator[None]:
    """The multi-tensor implementation on a GPU, a Python loop on a CPU."""
    settings = {name: state.optimizer.defaults[name] for name in ("lr", "betas", "weight_decay")}
    state.optimizer = torch.optim.AdamW(state.network.parameters(), **settings)
    yield


@torch.no_grad()
def update_ema_one_by_one(state: TrainState, params: OptimParams) -> None:
    for average, weight in zip(state.ema.parameters(), state.network.parameters(), strict=True):
        average.lerp_(weight, 1 - params.ema_decay)


@contextlib.contextmanager
def use_ema_one_by_one(state: TrainState) -> Iterator[None]:
    with mock.patch.object(loop, "update_ema", update_ema_one_by_one):
        yield


def list_ablations(execution: Execution, device: torch.device) -> dict[str, tuple[Execution, Change]]:
    """Variants of our loop by the name of what is switched off, as far as this device has it."""
    no_change: Change = contextlib.nullcontext
    variants: dict[str, tuple[Execution, Change]] = {
        "channels_last": (execution, use_channels_first),
        "fused AdamW": (execution, use_default_adamw),
        "foreach EMA": (execution, use_ema_one_by_one),
    }
    if is_compiled(execution, device):
        variants = {"compile": (replace(execution, compile=False), no_change)} | variants
    if device.type == "cuda":
        # in fp32 the loop uses TF32
        variants = {"bf16": (replace(execution, precision="fp32"), no_change)} | variants
    return variants


def is_compiled(execution: Execution, device: torch.device) -> bool:
    return device.type == "cuda" if execution.compile is None else execution.compile


# --- profile --------------------------------------------------------------------------------------

PROFILED_STEPS = 5
MAX_KERNELS = 25  # in the table
# Events that span kernels which have events of their own.
SPANS = ("ProfilerStep", "Torch-Compiled", "## ", "Optimizer.")
# The first pattern that matches a kernel's name, ignoring case, decides. The order matters: attention kernels
# may be cuDNN's, implicit GEMMs are convolutions, and the compiler names a bias after its convolution.
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
    """One kernel of a GPU, or operator of a CPU, per training step."""

    name: str
    kind: str
    ms: float
    calls: float


def classify_kernel(name: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def profile_steps(
    data: Resident, recipe: Recipe, execution: Execution, ranks: Ranks
) -> tuple[list[Kernel], dict[str, float]]:
    """Kernels of five steps of our loop, the longest first, and the share of the time of each kind."""
    on_gpu = ranks.device.type == "cuda"
    release_resources(ranks.device)
    state = loop.create_state(recipe, ranks.device)
    events: list[Any] = []
    update_ema = loop.update_ema
    with (
        tempfile.TemporaryDirectory() as folder,
        profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            # the first steps compile and select algorithms
            schedule=schedule(wait=WARM_UP_STEPS, warmup=1, active=PROFILED_STEPS, repeat=1),
            on_trace_ready=lambda ready: events.extend(ready.key_averages()),
        ) as profiler,
    ):

        def update_and_count(state: TrainState, params: OptimParams) -> None:
            """The last call of a step."""
            update_ema(state, params)
            synchronize(ranks.device)
            profiler.step()

        with mock.patch.object(loop, "update_ema", update_and_count):
            n_steps = WARM_UP_STEPS + 1 + PROFILED_STEPS
            train_on(state, data, recipe, execution, ranks, Path(folder), steps_per_line=n_steps, lines=1)
    device_type = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = []
    for event in events:
        if event.device_type != device_type or event.is_user_annotation or event.key.startswith(SPANS):
            continue
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kernels.append(
            Kernel(
                event.key,
                classify_kernel(event.key),
                us / 1000 / PROFILED_STEPS,
                event.count / PROFILED_STEPS,
            )
        )
    kernels.sort(key=lambda kernel: -kernel.ms)
    total = sum(kernel.ms for kernel in kernels)
    shares: dict[str, float] = {}
    for kernel in kernels:
        shares[kernel.kind] = shares.get(kernel.kind, 0.0) + kernel.ms / total
    return kernels, dict(sorted(shares.items(), key=lambda item: -item[1]))


def format_profile(kernels: list[Kernel]) -> Iterator[str]:
    total = sum(kernel.ms for kernel in kernels)
    yield f"{'ms/step':>9}{'share':>8}{'calls/step':>12}  {'kind':<22}name"
    for kernel in kernels[:MAX_KERNELS]:
        yield (
            f"{kernel.ms:>9.3f}{kernel.ms / total:>8.1%}{kernel.calls:>12.1f}  {kernel.kind:<22}"
            f"{kernel.name[:160]}"
        )


# --- the command ----------------------------------------------------------------------------------

HEADINGS = f"{'variant':<20}{'batch':>6}{'frames/s':>10}{'min..max':>18}{'ms/step':>10}{'memory GB':>11}" \
           f"{'waiting':>9}{'data ms':>9}{'TFLOP/s':>9}{'of peak':>9}"  # fmt: skip


def try_measure(measure: Callable[[], Speed]) -> Speed | str:
    """The measurements, or the error that prevented them, so that the other variants still run."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return "does not fit in the GPU's memory"
    except ModelError as err:
        return str(err)


def compute_tflops(speed: Speed, gflop: float) -> float:
    return FORWARDS_PER_STEP * gflop * speed.frames_per_second / 1000


def format_row(name: str, speed: Speed | str, gflop: float, peak: float | None) -> str:
    if isinstance(speed, str):
        return f"{name:<20}{speed}"
    tflops = compute_tflops(speed, gflop)
    span = f"{min(speed.windows):.1f}..{max(speed.windows):.1f}"
    share = f"{tflops / peak:.1%}" if peak else "-"
    return (
        f"{name:<20}{speed.batch:>6}{speed.frames_per_second:>10.1f}{span:>18}{speed.ms_per_step:>10.1f}"
        f"{speed.memory_gb:>11.2f}{speed.wait_share:>9.1%}{speed.data_ms:>9.2f}{tflops:>9.2f}{share:>9}"
    )


def to_json(speed: Speed | str, gflop: float, peak: float | None) -> dict[str, Any]:
    if isinstance(speed, str):
        return {"problem": speed}
    tflops = compute_tflops(speed, gflop)
    return {
        "batch": speed.batch,
        "frames_per_second": speed.frames_per_second,
        "windows": speed.windows,
        "ms_per_step": speed.ms_per_step,
        "memory_gb": speed.memory_gb,
        "waiting_for_data": speed.wait_share,
        "data_ms": speed.data_ms,
        "tflops": tflops,
        "share_of_peak": tflops / peak if peak else None,
    }


def compute_ratio(speed: Speed | str, other: Speed | str) -> float | None:
    if isinstance(speed, str) or isinstance(other, str):
        return None
    return speed.frames_per_second / other.frames_per_second


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["tiny", *PRESETS], default="multi-speaker")
    parser.add_argument("--batch", type=int, help="frames per step of our loop; default: the preset's")
    parser.add_argument(
        "--paper-batch",
        type=int,
        default=PAPER_BATCH,
        help="the same of the paper's loop; default: 40",
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="per variant, without warm-up; default: 20"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--ablate", action="store_true", help="measure ours without one thing at a time")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write the longest kernels of our loop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument(
        "--small",
        action="store_true",
        help="defaults: preset tiny, batches of 4, 2 seconds per variant",
    )
    if parser.parse_args().small:
        parser.set_defaults(preset="tiny", batch=TINY.batch, paper_batch=TINY.batch, seconds=2.0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    recipe = {"tiny": TINY, **PRESETS}[args.preset]
    recipe = replace(recipe, batch=args.batch or recipe.batch)
    execution = Execution(compile=args.compile)
    try:
        with join_ranks(args.device) as ranks:
            data = make_data(recipe.network, N_CLIPS_SMALL if args.small else N_CLIPS, ranks.device)
            results = measure_variants(args, data, recipe, execution, ranks)
            write(args.json, json.dumps(results, indent=1))
            if args.profile:
                kernels, results["profile"] = profile_steps(data, recipe, execution, ranks)
                write(args.profile, "\n".join(format_profile(kernels)))
                write(args.json, json.dumps(results, indent=1))
                shares = ", ".join(f"{kind} {share:.1%}" for kind, share in results["profile"].items())
                print(f"ours, {sum(kernel.ms for kernel in kernels):.1f} ms in kernels a step: {shares}")
    except ModelError as err:
        raise SystemExit(str(err)) from err


def write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text + "\n")


def measure_variants(
    args: argparse.Namespace, data: Resident, recipe: Recipe, execution: Execution, ranks: Ranks
) -> dict[str, Any]:
    """Measure every variant and print a line for each; returns all measurements for ``--json``."""
    device = ranks.device
    name, gflop = get_device_name(device), count_forward_gflop(recipe.network)
    peak = PEAK_TFLOPS.get(name)
    n_parameters = count_parameters(make_empty_network(recipe.network))
    print(
        f"{name}, PyTorch {torch.__version__}, {args.preset}: "
        f"{n_parameters:,} parameters, {gflop:.4g} GFLOP per forward pass of a frame"
    )

    def ours(execution: Execution, change: Change = contextlib.nullcontext) -> Callable[[], Speed]:
        return lambda: measure_our_loop(data, recipe, execution, ranks, args.seconds, change)

    def papers(*, tf32: bool) -> Callable[[], Speed]:
        return lambda: measure_papers_loop(data, recipe, args.paper_batch, device, args.seconds, tf32=tf32)

    variants = {"ours": ours(execution), "paper, fp32": papers(tf32=False), "paper, TF32": papers(tf32=True)}
    if args.ablate:
        variants |= {f"no {what}": ours(*other) for what, other in list_ablations(execution, device).items()}
    print(HEADINGS, flush=True)
    speeds: dict[str, Speed | str] = {}
    for variant, measure in variants.items():
        speeds[variant] = try_measure(measure)
        print(format_row(variant, speeds[variant], gflop, peak), flush=True)
    ratios = {
        variant: compute_ratio(speeds["ours"], speed)
        for variant, speed in speeds.items()
        if variant != "ours"
    }
    for variant, times in ratios.items():
        print(f"ours / {variant:<20}{'-' if times is None else f'{times:.2f}'}", flush=True)
    return {
        "device": name,
        "torch": torch.__version__,
        "preset": args.preset,
        "parameters": n_parameters,
        "forward_gflop": gflop,
        "peak_tflops": peak,
        "to_be_compiled": is_compiled(execution, device),
        "ways": {variant: to_json(speed, gflop, peak) for variant, speed in speeds.items()},
        "ours_over": ratios,
    }


if __name__ == "__main__":
    main()
