"""Weights from a stranger: the header is compared with the recipe, then the values; errors are one line."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.recipe import ModelError
from model.tensor_file import MAX_WEIGHT, read_tensors

SHAPES = {"a.weight": (3, 2), "b": (), "empty": (0,)}
GOOD = {"a.weight": torch.arange(6.0).view(3, 2), "b": torch.tensor(7.0), "empty": torch.zeros(0)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that fits SHAPES."""
    save_file(GOOD, tmp_path / "weights.safetensors", {"redub": "x"})
    return tmp_path / "weights.safetensors"


def read_error(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_tensors(path, SHAPES, max_value=MAX_WEIGHT)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400 + len(str(path))
    return message.removeprefix(f"{path}: ")


def rewrite(path: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    """Write what ``change`` makes of the header and the values."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    path.write_bytes(change(data[8:end], data[end:]))


def join(header: bytes, values: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + values


def test_what_is_written_is_read_back(path: Path) -> None:
    tensors = read_tensors(path, SHAPES, max_value=MAX_WEIGHT)
    assert all(torch.equal(tensors[name], GOOD[name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64])
def test_weights_of_another_dtype_are_refused(path: Path, dtype: torch.dtype) -> None:
    save_file({name: value.to(dtype) for name, value in GOOD.items()}, path)
    assert "does not fit its recipe: a.weight is " in read_error(path)
    assert "expected F32 [3, 2]" in read_error(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e30, -1e38, 2e4])
def test_a_value_that_no_training_gives_is_refused_by_the_name_of_its_tensor(
    path: Path, value: float
) -> None:
    weight = GOOD["a.weight"].clone()
    weight[1, 1] = value
    save_file(GOOD | {"a.weight": weight}, path)
    assert read_error(path).startswith("a.weight has the value ")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": None}, "a.weight is missing, expected F32 [3, 2]"),
        ({"c": torch.zeros(2)}, "c is F32 [2], expected no such tensor"),
        ({"a.weight": torch.zeros(2, 3)}, "a.weight is F32 [2, 3], expected F32 [3, 2]"),
        ({"x" * 5000: torch.zeros(1)}, "xxx"),
    ],
)
def test_other_names_and_shapes_are_refused(
    path: Path, tensors: dict[str, Tensor | None], message: str
) -> None:
    content = {name: value for name, value in (GOOD | tensors).items() if value is not None}
    save_file(content, path)
    assert read_error(path).startswith(f"does not fit its recipe: {message}")


@pytest.mark.parametrize(
    "change",
    [
        lambda header, values: join(header, values, 2**62),
        lambda header, values: join(header, values, 0),
        lambda header, values: join(b"x" * len(header), values),
        lambda header, values: join(b'{"a":' * 5000, values),
        lambda header, values: join(b"[1]", values),
        lambda header, values: join(header, values[:-1]),
        lambda header, values: join(header, values + b"more"),
        lambda header, values: b"",
        lambda header, values: b"\x01",
        lambda header, values: join(header.replace(b"[0,", b"[9,"), values),
        lambda header, values: join(json.dumps(dict.fromkeys(SHAPES, 5)).encode(), values),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(path: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    rewrite(path, change)
    assert read_error(path)


def test_a_file_that_is_larger_than_its_recipe_takes_no_memory(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse: a terabyte that needs no disk
    tracemalloc.start()
    message = read_error(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.startswith("has 1,099,511,627,776 bytes, its recipe needs at most ")
    assert peak < 2**20


def test_a_header_of_more_than_names_and_shapes_need_takes_no_memory(path: Path) -> None:
    tracemalloc.start()
    n_bytes = 2**20
    with path.open("wb") as file:
        file.write(n_bytes.to_bytes(8, "little") + b'{"a":[' + b"[]," * (n_bytes // 3 - 3) + b"1]}".ljust(9))
    with pytest.raises(ModelError, match="header claims 1,048,576 bytes, expected at most"):
        read_tensors(path, {"w": (2**26,)}, max_value=1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_only_a_regular_file_of_the_folder_is_read(path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    path.rename(outside)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(outside)
    (folder / "within").symlink_to("file")
    save_file(load_file(outside), folder / "file")
    assert "is a pipe" in read_error(folder / "pipe")
    assert "leads out of its folder" in read_error(folder / "link")
    assert "is a folder" in read_error(folder)
    assert read_tensors(folder / "within", SHAPES, max_value=MAX_WEIGHT).keys() == SHAPES.keys()
