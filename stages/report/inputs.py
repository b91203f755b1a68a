"""What the page reads of what others left: their JSON, and of many things a few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from stages.engine.outcome import StageError

Item = TypeVar("Item")


def read_object(path: Path, writer: str) -> dict[str, Any]:
    """The object in a file that ``writer``, a command, writes. Raises StageError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise StageError(f"{path.parent}: no {path.name} here; `{writer}` writes it") from err
    except (OSError, ValueError, RecursionError) as err:
        raise StageError(f"{path}: not JSON ({err})") from err
    if not isinstance(told, dict):
        raise StageError(f"{path}: JSON holds {type(told).__name__}, expected an object")
    return told


def evenly(items: Sequence[Item], n: int) -> list[Item]:
    """All of them, or ``n`` that are evenly spread, the first and the last among them."""
    if len(items) <= n:
        return list(items)
    return [items[i * (len(items) - 1) // (n - 1)] for i in range(n)]
