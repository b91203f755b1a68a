"""JSON is parsed strictly, and messages stay one short line whatever it holds."""

from __future__ import annotations

import json
from typing import Annotated

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field

from shards.documents import MAX_JSON_BYTES, Document, Line, check_document, parse_json
from shards.errors import MAX_MESSAGE_LETTERS, ShardError
from shards.index import Sha256

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_what_json_writes_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), "x.json") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b'"\xff"', "utf-8"), (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"), (b"[1e999]", "'1e999' is not finite"),
        (b"[" + b"1" * 5000 + b"]", "a number of 5000 digits"), (b'{"a": 1, "a": 2}', "the key 'a' is twice"),
        (b"[" * 40 + b"]" * 40, "nested more than 32 deep"), (b"[" * 10**6, "not JSON"),
        (b"1" + b" " * MAX_JSON_BYTES, "bytes of JSON, expected at most"),
    ],
)  # fmt: skip
def test_json_that_others_would_take_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ShardError, match=message) as error:
        parse_json(data, "x.json")
    assert str(error.value).startswith("x.json: ") and len(str(error.value)) <= MAX_MESSAGE_LETTERS


class _Example(Document):
    numbers: Annotated[list[int], Field(fail_fast=True)]
    name: str = ""


@given(st.dictionaries(st.sampled_from(["numbers", "name", "other"]), VALUES))
def test_a_document_is_allowed_or_named_in_one_short_line(value: dict[str, object]) -> None:
    numbers, name = value.get("numbers"), value.get("name", "")
    is_allowed = isinstance(name, str) and isinstance(numbers, list)
    if is_allowed and all(type(number) is int for number in numbers or []):  # type: ignore[attr-defined]
        check_document(value, _Example, "x.json")
        return
    with pytest.raises(ShardError, match=r"x\.json: (numbers is missing|n\w+(\.\d+)? is )") as error:
        check_document(value, _Example, "x.json")
    assert len(str(error.value)) <= MAX_MESSAGE_LETTERS and str(error.value).isprintable()


class _Child(Document):
    model_config = ConfigDict(extra="forbid")

    sha256: Sha256 = ""
    note: Line = "none"


class _Parent(Document):
    children: list[_Child] | None = None

    @pydantic.model_validator(mode="after")
    def _check_children(self) -> _Parent:
        if self.children == []:
            raise ValueError("children is [], expected at least one")
        return self


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"children": [{"sha256": "x"}]}, "children.0.sha256: 'x', expected 64 hex digits"),
        ({"children": [{"note": ""}]}, "children.0.note is '', expected at least 1 character"),
        ({"children": [{}, {"sha": 1}]}, "children.1.sha is not known; known are sha256, note"),
        ({"children": []}, "children is [], expected at least one"),
        ({"children": 1}, "children is 1, expected a valid list"),
    ],
)
def test_a_line_about_a_document_names_the_key_the_value_and_what_was_expected(
    value: object, message: str
) -> None:
    with pytest.raises(ShardError) as error:
        check_document(value, _Parent, "x.json")
    assert str(error.value) == f"x.json: {message}"
