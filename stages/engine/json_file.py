"""JSON files that a stage reads: of another stage, or of a folder from someone else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shards.documents import MAX_JSON_BYTES, Document, parse_object
from shards.errors import shorten_message
from shards.files import read_file
from shards.schema import ShardError
from stages.engine.outcome import StageError


def read_json_file(
    path: Path, writer: str, model: type[Document] | None = None, *, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Read a JSON file of at most ``max_bytes`` whose top level is an object that ``model`` allows.

    ``writer`` names the command that writes it. Raises StageError, also for a link out of the file's folder.
    """
    try:
        return parse_object(read_file(path, max_bytes, inside=path.parent), f"{path}", model)
    except FileNotFoundError as err:
        raise StageError(f"{path.parent}: no {path.name} here; `{writer}` writes it") from err
    except OSError as err:
        raise StageError(shorten_message(f"{path}: cannot be read ({err.strerror})")) from err
    except ShardError as err:
        raise StageError(str(err)) from err
