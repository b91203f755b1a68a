"""What may end a run before its time: a signal, or memory that does not suffice."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psutil
import torch

from model.recipe import ModelError


class StopRequest:
    """Set by SIGTERM or Ctrl-C; the step that runs is finished first."""

    by: str | None = None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """While inside, the first signal asks to stop, and a second one of the same kind does stop."""
    asked_to = StopRequest()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: object) -> None:
        asked_to.by = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# How PyTorch, oneDNN and C++ say it, besides OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "out of memory", "bad_alloc")


@contextlib.contextmanager
def explain_out_of_memory(what: str, device: torch.device, *, advice: str) -> Iterator[None]:
    """Turn an allocation that failed into a sentence on ``what`` did not fit. Raises ModelError."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        known = isinstance(err, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in str(err) for words in OUT_OF_MEMORY):
            raise
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
        raise ModelError(
            f"out of memory on {device}: {what} does not fit, {free / 1e9:.1f} of {total / 1e9:.1f} GB are "
            f"free; {advice}"
        ) from err
