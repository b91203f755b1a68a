"""Read YAML that may come from anyone: mappings, lists, strings, numbers, true, false and null of YAML 1.2.

``yes``, ``0x10``, ``010``, ``10:30`` and ``2024-01-01`` are strings here, which a number's field refuses;
PyYAML would make booleans, other numbers and a date of them. ``1e-4`` is a number.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from shards.errors import shorten
from stages.engine.outcome import StageError

MAX_DEPTH = 20  # a recipe has four levels
MAX_DIGITS = 40  # a float has 17


def parse_yaml(text: str) -> Any:
    """The value of one YAML document: dict, list, str, int, float, bool or None.

    Raises StageError, in one line, for what is not YAML, for a key that is there twice, for anchors and tags,
    and for numbers that are not finite.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as err:
        place = f"line {err.problem_mark.line + 1}: " if err.problem_mark else ""
        raise StageError(f"{place}{' '.join((err.problem or 'not YAML').split())[:200]}") from err
    except (yaml.YAMLError, RecursionError, ValueError) as err:
        raise StageError(" ".join(str(err).split())[:200] or "nested too deeply") from err


class _PlainLoader(yaml.SafeLoader):
    """YAML's core schema without anchors, tags and repeated keys."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.constructor.ConstructorError(
                problem="anchors and aliases (& and *) are not read; repeat the value",
                problem_mark=event.start_mark,
            )
        if getattr(event, "tag", None):
            raise yaml.constructor.ConstructorError(
                problem=f"tags are not read: {shorten(event.tag)}", problem_mark=event.start_mark
            )
        if self._depth == MAX_DEPTH:
            raise yaml.constructor.ConstructorError(
                problem=f"more than {MAX_DEPTH} levels", problem_mark=event.start_mark
            )
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="a key is a list or a mapping, expected a name", problem_mark=key_node.start_mark
                )
            if key in mapping:
                raise yaml.constructor.ConstructorError(
                    problem=f"{shorten(key)} is there twice", problem_mark=key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_number(self, node: Any) -> int | float:
        if len(node.value) > MAX_DIGITS:
            problem = f"a number of {len(node.value)} characters"
        else:
            text = node.value.lower().replace(".inf", "inf").replace(".nan", "nan")
            number = int(text) if text.lstrip("+-").isdecimal() else float(text)
            if math.isfinite(number):
                return number
            problem = f"{node.value} is not finite"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


def _add_plain_types() -> None:
    _PlainLoader.yaml_implicit_resolvers = {}  # not those of YAML 1.1
    for tag, pattern, first_characters in (
        ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
        ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
        ("number", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        (
            "number",
            r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
            list("-+.0123456789"),
        ),
        ("number", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.")),
    ):
        _PlainLoader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(f"{pattern}$"), first_characters
        )
    _PlainLoader.add_constructor("tag:yaml.org,2002:number", _PlainLoader.construct_number)


_add_plain_types()
