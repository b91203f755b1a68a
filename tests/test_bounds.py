"""Every number of every params dataclass has finite bounds: one from elsewhere cannot ask for all memory."""

from __future__ import annotations

import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, Union

import pydantic
import pytest
from pydantic.dataclasses import is_pydantic_dataclass

PACKAGES = ("pipeline", "stages", "sampler", "model", "shards")
ABSURD = (float("inf"), float("-inf"), float("nan"), 1e300, -1e300, 10**18, -(10**18), 10**400, True)
# Written by ourselves and read by tests: ground truth of made clips, not parameters.
NOT_PARAMS = {"FilmTruth", "FrameTruth", "PersonTruth", "SceneTruth", "Truth"}


def list_params_classes() -> list[type]:
    """Every pydantic dataclass of the product."""
    classes = set()
    for name in PACKAGES:
        package = importlib.import_module(name)
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                if isinstance(value, type) and is_pydantic_dataclass(value) and value.__module__ == info.name:
                    classes.add(value)
    params_classes = [item for item in classes if item.__name__ not in NOT_PARAMS]
    return sorted(params_classes, key=lambda item: item.__name__)


def place_in(annotation: Any, number: Any) -> Iterator[Any]:
    """Values of a type, each with ``number`` in another place where the type has a number."""
    if annotation in (int, float):
        yield number
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from place_in(arguments[0], number)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from place_in(argument, number)
    elif origin is tuple:
        sides = [arguments[0]] if arguments[-1] is Ellipsis else list(arguments)
        for place, side in enumerate(sides):
            for value in place_in(side, number):
                yield [value if other == place else 1 for other in range(len(sides))]
    elif origin in (list, set):
        yield from ([value] for value in place_in(arguments[0], number))
    elif origin is dict:
        yield from ({"folder": value} for value in place_in(arguments[1], number))
    else:
        is_other = annotation in (str, bool, Any, type(None)) or origin is Literal
        assert is_other or is_pydantic_dataclass(annotation), f"{annotation}: say here where it has numbers"


def list_numbers() -> Iterator[Any]:
    for params_class in list_params_classes():
        hints = typing.get_type_hints(params_class, include_extras=True)
        for item in fields(params_class):
            if item.init and any(True for _ in place_in(hints[item.name], 0)):
                yield pytest.param(params_class, item.name, id=f"{params_class.__name__}.{item.name}")


def test_the_params_classes_are_found() -> None:
    names = {item.__name__ for item in list_params_classes()}
    assert {"Recipe", "UNetParams", "MelsParams", "ClipsParams", "EditParams", "SampleParams"} <= names
    assert len(list(list_numbers())) > 80


@pytest.mark.parametrize(("params_class", "name"), list(list_numbers()))
def test_every_number_of_the_params_refuses_what_no_one_means(params_class: type, name: str) -> None:
    adapter = pydantic.TypeAdapter(params_class)
    annotation = typing.get_type_hints(params_class, include_extras=True)[name]
    for number in ABSURD:
        for value in place_in(annotation, number):
            with pytest.raises(pydantic.ValidationError) as caught:
                adapter.validate_json(json.dumps({name: value}), strict=True)
            assert caught.value.errors()[0]["loc"][0] == name, f"{value}: {caught.value}"
