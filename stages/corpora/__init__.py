"""What each corpus calls its clips, how it splits them, and which of its files it knows to be bad.

A corpus is a module with ``identify(path) -> Identity``, ``split(identity, params) -> str``, the table
``EXPECTED`` and the line ``CITED``: who made it, its licence, its address. The expected reasons are
printed beside what was found; no rule looks at them.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType

from stages.engine.outcome import StageError

CORPORA = {"grid": "grid", "crema-d": "crema_d", "folder": "folder"}

FETCH_FOLDER = ".fetch"  # in a corpus's folder: what `pipeline fetch` keeps there; no clips

TRAIN = "train"
TEST = "test"


class BadName(Exception):
    """A file's name is not one of the corpus."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who says what, by the file's name."""

    clip_id: str  # letters, digits, "_" and "-": it becomes a key in the tar
    speaker: str
    sentence: str | None = None
    emotion: str | None = None
    level: str | None = None


def load(name: str) -> ModuleType:
    """The corpus module. Raises StageError for a name that is not one."""
    if name not in CORPORA:
        raise StageError(f"--dataset {name!r} is not known; known are {', '.join(CORPORA)}")
    return importlib.import_module(f"stages.corpora.{CORPORA[name]}")


def share_of(clip_id: str) -> float:
    """A number in [0, 1) that depends on the clip id alone, so no clip changes another's split."""
    return int.from_bytes(hashlib.sha256(f"split/{clip_id}".encode()).digest()[:8], "big") / 2**64


def folder_names(path: PurePosixPath, raw_name: str) -> list[str]:
    """Names of the folders around a file, nearest first, with the raw folder's own name last."""
    return [*reversed(path.parts[:-1]), raw_name]
