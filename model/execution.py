"""Where a run runs: one process or many, on which device, in which precision."""

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

from model.recipe import ModelError, Recipe

Precision = Literal["auto", "bf16", "fp32"]
Item = TypeVar("Item")
Called = TypeVar("Called", bound=Callable[..., Any])

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out here. Its results differ by rounding alone."""

    micro_batch: int = 0  # frames per forward pass and rank; 0: a rank's whole share of the batch
    precision: Precision = "auto"  # auto: bf16 on a GPU; weights are fp32 always
    compile: bool | None = None  # None: on a GPU

    def autocast(self, device: torch.device) -> torch.autocast:
        """Matrix products in bf16, where asked for."""
        in_bf16 = self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")
        return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)

    def compiled(
        self,
        function: Called,
        trial: Callable[[Called], None],
        device: torch.device,
        *,
        mode: str = "default",
    ) -> Called:
        """``function`` by ``torch.compile`` where that is asked for and a ``trial`` works; else itself."""
        if not (self.compile or (self.compile is None and device.type == "cuda")):
            return function
        try:
            faster = cast(Called, torch.compile(function, mode=mode))
            trial(faster)
        except torch.OutOfMemoryError:
            raise
        except Exception as err:  # whatever a compiler may find
            lines = [line.strip() for line in str(err).splitlines() if line.strip()]
            told = f"{type(err).__name__}: {lines[0] if lines else ''}"
            log.warning("torch.compile does not work here, going on without: %s", told)
            return function
        return faster

    def frames_at_once(self, recipe: Recipe, world: int) -> int:
        """FrameSource per forward pass: the most within the limit that divides a rank's share evenly.

        Raises ModelError when the batch does not divide among the ranks.
        """
        if recipe.batch % world:
            raise ModelError(f"batch {recipe.batch} does not divide among {world} ranks")
        share = recipe.batch // world
        limit = self.micro_batch or share
        return next(size for size in range(min(limit, share), 0, -1) if share % size == 0)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among ``world`` of them."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of what all of them share: each item is one rank's."""
        return items[self.rank :: self.world]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place. Every rank must ask."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. Every rank must ask."""
        return bool(self.total(torch.tensor(int(flag)))) if self.world > 1 else flag

    def meet(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


def select_device(name: str) -> torch.device:
    """auto, cpu or cuda: this process's own GPU, or the CPU. Raises ModelError where there is no such GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda: PyTorch sees no GPU here; use cpu, or mend the driver or the install")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise ModelError(f"rank {local} of this machine has no GPU: PyTorch sees {torch.cuda.device_count()}")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Ranks as ``torchrun`` started them, or this process alone; ``device`` is auto, cpu or cuda.

    Raises ModelError when a GPU is asked for and there is none.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = select_device(device)
    if world == 1:
        yield Ranks(0, 1, here)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world, here)
    finally:
        dist.destroy_process_group()
