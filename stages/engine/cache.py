"""A content-keyed cache of results, so that nothing is computed twice.

DVC deletes a stage's outs before it runs the stage. This cache, which is no out, makes a rebuild cheap: a
changed clip or parameter has a new key, and every other result is read from the cache.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.files import open_file
from shards.schema import npy_to_array
from stages.engine.outcome import MACHINE_ERRORS, Outcome, StageError

OUTCOME = "outcome.json"


def digest(*parts: Any) -> str:
    """sha256 of values: dataclasses, dicts, lists, strings and numbers. The order of keys does not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no stable digest for the cache")


@functools.lru_cache
def versions(*packages: str) -> dict[str, str]:
    """Versions of the libraries that a result depends on. Do not modify the dict: it is cached."""
    return {name: metadata.version(name) for name in packages}


def entry_path(cache: Path, stage: str, key: str, suffix: str) -> Path:
    """Path of the cache entry with this key. 256 folders, so that none has too many files."""
    return cache / stage / key[:2] / f"{key}{suffix}"


def save_entry(path: Path, outcome: Outcome, arrays: dict[str, NDArray[Any]] | None = None) -> None:
    """Write an outcome and its arrays; same values, same bytes (numpy's zip files hold no times)."""
    text = np.frombuffer(json.dumps(outcome.to_json(), sort_keys=True).encode(), np.uint8)
    with write_atomically(path) as partial, partial.open("wb") as file:
        # numpy's stubs read every keyword as ``allow_pickle``.
        np.savez(file, **{OUTCOME: text, **(arrays or {})})  # type: ignore[arg-type]


def load_entry(path: Path) -> tuple[Outcome, dict[str, NDArray[Any]]] | None:
    """The outcome and arrays that ``save_entry`` wrote, or None when there is no intact entry."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as entry:
            names = entry.namelist()
            arrays = {name.removesuffix(".npy"): npy_to_array(entry.read(name), name) for name in names}
        outcome = Outcome.from_json(json.loads(arrays.pop(OUTCOME).tobytes()))
    except FileNotFoundError:
        return None
    except Exception as err:  # whatever a damaged file raises: it is computed again
        if isinstance(err, OSError) and err.errno in (errno.EACCES, *MACHINE_ERRORS):
            raise  # it may be intact
        path.unlink(missing_ok=True)
        return None
    return outcome, arrays


def read_entry(path: Path) -> tuple[Outcome, dict[str, NDArray[Any]]]:
    """As ``load_entry``, of an entry that was there. Raises StageError when it is not."""
    entry = load_entry(path)
    if entry is None:
        raise StageError(f"{path}: this entry of the cache is gone or damaged; run again")
    return entry


def read_version(path: Path) -> tuple[int, ...]:
    """What tells a file from one that takes its place later: its inode, its time in ns, its bytes."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def hash_file_once(path: Path) -> str:
    """sha256 of a file, which this process reads again only where another one has taken its place."""
    return _hash_version(path, read_version(path))


@functools.lru_cache(maxsize=2**16)
def _hash_version(path: Path, _: tuple[int, ...]) -> str:
    return file_sha256(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link ``source`` as ``target``; copy it when ``target`` is on another file system."""
    with write_atomically(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
