"""JSON from a stranger: parsed strictly, then compared with a model before anything else looks at it."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import pydantic
from pydantic import Field

from shards.errors import ShardError, shorten
from shards.params import describe_mismatch

MAX_JSON_BYTES = 2**25  # a manifest of 100,000 shards, or the json of a clip of an hour; 1 GB as objects
MAX_DEPTH = 32  # of objects in objects
MAX_DIGITS = 19  # of a whole number: what 64 bits hold


def check_printable(text: str) -> str:
    """A text that is one line of printable letters. Raises ValueError for any other."""
    if not text.isprintable():
        raise ValueError(f"{shorten(text)}, expected one printable line")
    return text


Line = Annotated[str, Field(min_length=1, max_length=1000), pydantic.AfterValidator(check_printable)]


class Document(pydantic.BaseModel):
    """A JSON object. Types must be exact; keys that a model does not know are allowed and never used."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def parse_json(data: bytes | str, name: str) -> Any:
    """The value of a JSON text.

    Raises ShardError for a text that is too long or nested too deeply, that is not UTF-8, has a key twice, or
    a number that is not finite or has more than MAX_DIGITS digits.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ShardError(f"{name}: {len(data)} bytes of JSON, expected at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(
            data if isinstance(data, str) else data.decode("utf-8"),
            object_pairs_hook=_make_object,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as err:
        raise ShardError(f"{name}: not JSON ({err})") from err
    return value


def parse_object(data: bytes | str, name: str, model: type[Document] | None = None) -> dict[str, Any]:
    """The JSON object in a text, as it is there, after it is compared with a model. Raises ShardError."""
    value = parse_json(data, name)
    if not isinstance(value, dict):
        raise ShardError(f"{name}: JSON holds {type(value).__name__}, expected an object")
    if model is not None:
        check_document(value, model, name)
    return value


def check_document(value: Any, model: type[Document], name: str) -> None:
    """Raise ShardError in one line, with the key and its value, unless the model allows the value."""
    try:
        model.model_validate(value)
    except pydantic.ValidationError as err:
        raise ShardError(f"{name}: {describe_mismatch(err, model)}") from err


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shorten(next(name for name in names if names.count(name) > 1))} is twice")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS + text.startswith("-"):
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shorten(text)} is not finite")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")
