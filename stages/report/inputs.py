"""Pick a few of many items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def pick_evenly(items: Sequence[Item], n: int) -> list[Item]:
    """All items, or ``n`` of them evenly spaced, including the first and the last."""
    if len(items) <= n:
        return list(items)
    return [items[i * (len(items) - 1) // (n - 1)] for i in range(n)]
