"""Messages of one short line about values that may be anything."""

from __future__ import annotations

import pydantic

MAX_VALUE_CHARACTERS = 80


def shorten(value: object) -> str:
    """``repr`` of a value, cut after MAX_VALUE_CHARACTERS."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a number of thousands of digits"
    if len(text) <= MAX_VALUE_CHARACTERS:
        return text
    return f"{text[: MAX_VALUE_CHARACTERS - 3]}..."


def describe_validation_error(err: pydantic.ValidationError, subject: str = "it") -> str:
    """The first problem in one line: the key, its value and what was expected.

    ``subject`` is the name of the whole, for a problem that no key has.
    """
    problem = err.errors(include_url=False)[0]
    name = ".".join(shorten(part)[1:-1] if isinstance(part, str) else str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # our own sentence, which names the value
        return f"{name}: {message}" if name else message
    if problem["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    if problem["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
    return f"{name or subject} is {shorten(problem['input'])}: {message}"
