"""What the compiler schedules for a training step and a sampling step on a GPU, counted without one.

    python benchmarks/kernels.py                      (two minutes of one core; needs g++)
    python benchmarks/kernels.py --default-options    (as the compiler does it by itself)
    python benchmarks/kernels.py --small

The step is traced with tensors on a GPU that hold no data (no_gpu.cpp has the little of a device that PyTorch
asks for), lowered for an H100 and stopped before code is written. Counted are the launches of the schedule,
those that only cast a weight, and the bytes of all buffers that each launch reads and writes.

It says nothing about time, about caches, about what happens inside a convolution, and about what a CUDA graph
copies in. A normalisation that reads its input twice in one launch counts it once. That PyTorch would choose
its flash attention is assumed. It uses internals of the PyTorch that constraints.txt names.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import bare  # noqa: F401  (before redub's own modules)

HERE = Path(__file__).resolve().parent


def load_device() -> None:
    """Build and load the device without a GPU: before torch, which looks for one once."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "PyTorch is installed"
    torch_folder = Path(spec.origin).parent
    library_folder = torch_folder / "lib"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "no_gpu.so")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", str(HERE / "no_gpu.cpp"), "-o", str(library)]
        command += [f"-I{torch_folder / 'include'}", f"-L{library_folder}", f"-Wl,-rpath,{library_folder}"]
        subprocess.run([*command, "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


load_device()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._dynamo.device_interface import CudaInterface  # noqa: E402
from torch._functorch import config as functorch_config  # noqa: E402
from torch._guards import TracingContext  # noqa: E402
from torch._inductor import (  # noqa: E402
    compile_fx,
    ir,
    scheduler,
)
from torch._inductor import config as inductor_config  # noqa: E402
from torch._inductor.runtime.hints import DeviceProperties  # noqa: E402
from torch._inductor.virtualized import V  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from train import count_forward_gflop  # noqa: E402

from model.execution import GPU_OPTIONS, Execution  # noqa: E402
from model.objective import compute_losses  # noqa: E402
from model.recipe import PRESETS, Recipe, build_recipe  # noqa: E402
from model.trial import make_empty_batch  # noqa: E402
from model.unet import UNet  # noqa: E402
from sampler.params import SampleParams  # noqa: E402
from sampler.rollout import FrameGenerator, _FrameInputs, _NoiseLevel  # noqa: E402
from sampler.steps import KnownPixels  # noqa: E402

GPU = torch.device("cuda")
NO_DATA = FakeTensorMode()
SMALL = build_recipe(
    "demo",
    {"network": {"size": 32, "top": 0, "patch": 2, "multiples": [1], "blocks": 1, "attention_sizes": []}},
)
H100 = {
    "major": 9, "multi_processor_count": 132, "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "warp_size": 32,
}  # fmt: skip


class Counted(Exception):
    """Ends a compilation: its schedule has been counted."""


@dataclass
class Schedule:
    """The launches of one compiled graph."""

    launches: int = 0
    weight_casts: int = 0
    gb: float = 0.0
    gb_by_kind: dict[str, float] = field(default_factory=dict)

    def add(self, node: Any) -> None:
        """Count one node of the scheduler: a fused kernel, or a call of a library."""
        if isinstance(node, scheduler.NopKernelSchedulerNode):
            return
        kind = "reduction" if node.is_reduction() else "pointwise"
        if isinstance(node, scheduler.ExternKernelSchedulerNode):
            if isinstance(node.node, ir.MultiOutput):  # one of the results of the call before
                return
            kind = str(getattr(node.node, "op_overload", None) or node.node.python_kernel_name)
        gb = node.get_read_write_buffers_sizes() / 1e9
        self.launches += 1
        self.weight_casts += self._is_weight_cast(node)
        self.gb += gb
        self.gb_by_kind[kind] = self.gb_by_kind.get(kind, 0.0) + gb

    def _is_weight_cast(self, node: Any) -> bool:
        """Whether all that a kernel reads is a weight in fp32, and all that it writes is bf16."""
        if isinstance(node, scheduler.ExternKernelSchedulerNode):
            return False
        reads = [V.graph.graph_inputs.get(each.name) for each in node.read_writes.reads]
        dtypes = {V.graph.get_dtype(name) for name in node.get_buffer_names()}
        is_weight = len(reads) == 1 and reads[0] is not None and reads[0].get_dtype() == torch.float32
        return is_weight and dtypes == {torch.bfloat16}


def use_flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a GPU is expected to use: the choice asks the device."""
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return attended


@contextlib.contextmanager
def imagine_h100(count: Any) -> Iterator[None]:
    """A compiler that takes the device for an H100 and calls ``count`` with the nodes of each schedule."""
    memory = {"total_memory": 80 << 30, "shared_memory_per_block_optin": 232448, "L2_cache_size": 50 << 20}
    device_properties = SimpleNamespace(name="NVIDIA H100", minor=0, gcnArchName="", **memory, **H100)
    properties = DeviceProperties(type="cuda", index=0, cc=90, **H100)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (DeviceProperties, "create", lambda device: properties),
            (CudaInterface, "get_device_properties", staticmethod(lambda device=None: device_properties)),
            (torch.cuda, "get_device_properties", lambda device=None: device_properties),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (scheduler, "has_triton", lambda: True),
            (compile_fx, "_check_triton_bf16_support", lambda graph: None),
            (F, "scaled_dot_product_attention", use_flash_attention),
        ):
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(functorch_config.patch(force_non_lazy_backward_lowering=True))
        stack.enter_context(
            inductor_config.patch(
                _post_fusion_custom_pass=count, fx_graph_cache=False, joint_graph_constant_folding=False
            )
        )
        stack.enter_context(NO_DATA)
        yield


def count_schedules(function: Any, *args: Any, options: dict[str, Any]) -> list[Schedule]:
    """The schedules of a function of tensors without data: forward, and backward if it has gradients."""
    schedules: list[Schedule] = []

    def count(nodes: Sequence[Any]) -> None:
        schedule = Schedule()
        for node in nodes:
            schedule.add(node)
        schedules.append(schedule)
        context = TracingContext.try_get()
        if context is not None and context.output_strides is not None:  # the backward pass reads with them
            context.output_strides.extend(map(get_strides, V.graph.graph_outputs))
        raise Counted

    def stop(graph: Any, inputs: Any, **settings: Any) -> Any:
        try:
            compile_fx.compile_fx_inner(graph, inputs, **settings)
        except Exception as err:  # the compiler wraps it in one of its own
            if "Counted" not in repr(err):
                raise

        def run(args: Any) -> None:
            raise Counted

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def lower(graph: Any, inputs: Any) -> Any:
        with inductor_config.patch(options):
            return compile_fx.compile_fx(graph, inputs, inner_compile=stop)

    torch._dynamo.reset()
    with imagine_h100(count), torch.autocast("cuda", torch.bfloat16), contextlib.suppress(Counted):
        torch.compile(function, backend=lower, dynamic=False, fullgraph=True)(*args)
    return schedules


def get_strides(output: Any) -> tuple[int, ...] | None:
    try:
        return tuple(int(stride) for stride in output.get_stride())
    except (AttributeError, NotImplementedError):
        return None


def make_network(recipe: Recipe) -> UNet:
    """A network without data on the GPU, in the memory layout of a run."""
    with torch.device(GPU):
        network = UNet(recipe.network)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = torch.empty_like(parameter, memory_format=torch.channels_last)
    return network


def count_training_step(recipe: Recipe, batch: int, options: dict[str, Any]) -> list[Schedule]:
    with NO_DATA:
        network, frames = make_network(recipe), make_empty_batch(recipe, batch, GPU)
    return count_schedules(compute_losses, network, frames, recipe, options=options)


def count_sampling_step(
    recipe: Recipe, clips: int, guidance: float, options: dict[str, Any], *, round_weights: bool
) -> list[Schedule]:
    """Of the function that `pipeline sample` compiles."""
    n = clips if guidance == 1 else 2 * clips
    with NO_DATA, torch.device(GPU):
        network = make_network(recipe).requires_grad_(False)
        for layer in network.modules() if round_weights else ():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                for name, weight in list(layer.named_parameters()):
                    rounded = torch.empty_like(weight, dtype=torch.bfloat16)
                    setattr(layer, name, nn.Parameter(rounded, requires_grad=False))
        size = recipe.network.size
        images = [torch.empty(clips, 3, size, size) for _ in range(5)]
        y_0, *others = images
        widths = [2 * layer.block.conv_out.out_channels for layer in network.layers()]
        films = [[torch.empty(rows, width, dtype=torch.bfloat16) for width in widths] for rows in (1, n)]
        inputs = _FrameInputs(
            torch.empty(n, recipe.network.in_channels - 3, size, size),
            films[1],
            torch.empty_like(y_0) if recipe.noise.base == "identity" else None,
            KnownPixels(torch.empty(clips, 1, size, size), y_0),
            torch.empty(2),
        )
        level, weights = _NoiseLevel(torch.empty(1), films[0]), torch.empty(5)
    generator = object.__new__(FrameGenerator)  # what its constructor computes needs a device
    generator.network, generator.recipe = network, recipe
    generator.params, generator.device = SampleParams(guidance=guidance), GPU
    generator.execution, generator.forward = Execution(), network.forward_with_films
    with torch.no_grad():
        return count_schedules(generator._compute_step, *others, weights, level, inputs, options=options)


def describe(name: str, schedules: list[Schedule], samples: int) -> str:
    launches, casts = (sum(getattr(each, key) for each in schedules) for key in ("launches", "weight_casts"))
    gb = sum(each.gb for each in schedules)
    return f"{name}: {launches} launches, {casts} of them cast a weight, {gb / samples:.3f} GB a sample"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="multi-speaker")
    parser.add_argument("--batch", type=int, default=16, help="frames of a step; default: 16")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--part", choices=["training", "sampling"])
    parser.add_argument("--default-options", action="store_true", help="without those of model/execution.py")
    parser.add_argument("--fp32-weights", action="store_true", help="sampling casts them in each step")
    parser.add_argument("--small", action="store_true", help="a tiny network")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    recipe = SMALL if args.small else PRESETS[args.preset]
    options = {} if args.default_options else dict(GPU_OPTIONS)
    results: dict[str, Any] = {"forward_gflop": count_forward_gflop(recipe.network), "batch": args.batch}
    if args.part != "training":
        results["sampling"] = count_sampling_step(
            recipe, args.batch, args.guidance, options, round_weights=not args.fp32_weights
        )
        print(describe("sampling step", results["sampling"], args.batch))
    if args.part != "sampling":
        results["training"] = count_training_step(recipe, args.batch, options)
        print(describe("training step", results["training"], args.batch))
    print(f"forward pass: {results['forward_gflop']:.4g} GFLOP a frame; a training step has three times that")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main()
