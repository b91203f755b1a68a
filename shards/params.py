"""What the params dataclasses of all packages share: the bound of seeds, and words for a refused value."""

from __future__ import annotations

import pydantic

from shards.documents import describe_mismatch
from shards.errors import shorten

MAX_SEED = 2**53 - 1  # some programs read larger integers of JSON and YAML inexactly


def describe_params_error(err: pydantic.ValidationError) -> str:
    """The first problem in one line: the key, its value and what was expected."""
    problem = err.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":  # our own sentence, which names the value
        message = problem["msg"].removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    if problem["type"] == "json_invalid":
        return f"not JSON ({problem['msg'].removeprefix('Invalid JSON: ')})"
    if problem["type"] == "unexpected_keyword_argument":
        return f"{shorten(name)[1:-1]} is {shorten(problem['input'])}, which is not known"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    if not name:
        return f"{shorten(problem['input'])} is not a mapping"
    return describe_mismatch(err)
