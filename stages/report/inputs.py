"""Pick a few of many items, or the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")


def pick_evenly(items: Sequence[Item], n: int) -> list[Item]:
    """All items, or ``n`` of them evenly spaced, including the first and the last."""
    if len(items) <= n:
        return list(items)
    return [items[i * (len(items) - 1) // (n - 1)] for i in range(n)]


def pick_best(means: Mapping[Key, float | None], better: str) -> list[Key]:
    """The keys of the best mean; none if no direction is better, or fewer than two compete."""
    values = [mean for mean in means.values() if mean is not None]
    if not better or len(values) < 2:
        return []
    best = max(values) if better == "higher" else min(values)
    return [key for key, mean in means.items() if mean == best]
