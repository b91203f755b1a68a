"""Cache entries that something else wrote: they count as missing, and what they held is computed again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.ledger import DROPPED
from stages.engine import cache
from stages.engine.cache import OUTCOME, hash_file_once, load_entry, save_entry
from stages.engine.outcome import Outcome


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    outcome = Outcome(DROPPED, "code", "a name \udcff that is not UTF-8", ("a note",), {"frames": 3})
    save_entry(tmp_path / "x.npz", outcome, {"values": np.arange(3)})
    loaded = load_entry(tmp_path / "x.npz")
    assert loaded is not None and loaded[0] == outcome and loaded[1]["values"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "outcome",
    [{}, [], 3, {"notes": 3}, {"notes": [1]}, {"notes": [], "status": "odd"}, {"notes": [], "status": []},
     {"notes": [], "code": 3}, {"notes": [], "reason": None}, {"notes": [], "facts": None},
     {"notes": [], "other": 1}],
)  # fmt: skip
def test_an_outcome_of_other_types_is_no_entry(outcome: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.savez(file, **{OUTCOME: np.frombuffer(json.dumps(outcome).encode(), np.uint8)})  # type: ignore[arg-type]
    assert load_entry(path) is None
    assert not path.exists()


def test_a_pipe_is_no_entry(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    assert load_entry(tmp_path / "x.npz") is None


def test_a_file_is_hashed_again_only_where_another_has_taken_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def hash_file(path: Path) -> str:
        hashed.append(path.read_text())
        return hashed[-1]

    monkeypatch.setattr(cache, "file_sha256", hash_file)
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_text("one")
    assert [hash_file_once(path) for _ in range(3)] == ["one"] * 3
    other.write_text("two")
    other.replace(path)
    assert hash_file_once(path) == "two" and hashed == ["one", "two"]
