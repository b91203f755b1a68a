"""What the params of all packages share: bounds, nested values by name, and the line on a refused value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import pydantic

from shards.errors import shorten

MAX_SEED = 2**53 - 1  # some programs read larger integers of JSON and YAML inexactly
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass


def iterate_values(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every value of a nested mapping, e.g. ("optim.learning_rate", 2e-4)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from iterate_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe_mismatch(err: pydantic.ValidationError, model: Any = None) -> str:
    """The first problem in one line: the key, its value and what was expected.

    A ValueError of a validator is a sentence that names the value; it follows the key and a colon. For an
    unknown key, the line lists those that ``model`` has.
    """
    problem = err.errors(include_url=False, include_context=False)[0]
    kind, message = problem["type"], problem["msg"]
    key = shorten(".".join(str(part) for part in problem["loc"]))[1:-1]
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if kind == "json_invalid":
        return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
    if kind in UNKNOWN:
        names = ", ".join(_list_fields(model, problem["loc"][:-1]))
        return f"{key} is not known{'; known are ' if names else ''}{names}"
    if kind in ("missing", "missing_argument"):
        return f"{key} is missing"
    if not key:
        return f"{shorten(problem['input'])} is not a mapping"
    expected = re.sub(r"^[A-Z][a-z]* should (be |have |match )?", "", message)  # of pydantic's words
    return f"{key} is {shorten(problem['input'])}, expected {expected}"


def _list_fields(hint: Any, keys: Sequence[int | str]) -> list[str]:
    """The fields of the models in a type, below the keys."""
    fields = _find_fields(hint)
    for key in keys:
        if key in fields:  # a number is a place in a list of models, whose fields are these
            fields = _find_fields(fields[key])
    return list(fields)


def _find_fields(hint: Any) -> dict[Any, Any]:
    """The fields, and their types, of the models in a type such as ``list[Model] | None``."""
    fields = {name: field.annotation for name, field in getattr(hint, "__pydantic_fields__", {}).items()}
    for part in get_args(hint):
        fields |= _find_fields(part)
    return fields
