"""How and where a run is executed: ranks, device, precision, ``torch.compile`` and micro-batches."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.backends.cpu import get_cpu_capability

from model.recipe import ModelError, Recipe

Precision = Literal["auto", "bf16", "fp32"]
Item = TypeVar("Item")
Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is executed on this machine. Changes its results by rounding only."""

    micro_batch: int = 0  # frames per forward pass and rank; 0: a rank's whole share of the batch
    precision: Precision = "auto"  # auto: bf16 on a GPU; weights are always fp32
    compile: bool | None = None  # None: on a GPU

    def autocast(self, device: torch.device) -> torch.autocast:
        """Matrix products in bf16, if ``precision`` says so."""
        in_bf16 = self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")
        return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)

    def warn_of_slow_precision(self, device: torch.device) -> None:
        """Log a line where bf16 is asked for and the processor has no instructions for it."""
        # Processors with AVX2 alone have none; of those with AVX-512 most have.
        if self.precision == "bf16" and device.type == "cpu" and get_cpu_capability() == "AVX2":
            log.warning(
                "bf16: this processor has no instructions for it and emulates them, many times as slowly as "
                "fp32; --precision fp32 is better here"
            )

    def try_compile(
        self,
        function: Function,
        trial: Callable[[Function], None],
        device: torch.device,
        *,
        mode: str = "default",
    ) -> Function:
        """``torch.compile`` a function if ``compile`` says so and ``trial`` works with it; else return it."""
        if not (self.compile or (self.compile is None and device.type == "cuda")):
            return function
        try:
            compiled_function = cast(Function, torch.compile(function, mode=mode))
            trial(compiled_function)
        except torch.OutOfMemoryError:
            raise
        except Exception as err:  # a compiler may fail with anything
            lines = [line.strip() for line in str(err).splitlines() if line.strip()]
            reason = f"{type(err).__name__}: {lines[0] if lines else ''}"
            log.warning("torch.compile does not work here, continuing without it: %s", reason)
            return function
        return compiled_function

    def choose_micro_batch(self, recipe: Recipe, world: int) -> int:
        """Frames per forward pass: the largest divisor of a rank's share of the batch within the limit.

        Raises ModelError when the batch does not divide among the ranks.
        """
        if recipe.batch % world:
            raise ModelError(f"batch {recipe.batch} does not divide among {world} ranks")
        share = recipe.batch // world
        limit = self.micro_batch or share
        return next(size for size in range(min(limit, share), 0, -1) if share % size == 0)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ``world`` processes of a run. Call collective methods on every rank."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def split(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of a sequence: each item belongs to exactly one rank."""
        return items[self.rank :: self.world]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place. Collective."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank. Collective."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.world > 1 else flag

    def barrier(self) -> None:
        """Wait until all ranks are here. Collective."""
        if self.world > 1:
            dist.barrier()


def select_device(name: str) -> torch.device:
    """auto, cpu or cuda -> the CPU, or this process's own GPU. Raises ModelError if there is no such GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device cuda: PyTorch finds no GPU here; use cpu, or fix the driver or the installation"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ModelError(
            f"rank {local} of this machine has no GPU: PyTorch finds {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The ranks as ``torchrun`` started them, or this process alone; ``device`` is auto, cpu or cuda.

    Raises ModelError when there is no such GPU.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    own_device = select_device(device)
    if world == 1:
        yield Ranks(0, 1, own_device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world, own_device)
    finally:
        dist.destroy_process_group()
