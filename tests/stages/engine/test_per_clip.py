"""A stage that works on single clips tells of each clip what the last try has made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.ledger import FAILED
from shards.table import Row, Rows
from stages.engine import per_clip
from stages.engine.cache import save_entry
from stages.engine.outcome import Outcome
from stages.engine.parts import Part, read_part, read_part_key
from stages.engine.per_clip import run_per_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work

STAGE = "mels"
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("sha256", pa.string()),
        ("video_start", pa.float64()),
        ("frames", pa.int32()),
    ]
)
CLIPS = ("s1_a", "s1_b", "s1_c")


@pytest.fixture
def part() -> Part:
    rows = [{"clip_id": name, "sha256": name, "video_start": 0.0, "frames": 3} for name in CLIPS]
    return Part("train", 0, Rows.from_rows(rows, SCHEMA))


class Machine:
    """Stands for the sandbox: some clips fail there."""

    def __init__(self) -> None:
        self.failures: dict[str, Outcome] = {}

    def __call__(self, job: ClipJob, *_: Any, **__: Any) -> Outcome:
        if (failure := self.failures.get(job.arguments["clip_id"])) is not None:
            return failure
        save_entry(Path(job.arguments["entry"]), Outcome(), {"mels": np.zeros((6, 2), np.float32)})
        return Outcome()


def make_job(row: Row, entry: Path) -> ClipJob:
    return ClipJob(save_entry, clip_id=row["clip_id"], entry=entry)  # type: ignore[arg-type]


def test_a_clip_that_fails_again_for_another_reason_has_the_new_one(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work("folder", tmp_path, tmp_path, tmp_path, tmp_path / "cache")
    path = work.part_path(STAGE, part.name)
    machine = Machine()
    monkeypatch.setattr(per_clip.sandbox, "run", machine)

    def run() -> Report:
        return run_per_clip(
            STAGE, work, [part], Context(), params_digest="", make_job=make_job, columns={"mels": np.float32}
        )

    machine.failures = {
        "s1_a": Outcome(FAILED, "memory", "used 1403 MB of memory"),
        "s1_b": Outcome(FAILED, "hang", "no answer within 60 s"),
    }
    assert run().counts == {"ok": 1, "hang": 1, "memory": 1}
    key = read_part_key(path)
    assert run().parts["built"] == 0, "nothing is new"

    machine.failures["s1_a"] = Outcome(FAILED, "memory", "used 1417 MB of memory")
    assert run().parts["built"] == 1
    assert read_part(path)["s1_a"]["reason"] == "used 1417 MB of memory"
    machine.failures["s1_b"] = Outcome(FAILED, "crash", "no answer within 60 s")
    assert run().counts == {"ok": 1, "crash": 1, "memory": 1}
    assert read_part_key(path) == key, "later stages have nothing new to do"

    path.write_bytes(path.read_bytes()[:-100])
    assert run().parts["built"] == 1, "a damaged part is written again"

    machine.failures = {}
    assert run().counts == {"ok": 3}
    assert read_part_key(path) != key
    assert run().parts["built"] == run().clips_computed == 0
