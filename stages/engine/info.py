"""The JSON objects that say what made a folder: ``run.json``, ``samples.json``, ``evaluation.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shards.documents import Document, parse_object
from shards.errors import ShardError
from shards.files import read_file
from stages.engine.outcome import StageError

MAX_INFO_BYTES = 2**22  # the largest, of an evaluation of many systems, have 100 KB
Text = Annotated[str, Field(max_length=4096)]  # a path or an address, or shorter


def read_info(folder: Path, name: str, model: type[Document], *, writer: str) -> dict[str, Any]:
    """The JSON object ``name`` of a folder, after it is compared with a model. ``writer`` is the command that
    writes it.

    Raises StageError in one line.
    """
    path = folder / name
    try:
        data = read_file(path, MAX_INFO_BYTES, inside=folder)
    except FileNotFoundError as err:
        raise StageError(f"{folder}: no {name} here; `{writer}` writes it") from err
    except OSError as err:
        raise StageError(f"{path}: cannot be read ({err.strerror})") from err
    try:
        return parse_object(data, str(path), model)
    except ShardError as err:
        raise StageError(str(err)) from err
