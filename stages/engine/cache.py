"""Results kept by what they were made from, so that nothing is computed twice.

DVC deletes a stage's outs before it runs the stage. What makes a rebuild cheap is this cache beside
them: one changed clip or parameter has another key, and everything else is found again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from stages.engine.outcome import Outcome

OUTCOME = "outcome.json"


def digest(*parts: Any) -> str:
    """A name for values: dataclasses, dicts, lists, strings and numbers. Order of keys is no matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no stable name for the cache")


@functools.lru_cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of the libraries whose code a result depends on; not to be written to."""
    return {name: metadata.version(name) for name in packages}


def entry_path(cache: Path, stage: str, key: str, suffix: str) -> Path:
    """Where the cache keeps the result with this key. 256 folders, so none holds too many files."""
    return cache / stage / key[:2] / f"{key}{suffix}"


def save_entry(path: Path, outcome: Outcome, arrays: dict[str, NDArray[Any]] | None = None) -> None:
    """Write an outcome and its arrays; same values, same bytes (numpy's zips carry no times)."""
    text = np.frombuffer(json.dumps(outcome.to_json(), sort_keys=True).encode(), np.uint8)
    with write_atomically(path) as partial, partial.open("wb") as file:
        # numpy's stubs take every keyword for ``allow_pickle``.
        np.savez(file, **{OUTCOME: text, **(arrays or {})})  # type: ignore[arg-type]


def load_entry(path: Path) -> tuple[Outcome, dict[str, NDArray[Any]]] | None:
    """What ``save_entry`` wrote, or None when there is no whole entry."""
    try:
        with np.load(path, allow_pickle=False) as entry:
            arrays = {name: entry[name] for name in entry.files}
        outcome = Outcome.from_json(json.loads(arrays.pop(OUTCOME).tobytes()))
    except FileNotFoundError:
        return None
    except Exception:  # whatever a damaged file raises, the remedy is to compute it again
        path.unlink(missing_ok=True)
        return None
    return outcome, arrays


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source``'s bytes a second name; on another file system, copy them."""
    with write_atomically(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
