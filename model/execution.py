"""How and where a run is executed: ranks, device, precision, ``torch.compile`` and micro-batches."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.backends.cpu import get_cpu_capability

from model.recipe import ModelError, Recipe
from shards.cores import count_cores_per_rank
from shards.torchrun import check_meeting_point, read_place

Precision = Literal["auto", "bf16", "fp32"]
Item = TypeVar("Item")
Function = TypeVar("Function", bound=Callable[..., Any])
Module = TypeVar("Module", bound=nn.Module)

# After four reads the compiler writes a value to memory, in fp32, which here is a normalised feature map
# between its normalisation and SiLU. `benchmarks/kernels.py` counts what that moves.
GPU_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_reads_threshold": 64,
    "realize_acc_reads_threshold": 64,
    "realize_opcount_threshold": 1000,
}

# How long ranks wait for one that downloads or decodes its dataset: a node with an empty cache takes hours
# longer than one that has the dataset already. In training NCCL's own ten minutes show that a node has died.
LOADING_TIME = timedelta(hours=24)

log = logging.getLogger(__name__)


def emulates_bf16(device: torch.device) -> bool:
    """Whether this processor has no instructions for bf16: with AVX2 alone none has, with AVX-512 most."""
    return device.type == "cpu" and get_cpu_capability() == "AVX2"


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is executed on this machine. Changes its results by rounding only."""

    micro_batch: int = 0  # frames per forward pass and rank; 0: a rank's whole share of the batch
    precision: Precision = "auto"  # auto: bf16 on a GPU; weights are always fp32
    compile: bool | None = None  # None: on a GPU

    def is_open(self, device: torch.device) -> bool:
        """Whether a trial may choose precision and compiler: on a processor, if neither is stated."""
        return device.type == "cpu" and self.precision == "auto" and self.compile is None

    def is_bf16(self, device: torch.device) -> bool:
        """Whether matrix products are in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")

    def is_compiled(self, device: torch.device) -> bool:
        """Whether functions are compiled, where the compiler works."""
        return self.compile or (self.compile is None and device.type == "cuda")

    def autocast(self, device: torch.device) -> torch.autocast:
        """Matrix products in bf16, if ``precision`` says so."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16(device))

    def round_weights(self, network: Module, device: torch.device) -> Module:
        """The network with the weights that autocast would round to bf16 at every use rounded once.

        A copy, and every result is the same; without bf16 the network itself. For a network that is not
        trained: the sum of small updates would be rounded away.
        """
        if not self.is_bf16(device):
            return network
        network = copy.deepcopy(network)
        for layer in network.modules():
            if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
                layer.to(torch.bfloat16)
        return network

    def warn_of_slow_precision(self, device: torch.device) -> None:
        """Log a line where bf16 is asked for and the processor has no instructions for it."""
        if self.precision == "bf16" and emulates_bf16(device):
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
        cuda_graphs: bool = False,
    ) -> Function:
        """``torch.compile`` a function if ``compile`` says so and ``trial`` works with it; else return it.

        Every shape is compiled for itself.
        """
        if not self.is_compiled(device):
            return function
        options = GPU_OPTIONS | {"triton.cudagraphs": cuda_graphs} if device.type == "cuda" else {}
        try:
            compiled_function = cast(Function, torch.compile(function, dynamic=False, options=options))
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
    patient: dist.ProcessGroup | None = None  # for work that takes some ranks longer; None: all wait briefly

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

    def gather(self, value: Item) -> list[Item]:
        """The value of each rank. Waits for ranks that still load. Collective."""
        if self.world == 1:
            return [value]
        values = [value] * self.world
        dist.all_gather_object(values, value, group=self.patient)
        return values

    @contextlib.contextmanager
    def share_errors(self) -> Iterator[None]:
        """Raise an error of one rank on all, which would wait for it for ever. Collective.

        The others raise it as a ModelError.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as err:  # whatever it is, no other rank can go on
            error = err
        messages = self.gather(None if error is None else f"{error}")
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise ModelError(f"rank {rank}: {message}")

    def check_equal(self, values: Mapping[str, object], advice: Mapping[str, str]) -> None:
        """Raise ModelError on all ranks where one has another value than the first. Collective.

        ``advice`` says by name what to do; "" is that of all other names.
        """
        first, *others = self.gather(values)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise ModelError(
                        f"{name} is {value} on rank 0 and {other[name]} on rank {rank}; "
                        f"{advice.get(name, advice[''])}"
                    )


def select_device(name: str) -> torch.device:
    """auto, cpu or cuda -> the CPU, or this process's own GPU. Raises ModelError if there is no such GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device cuda: PyTorch finds no GPU here; use cpu, or fix the driver or the installation"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = read_place().local_rank
    if local >= torch.cuda.device_count():
        raise ModelError(
            f"rank {local} of this machine has no GPU: PyTorch finds {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


class _CoreLeavers:
    """The threads of the program that are in ``leave_core``.

    A thread that first computes while another one leaves a core takes over that one's number of threads. So
    the number to go back to is the one from before the first of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._n_threads = 1

    @contextlib.contextmanager
    def count(self) -> Iterator[int]:
        """PyTorch's number of threads where no core is left."""
        with self._lock:
            if not self._n_inside:
                self._n_threads = torch.get_num_threads()
            self._n_inside += 1
            n_threads = self._n_threads
        try:
            yield n_threads
        finally:
            with self._lock:
                self._n_inside -= 1


_CORE_LEAVERS = _CoreLeavers()


@contextlib.contextmanager
def leave_core(device: torch.device) -> Iterator[None]:
    """On a processor, keep one of the cores for what goes on beside the network: decoding, encoding.

    Where they share the cores, PyTorch's threads wait for the one among them that has to share its own.
    Several threads of the program may do so at once.
    """
    with _CORE_LEAVERS.count() as n_threads:
        if device.type == "cpu":
            torch.set_num_threads(max(1, min(n_threads, count_cores_per_rank() - 1)))
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)


@contextlib.contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """The ranks as ``torchrun`` started them, or this process alone; ``device`` is auto, cpu or cuda.

    Raises ModelError when there is no such GPU, ShardError for an environment that ``torchrun`` did not make.
    """
    place = read_place()
    check_meeting_point(place)
    world = place.world
    own_device = select_device(device)
    if world == 1:
        yield Ranks(0, 1, own_device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo")
    try:
        patient = dist.new_group(timeout=LOADING_TIME, backend="gloo")
        yield Ranks(dist.get_rank(), world, own_device, patient)
    finally:
        dist.destroy_process_group()
