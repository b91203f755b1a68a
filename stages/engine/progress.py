"""How far a piece of work is: the one callback that long-running functions report to."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the name of a pass, how many of its units are done, and how many there are.

    ``pipeline.progress.ProgressBars`` draws it; ``no_progress`` ignores it.
    """

    def __call__(self, label: str, done: int, total: int) -> None: ...


def no_progress(label: str, done: int, total: int) -> None:
    """A ``Progress`` that shows nothing."""
