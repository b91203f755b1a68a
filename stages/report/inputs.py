"""Helpers that read JSON files and pick a few of many items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from stages.engine.outcome import StageError

Item = TypeVar("Item")


def read_json_object(path: Path, writer: str) -> dict[str, Any]:
    """Read a JSON file whose top level is an object. ``writer`` names the command that writes it.

    Raises StageError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise StageError(f"{path.parent}: no {path.name} here; `{writer}` writes it") from err
    except (OSError, ValueError, RecursionError) as err:
        raise StageError(f"{path}: not JSON ({err})") from err
    if not isinstance(content, dict):
        raise StageError(f"{path}: JSON holds {type(content).__name__}, expected an object")
    return content


def pick_evenly(items: Sequence[Item], n: int) -> list[Item]:
    """All items, or ``n`` of them evenly spaced, including the first and the last."""
    if len(items) <= n:
        return list(items)
    return [items[i * (len(items) - 1) // (n - 1)] for i in range(n)]
