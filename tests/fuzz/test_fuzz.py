"""Parsers read or refuse what a stranger sends: what fuzzing found before, and a few new inputs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.worlds import ONE_THREAD

CORPUS = Path(__file__).parent / "corpus"
MAX_CORPUS_BYTES = 200_000
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed; it has wheels for Python 3.11 to 3.13 on Linux x86-64",
)


def run_fuzzer(tmp_path: Path, *options: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", *options, "--findings", tmp_path / "findings"]
    process = subprocess.run(
        list(map(str, command)), env=os.environ | ONE_THREAD, capture_output=True, text=True, check=False
    )
    texts = [path.read_text() for path in sorted(tmp_path.rglob("*.txt"))]
    assert process.returncode == 0, "\n".join([process.stdout, process.stderr[-3000:], *texts])


def test_every_input_that_fuzzing_found_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    run_fuzzer(tmp_path, "--replay")


@needs_atheris
def test_the_first_mutations_of_every_parser_find_nothing(tmp_path: Path) -> None:
    # So many runs that every machine makes the same ones: what is new is for those who fuzz by hand.
    run_fuzzer(tmp_path, "--seconds", "30", "--runs", "20")


def test_the_kept_inputs_are_small_and_of_parsers_that_exist() -> None:
    from tests.fuzz.targets import PARSERS

    assert {path.name for path in CORPUS.iterdir()} <= PARSERS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < MAX_CORPUS_BYTES
