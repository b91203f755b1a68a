"""Progress: a bar on a terminal, a line every few seconds elsewhere, nothing for machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from shards.ledger import OK
from stages.engine.outcome import Outcome

LINE_SECONDS = 5.0
REDRAW_SECONDS = 0.2


class ProgressBars:
    """A ``stages.engine.progress.Progress``: a bar for each pass, or a line every few seconds.

    ``done`` and ``total`` are divided by ``scale`` to be shown in ``unit``.
    """

    def __init__(self, unit: str = "frames", *, scale: int = 1, quiet: bool = False) -> None:
        self._unit = unit
        self._scale = scale
        self._quiet = quiet
        self._label = ""
        self._bar: tqdm[Any] | None = None
        self._pass_start = self._last_line = 0.0

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units of the pass ``label`` are done."""
        if self._quiet:
            return
        done, total = done // self._scale, total // self._scale
        now = time.monotonic()
        if label != self._label:
            self.__exit__()
            self._label, self._pass_start, self._last_line = label, now, now
            if sys.stderr.isatty():
                self._bar = tqdm(total=total, desc=label, unit=f" {self._unit}", mininterval=REDRAW_SECONDS,
                                 dynamic_ncols=True)  # fmt: skip
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self.__exit__()  # what is printed next comes below the finished bar
        elif now - self._last_line >= LINE_SECONDS or done == total:
            self._last_line = now
            seconds = max(now - self._pass_start, 1e-9)
            rate, remaining = f"{done / seconds:.0f} {self._unit}/s", format_time_left(done, total, seconds)
            print(f"{label} {done}/{total}, {rate}, {remaining}", file=sys.stderr, flush=True)


def show_results(
    results: Iterable[tuple[Any, int]], label: str, total_frames: int, n_items: int, *, quiet: bool
) -> Iterator[Any]:
    """Pass on the results of pairs (result, its number of frames), and show progress with drops."""
    if quiet or not n_items:
        for result, _ in results:
            yield result
        return
    is_terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total_frames,
        desc=label,
        unit=" frames",
        unit_scale=True,
        mininterval=REDRAW_SECONDS,
        disable=not is_terminal,
        dynamic_ncols=True,
    )
    start = last_line = time.monotonic()
    items = frames = drops = 0
    with bar:
        for result, size in results:
            items, frames, drops = items + 1, frames + size, drops + count_drops(result)
            now = time.monotonic()
            if is_terminal:
                bar.set_postfix_str(f"{items / (now - start):.1f}/s, {drops} dropped", refresh=False)
                bar.update(size)
            elif now - last_line >= LINE_SECONDS or items == n_items:
                last_line = now
                print(_format_line(label, items, n_items, frames, total_frames, drops, now - start),
                      file=sys.stderr, flush=True)  # fmt: skip
            yield result


def format_time_left(done: int, total: int, seconds: float) -> str:
    """How long the rest takes when ``done`` units took so many seconds, in words."""
    return f"{(total - done) * seconds / done:.0f} s left" if 0 < done < total else "done"


def _format_line(
    label: str, items: int, n_items: int, frames: int, total: int, drops: int, seconds: float
) -> str:
    seconds = max(seconds, 1e-9)
    return (f"{label} {items}/{n_items}, {items / seconds:.1f}/s, {frames / seconds:.0f} frames/s, "
            f"{drops} dropped, {format_time_left(frames, total, seconds)}")  # fmt: skip


def count_drops(result: Any) -> int:
    """How many clips a task's result reports as dropped or failed."""
    if isinstance(result, Outcome):
        return int(result.status != OK)
    if isinstance(result, (list, tuple)):
        return sum(count_drops(item) for item in result)
    return 0
