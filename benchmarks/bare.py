"""Run benchmarks beside a checkout that is not installed, in an environment with little more than PyTorch.

Import it first: it puts the checkout on Python's path, and in the place of psutil, TensorBoard and Pillow, if
they are not installed, the little that a measurement of speed asks of them.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

KILOBYTE = 1024


def _read_memory() -> SimpleNamespace:
    """The machine's memory in bytes. What is free is what nobody has ever used, or Linux could take back."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, available = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = KILOBYTE * int(line.split()[1])
    return SimpleNamespace(total=total, available=available)


class _Process:
    """This process: nothing asks for another one."""

    def memory_info(self) -> SimpleNamespace:
        """The peak in place of the current size, in bytes."""
        return SimpleNamespace(rss=KILOBYTE * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class _SilentWriter:
    """A TensorBoard writer that writes nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


def add_module(name: str, **members: Any) -> None:
    """Put a module with these members in the place of one that is not installed."""
    module = ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if importlib.util.find_spec("psutil") is None:
    add_module("psutil", virtual_memory=_read_memory, Process=_Process)
if importlib.util.find_spec("tensorboard") is None:
    add_module("torch.utils.tensorboard", SummaryWriter=_SilentWriter)
if importlib.util.find_spec("PIL") is None:
    add_module("PIL", Image=None)  # for pictures of an evaluation, which no benchmark of speed makes
