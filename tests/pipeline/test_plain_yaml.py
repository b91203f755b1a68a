"""Params files and --set from anyone: plain values, or one short line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import params
from pipeline.plain_yaml import parse_yaml
from stages.engine.outcome import StageError


def test_plain_values_are_those_of_yaml_1_2() -> None:
    text = """
    n: -3
    learning_rate: 1e-4
    list: [1, 2.5, .5, 1., +7]
    flags: {a: true, b: False, c: null, d: ~, e:}
    strings: [yes, no, on, 010, 0x10, 1_000, 10:10:10, 2024-01-01, "1"]
    """
    assert parse_yaml(text) == {
        "n": -3,
        "learning_rate": 1e-4,
        "list": [1, 2.5, 0.5, 1.0, 7],
        "flags": {"a": True, "b": False, "c": None, "d": None, "e": None},
        "strings": ["yes", "no", "on", "010", "0x10", "1_000", "10:10:10", "2024-01-01", "1"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there twice"),
        ("a: {b: 1, b: 1}", "line 1: 'b' is there twice"),
        ("a: &x 1\nb: *x", "line 1: anchors and aliases"),
        ("a: *x", "line 1: anchors and aliases"),
        ("a: !!python/object/apply:os.system [x]", "line 1: tags are not read: "),
        ("a: !x 1", "line 1: tags are not read: '!x'"),
        ("[1, 2]: 3", "line 1: a key is a list or a mapping"),
        ("a: .inf", "line 1: .inf is not finite"),
        ("a: -.Inf", "line 1: -.Inf is not finite"),
        ("a: .nan", "line 1: .nan is not finite"),
        ("a: 1e999", "line 1: 1e999 is not finite"),
        (f"a: {'9' * 300}", "line 1: a number of 300 characters"),
        ("[" * 100_000, "line 1: more than 20 levels"),
        ("- " * 100_000, "line 1: more than 20 levels"),
        ("--- 1\n--- 2", "line 2: "),
        ("a: [1", "line 1: "),
        ("\x00", "unacceptable character"),
        ("a: b: c", "line 1: "),
        ("@", "line 1: "),
    ],
)
def test_what_is_not_plain_is_one_short_line(text: str, message: str) -> None:
    with pytest.raises(StageError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mels: {n_fft: 1000000000}", "mels.n_fft is 1000000000, expected "),
        ("mels: {n_fft: 10:10:10}", "mels.n_fft is '10:10:10', expected a valid integer"),
        ("mels: {n_fft: 02048}", "mels.n_fft is '02048', expected a valid integer"),
        ("mels: {n_fft: '2048'}", "mels.n_fft is '2048', expected a valid integer"),
        ("mels: {n_fft: 2048.0}", "mels.n_fft is 2048.0, expected a valid integer"),
        ("clips: {follow_links: yes}", "clips.follow_links is 'yes', expected a valid boolean"),
        ("clips: {max_seconds: {grid: 2024-01-01}}", "clips.max_seconds.grid is '2024-01-01', expected "),
        ("clips: {max_pixels: 1" + "0" * 30 + "}", "clips.max_pixels is 1000"),
        ("train: {preset: 1}", "train.preset is 1, expected a valid string"),
        ("mels: 7", "mels is 7, expected "),
        ("mels: 0", "mels is 0, expected "),
        ("mels: {bins: 3}", "mels.bins is not known; known are n_fft"),
        ("melz: {}", "melz is not known; known are parts"),
        (f"{'x' * 900}: 1", "xxx"),
        (f"mels: {{fmax: {'x' * 9000}}}", "mels.fmax is 'xxx"),
        ("7", "is 7, expected a mapping of sections"),
        ("[1]", "is [1], expected a mapping of sections"),
        ("a: &x [1,2]\nb: *x", "cannot be read as YAML (line 1: anchors"),
        ('a: "\\ud800"', "not JSON ("),
        ("\n" * (params.MAX_PARAMS_BYTES + 1), "cannot be read ("),
    ],
)
def test_params_are_refused_in_one_short_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "p.yaml", text)
    with pytest.raises(StageError) as caught:
        params.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {message}")
    assert len(line) < 500 + len(str(path)) and "\n" not in line


def test_no_is_a_string_where_a_string_is_expected(tmp_path: Path) -> None:
    assert params.load(write(tmp_path / "p.yaml", "train: {preset: no}")).train.preset == "no"


def test_only_a_regular_file_is_read_as_params(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "is a pipe"), (".", "is a folder"), ("none", "is not there")):
        with pytest.raises(StageError, match=reason):
            params.load(tmp_path / name)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StageError, match="cannot be read as YAML"):
        params.load(tmp_path / "bytes")


def test_the_params_file_of_the_project_has_the_defaults() -> None:
    assert params.load(Path(__file__).parents[2] / "params.yaml") == params.Params()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0])
def test_an_edit_s_option_out_of_bounds_is_one_line(value: Any) -> None:
    with pytest.raises(StageError, match=r"max_seconds is .*, expected"):
        params.Params().make_edit_params(max_seconds=value)
