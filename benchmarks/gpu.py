"""All performance figures of one GPU, in one command that stops when its time is used up.

    python benchmarks/gpu.py --out figures
    python benchmarks/gpu.py --out figures --part training --part waiting --budget 300
    python benchmarks/gpu.py --out figures --small                           (half a minute on a CPU)

Writes figures/gpu.md, a table; figures/gpu.json, the same with all windows and the profile; and
figures/kernels.txt, the longest kernels of a training step. Table and JSON are written again after every
variant. The variants run one after another, the most important first. One that fails is a row with its error;
one that would begin after --budget seconds is a row that says so.

training: our loop and the paper's, and ours without one thing at a time, as in benchmarks/train.py. If the
batch does not fit in the GPU's memory, our loop runs in micro-batches, and the row says so. sampling: ours
and the paper's method, as in benchmarks/sample.py. waiting: our loop with its frames on the GPU, and in
pinned memory of the host.

It needs torch, numpy, opencv-python-headless, pyarrow, safetensors and pydantic beside a checkout, which need
not be installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import bare  # noqa: F401  (before redub's own modules)
import torch
from sample import PAPER_STEPS, SAMPLER, SEED, measure_paper, measure_warm_rate, time_rollout, warm_up
from torch._dynamo.utils import counters
from train import (
    N_CLIPS,
    N_CLIPS_SMALL,
    PAPER_BATCH,
    PEAK_TFLOPS,
    TINY,
    Change,
    Speed,
    count_forward_gflop,
    format_profile,
    get_device_name,
    list_ablations,
    make_data,
    measure_our_loop,
    measure_papers_loop,
    profile_steps,
    release_resources,
    reset_peak_memory,
    to_json,
)

from model.execution import Execution, Ranks, join_ranks
from model.monitor import measure_memory_gb
from model.recipe import PRESETS, ModelError, Recipe
from model.unet import UNet, count_parameters, make_empty_network
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from shards.resident import Resident

PARTS = ("training", "waiting", "sampling")
OURS = "ours"
REPEATS = 3  # of a rollout; the median is reported
MAX_FRAMES = 20  # of a clip in a rollout
MAX_MICRO_BATCHES = 8  # that a batch is divided into, if it does not fit
NOT_MEASURED = "not measured: the time was used up"

Row = dict[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    part: str
    preset: str
    name: str
    measure: Callable[[], Row]


@dataclass
class Machine:
    """The device with what is in its memory: the data or the networks of the variants that share them."""

    ranks: Ranks
    seconds: float  # per variant, without warm-up
    small: bool
    n_micro_batches: dict[str, int] = field(default_factory=dict)  # by preset: as few as fit
    key: object = None
    value: Any = None

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    def get_recipe(self, preset: str) -> Recipe:
        return TINY if self.small else PRESETS[preset]

    def keep(self, key: object, make: Callable[[], Value]) -> Value:
        """What ``make`` returned for this key; only that of the last key is kept in memory."""
        if key != self.key:
            self.key = self.value = None
            release_resources(self.device)
            self.value = make()
            self.key = key
        value: Value = self.value
        return value

    def get_data(self, preset: str, *, frames_on_host: bool = False) -> Resident:
        params = self.get_recipe(preset).network
        n_clips = N_CLIPS_SMALL if self.small else N_CLIPS
        return self.keep(
            ("data", params.size, params.audio, frames_on_host),
            lambda: make_data(params, n_clips, self.device, frames_on_host=frames_on_host),
        )

    def get_generators(self, preset: str) -> Generators:
        recipe = self.get_recipe(preset)
        return self.keep(("network", preset), lambda: Generators(recipe, self.device))


class Generators:
    """Generators of one untrained network, by their number of steps."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(SEED)
        self.recipe = recipe
        self.device = device
        self.network = UNet(recipe.network).eval()
        self.by_steps: dict[tuple[int, Execution], FrameGenerator] = {}

    def get(self, steps: int, execution: Execution) -> FrameGenerator:
        key = steps, execution
        if key not in self.by_steps:
            params = SampleParams(sampler=SAMPLER, steps=steps, guidance=1.0)
            self.by_steps[key] = FrameGenerator(self.network, self.recipe, params, self.device, execution)
        return self.by_steps[key]


# --- training -------------------------------------------------------------------------------------


def is_out_of_memory(err: Exception) -> bool:
    """The loop turns the error of an allocation into a ModelError."""
    return isinstance(err, torch.OutOfMemoryError) or str(err).startswith("out of memory")


def run_fitting(machine: Machine, preset: str, execution: Execution, run: Callable[[Execution], Row]) -> Row:
    """Run in as few micro-batches as fit in memory, beginning with what fitted before."""
    batch = machine.get_recipe(preset).batch
    n = machine.n_micro_batches.get(preset, 1)
    while True:
        try:
            row = run(execution if n == 1 else replace(execution, micro_batch=max(1, batch // n)))
        except (ModelError, torch.OutOfMemoryError) as err:
            if not is_out_of_memory(err) or n >= MAX_MICRO_BATCHES:
                raise
        else:
            machine.n_micro_batches.setdefault(preset, n)
            return row | ({"micro_batches": n} if n > 1 else {})
        n *= 2


def measure_ours(
    machine: Machine,
    preset: str,
    execution: Execution,
    change: Change | None = None,
    *,
    frames_on_host: bool = False,
) -> Row:
    recipe = machine.get_recipe(preset)
    data = machine.get_data(preset, frames_on_host=frames_on_host)
    changes = () if change is None else (change,)

    def run(execution: Execution) -> Row:
        speed = measure_our_loop(data, recipe, execution, machine.ranks, machine.seconds, *changes)
        return build_training_row(machine, recipe, speed)

    return run_fitting(machine, preset, execution, run)


def measure_papers(machine: Machine, preset: str, *, tf32: bool) -> Row:
    recipe, data = machine.get_recipe(preset), machine.get_data(preset)
    batch = TINY.batch if machine.small else PAPER_BATCH
    speed = measure_papers_loop(data, recipe, batch, machine.device, machine.seconds, tf32=tf32)
    return build_training_row(machine, recipe, speed)


def build_training_row(machine: Machine, recipe: Recipe, speed: Speed) -> Row:
    peak = PEAK_TFLOPS.get(get_device_name(machine.device))
    return to_json(speed, count_forward_gflop(recipe.network), peak)


def profile_ours(machine: Machine, preset: str, execution: Execution, file: Path) -> Row:
    recipe, data = machine.get_recipe(preset), machine.get_data(preset)

    def run(execution: Execution) -> Row:
        kernels, shares = profile_steps(data, recipe, execution, machine.ranks)
        if not kernels:
            raise ModelError("the profiler recorded no kernels")
        file.write_text("\n".join(format_profile(kernels)) + "\n")
        return {"batch": recipe.batch, "kernel_ms": sum(kernel.ms for kernel in kernels), "shares": shares}

    return run_fitting(machine, preset, execution, run)


# --- sampling -------------------------------------------------------------------------------------


def measure_clips(machine: Machine, preset: str, execution: Execution, *, slots: int, steps: int) -> Row:
    """Frames/s of as many clips as there are slots; without compilation if that fails."""
    generators = machine.get_generators(preset)
    try:
        row = measure_rollouts(machine, generators, execution, slots=slots, steps=steps)
        skips = counters["inductor"]["cudagraph_skips"]  # of this process so far
        return row | ({"warnings": [f"{skips} CUDA graphs skipped so far"]} if skips else {})
    except torch.OutOfMemoryError:
        raise
    except Exception as err:  # a compiler may fail with anything
        problem = describe_error(err)
    eager = replace(execution, compile=False)
    row = measure_rollouts(machine, generators, eager, slots=slots, steps=steps)
    return row | {"warnings": [f"not compiled: {problem}"]}


def measure_rollouts(
    machine: Machine, generators: Generators, execution: Execution, *, slots: int, steps: int
) -> Row:
    torch.backends.cudnn.benchmark = False  # as in `pipeline sample`; training sets it
    # as measure_paper leaves it: another value would compile the network once more
    torch.set_float32_matmul_precision("high")
    recipe, generator = generators.recipe, generators.get(steps, execution)
    warm_up(generator, recipe, slots)
    reset_peak_memory(machine.device)
    seconds_per_frame = time_rollout(generator, recipe, [1] * slots, slots)
    n_frames = min(MAX_FRAMES, max(1, round(machine.seconds / REPEATS / seconds_per_frame)))
    row = measure_warm_rate(generator, recipe, slots=slots, n_frames=n_frames, repeats=REPEATS)
    return build_sampling_row(machine, recipe, row, n_frames)


def measure_papers_sampling(machine: Machine, preset: str, *, steps: int) -> Row:
    torch.backends.cudnn.benchmark = True  # the authors' code too, since its seed is -1
    recipe = machine.get_recipe(preset)
    network = UNet(recipe.network).eval()
    reset_peak_memory(machine.device)
    n_frames = 1 if machine.small else 3
    rate = measure_paper(network, recipe, machine.device, steps=steps, n_frames=n_frames)
    row = {
        "slots": 1,
        "steps": steps,
        "frames_per_second": rate,
        "frame_steps_per_second": rate * steps,
        "ms_per_step": 1000 / (rate * steps),
    }
    return build_sampling_row(machine, recipe, row, n_frames)


def build_sampling_row(machine: Machine, recipe: Recipe, row: Row, n_frames: int) -> Row:
    peak = PEAK_TFLOPS.get(get_device_name(machine.device))
    tflops = count_forward_gflop(recipe.network) * row["frame_steps_per_second"] / 1000
    return row | {
        "frames_per_clip": n_frames,
        "memory_gb": measure_memory_gb(machine.device),
        "tflops": tflops,
        "share_of_peak": tflops / peak if peak else None,
    }


# --- the variants ---------------------------------------------------------------------------------


def list_variants(machine: Machine, execution: Execution, out: Path) -> Iterator[Variant]:
    """The most important first."""
    multi, single = "multi-speaker", "single-speaker"

    def ours(part: str, name: str, preset: str, *settings: Any, **options: Any) -> Variant:
        return Variant(part, preset, name, lambda: measure_ours(machine, preset, *settings, **options))

    def papers(preset: str, *, tf32: bool) -> Variant:
        name = f"paper, {'TF32' if tf32 else 'fp32'}"
        return Variant("training", preset, name, lambda: measure_papers(machine, preset, tf32=tf32))

    def clips(slots: int, steps: int) -> Variant:
        def measure() -> Row:
            return measure_clips(machine, multi, execution, slots=slots, steps=steps)

        return Variant("sampling", multi, OURS, measure)

    few, more, many, most = (2, 3, 4, 5) if machine.small else (10, 20, 50, 100)
    paper_steps = 5 if machine.small else PAPER_STEPS
    some_clips, many_clips = (2, 3) if machine.small else (16, 64)

    yield ours("training", OURS, multi, execution)
    yield papers(multi, tf32=False)
    yield papers(multi, tf32=True)
    kernels = out / "kernels.txt"
    yield Variant("training", multi, "kernels", lambda: profile_ours(machine, multi, execution, kernels))
    yield ours("waiting", "frames on the device", multi, execution)
    yield ours("waiting", "frames in pinned host memory", multi, execution, frames_on_host=True)
    yield clips(many_clips, few)
    yield clips(1, few)
    yield clips(some_clips, few)
    yield clips(1, paper_steps)
    yield Variant(
        "sampling",
        multi,
        "paper, fp32",
        lambda: measure_papers_sampling(machine, multi, steps=paper_steps),
    )
    yield clips(many_clips, more)
    yield clips(many_clips, many)
    yield clips(many_clips, most)
    yield clips(1, more)
    yield clips(1, many)
    for n_clips in () if machine.small else (128, 256):  # how many at once are best
        yield clips(n_clips, few)
    for what, (other_execution, change) in list_ablations(execution, machine.device).items():
        yield ours("training", f"ours, no {what}", multi, other_execution, change)
    yield ours("training", OURS, single, execution)
    yield papers(single, tf32=True)


class WarningList(logging.Handler):
    """The warnings since it was last emptied, e.g. that a network could not be compiled."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def describe_error(err: Exception) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {lines[0] if lines else ''}"[:300]


def measure_variant(variant: Variant, warnings: WarningList) -> Row:
    """Its row; one with a problem if it failed, whatever the reason, so that the others still run."""
    warnings.messages.clear()
    start = time.perf_counter()
    try:
        row = variant.measure()
    except Exception as err:
        row = {"problem": describe_error(err)}
    messages = list(dict.fromkeys([*row.get("warnings", []), *warnings.messages]))
    return row | {"wall_seconds": time.perf_counter() - start, "warnings": messages}


def measure_variants(
    variants: list[Variant], budget: float, start: float, warnings: WarningList
) -> Iterator[list[Row]]:
    """All rows, at first and after every variant; those of later variants say that they are not measured."""
    names = [{"part": each.part, "preset": each.preset, "variant": each.name} for each in variants]
    rows: list[Row] = [name | {"problem": NOT_MEASURED} for name in names]
    yield rows
    for i, variant in enumerate(variants):
        first = rows[0]
        is_known = first["part"] == "training" and first["variant"] == OURS and "problem" not in first
        if variant.part == "waiting" and variant.name == "frames on the device" and is_known:
            rows[i] = first | names[i]  # the same run need not be measured twice
        elif time.perf_counter() - start < budget:
            rows[i] = names[i] | measure_variant(variant, warnings)
        yield rows


# --- the files ------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Row], str]] = {
    "part": lambda row: str(row["part"]),
    "network": lambda row: str(row["preset"]),
    "variant": lambda row: str(row["variant"]),
    "batch or clips": lambda row: format_number(row.get("batch", row.get("slots")), ".0f"),
    "steps": lambda row: format_number(row.get("steps"), ".0f"),
    "frames/s": lambda row: format_number(row.get("frames_per_second"), ".4g"),
    "ms per step": lambda row: format_number(row.get("ms_per_step"), ".4g"),
    "TFLOP/s": lambda row: format_number(row.get("tflops"), ".4g"),
    "of peak": lambda row: format_number(row.get("share_of_peak"), ".1%"),
    "memory, GB": lambda row: format_number(row.get("memory_gb"), ".2f"),
    "waiting": lambda row: format_number(row.get("waiting_for_data"), ".2%"),
    "data, ms": lambda row: format_number(row.get("data_ms"), ".2f"),
    "remarks": lambda row: "; ".join(list_remarks(row)).replace("|", "/"),
}


def format_number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def list_remarks(row: Row) -> Iterator[str]:
    if "problem" in row:
        yield row["problem"]
    if "micro_batches" in row:
        yield f"{row['micro_batches']} micro-batches"
    if "shares" in row:
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in row["shares"].items())
        yield f"{row['kernel_ms']:.4g} ms in kernels a step: {shares}"
    yield from row.get("warnings", [])


def format_table(rows: list[Row]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[form(row) for form in COLUMNS.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def list_ratios(rows: list[Row]) -> Iterator[tuple[str, float]]:
    """How many times as fast as another variant ours is, by a name for the two."""
    measured = [row for row in rows if "frames_per_second" in row]
    for ours in measured:
        for row in measured:
            is_pair = all(ours[name] == row[name] for name in ("part", "preset"))
            if not (is_pair and ours["variant"] == OURS and row["variant"].startswith(("paper", "ours, no"))):
                continue
            names = (describe_row(ours), describe_row(row))
            yield " / ".join(names), ours["frames_per_second"] / row["frames_per_second"]


def describe_row(row: Row) -> str:
    if "slots" in row:
        return f"{row['variant']}, {row['slots']} clip(s) in {row['steps']} steps"
    return f"{row['variant']}, {row['preset']}"


def describe_machine(machine: Machine) -> Row:
    networks = {}
    for preset in ("multi-speaker", "single-speaker"):
        params = machine.get_recipe(preset).network
        n_parameters = count_parameters(make_empty_network(params))
        networks[preset] = {"parameters": n_parameters, "forward_gflop": count_forward_gflop(params)}
    name = get_device_name(machine.device)
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "peak_tflops": PEAK_TFLOPS.get(name),
        "small": machine.small,
        "seconds_per_variant": machine.seconds,
        "networks": networks,
    }


def write_results(out: Path, description: Row, rows: list[Row], seconds: float) -> None:
    ratios = dict(list_ratios(rows))
    results = description | {"seconds": seconds, "rows": rows, "ratios": ratios}
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    title = f"{description['device']}, PyTorch {description['torch']}, {seconds:.0f} s in all"
    if description["small"]:
        title += ", a tiny network in place of each"
    networks = "\n".join(
        f"- {preset}: {network['parameters']:,} parameters, {network['forward_gflop']:.4g} GFLOP per forward "
        f"pass of a frame"
        for preset, network in description["networks"].items()
    )
    lines = "\n".join(f"- {name}: {ratio:.2f}" for name, ratio in ratios.items())
    text = f"{title}\n\n{networks}\n\n{format_table(rows)}\n\nHow many times as fast:\n\n{lines}\n"
    (out / "gpu.md").write_text(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="per variant, without warm-up; default: 4")
    parser.add_argument(
        "--budget", type=float, default=330.0, help="seconds after which no variant begins; default: 330"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument(
        "--small", action="store_true", help="a tiny network, few steps and clips, 0.2 seconds per variant"
    )
    if parser.parse_args().small:
        parser.set_defaults(seconds=0.2)
    return parser.parse_args()


def main() -> None:
    start = time.perf_counter()
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings = WarningList()
    logging.getLogger("model").addHandler(warnings)
    try:
        with join_ranks(args.device) as ranks:
            machine = Machine(ranks, args.seconds, args.small)
            description = describe_machine(machine)
            parts = args.part or PARTS
            all_variants = list_variants(machine, Execution(compile=args.compile), args.out)
            variants = [variant for variant in all_variants if variant.part in parts]
            for n_done, rows in enumerate(measure_variants(variants, args.budget, start, warnings)):
                seconds = time.perf_counter() - start
                write_results(args.out, description, rows, seconds)
                if n_done:
                    print(
                        f"{seconds:4.0f} s {format_table(rows[n_done - 1 : n_done]).splitlines()[-1]}",
                        flush=True,
                    )
    except ModelError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
