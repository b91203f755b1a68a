"""How a run ends early: stop signals, and a clear error when memory does not suffice."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import torch

from model.recipe import ModelError
from shards.memory import find_free_memory


class StopRequest:
    """Set by SIGTERM or Ctrl-C; the current step is finished first."""

    signal_name: str | None = None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT into a request to stop; a second one acts as usual.

    In another thread than the main one, which alone can catch signals, there is no such request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def record(number: int, _frame: object) -> None:
        request.signal_name = signal.Signals(number).name
        signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# The messages of PyTorch, oneDNN and C++, besides OutOfMemoryError.
OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "out of memory", "bad_alloc")


@contextlib.contextmanager
def explain_out_of_memory(what: str, device: torch.device, *, advice: str) -> Iterator[None]:
    """Turn a failed allocation into one line that says ``what`` does not fit. Raises ModelError."""
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        is_memory_error = isinstance(err, torch.OutOfMemoryError | MemoryError)
        if not is_memory_error and not any(phrase in str(err) for phrase in OUT_OF_MEMORY):
            raise
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            room = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
        else:
            room = f"{find_free_memory() / 1e9:.1f} GB are free"
        raise ModelError(f"out of memory on {device}: {what} does not fit, {room}; {advice}") from err
