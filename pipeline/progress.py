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


def shown(
    results: Iterable[tuple[Any, int]], label: str, total_frames: int, n_items: int, *, quiet: bool
) -> Iterator[Any]:
    """Pass on results from pairs (result, frames it stands for), and show how far they are."""
    if quiet or not n_items:
        for result, _ in results:
            yield result
        return
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total_frames,
        desc=label,
        unit=" frames",
        unit_scale=True,
        mininterval=REDRAW_SECONDS,
        disable=not terminal,
        dynamic_ncols=True,
    )
    started = last = time.monotonic()
    items = frames = drops = 0
    with bar:
        for result, size in results:
            items, frames, drops = items + 1, frames + size, drops + count_drops(result)
            now = time.monotonic()
            if terminal:
                bar.set_postfix_str(f"{items / (now - started):.1f}/s, {drops} dropped", refresh=False)
                bar.update(size)
            elif now - last >= LINE_SECONDS or items == n_items:
                last = now
                print(_line(label, items, n_items, frames, total_frames, drops, now - started),
                      file=sys.stderr, flush=True)  # fmt: skip
            yield result


class ProgressBars:
    """For work in passes that counts by itself: a bar for each pass, or a line every few seconds."""

    def __init__(self, unit: str = "frames") -> None:
        self._unit = unit
        self._label = ""
        self._bar: tqdm[Any] | None = None
        self._started = self._last = 0.0

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Say that a pass has done so many of its frames."""
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if label != self._label:
            self.__exit__()
            self._label, self._started, self._last = label, now, now
            if terminal:
                self._bar = tqdm(total=total, desc=label, unit=f" {self._unit}", mininterval=REDRAW_SECONDS,
                                 dynamic_ncols=True)  # fmt: skip
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        elif now - self._last >= LINE_SECONDS or done == total:
            self._last = now
            seconds = max(now - self._started, 1e-9)
            rate, left = f"{done / seconds:.0f} {self._unit}/s", time_left(done, total, seconds)
            print(f"{label} {done}/{total}, {rate}, {left}", file=sys.stderr, flush=True)


def time_left(done: int, total: int, seconds: float) -> str:
    """How long the rest takes when so many frames took so many seconds, in words."""
    return f"{(total - done) * seconds / done:.0f} s left" if 0 < done < total else "done"


def _line(label: str, items: int, n_items: int, frames: int, total: int, drops: int, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return (f"{label} {items}/{n_items}, {items / seconds:.1f}/s, {frames / seconds:.0f} frames/s, "
            f"{drops} dropped, {time_left(frames, total, seconds)}")  # fmt: skip


def count_drops(result: Any) -> int:
    """How many clips a task's result says were not kept."""
    if isinstance(result, Outcome):
        return int(result.status != OK)
    if isinstance(result, (list, tuple)):
        return sum(count_drops(item) for item in result)
    return 0
