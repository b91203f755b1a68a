"""A command that is killed at any moment and run again ends with the bytes of an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import pipeline
from tests.killing import JOBS
from tests.model import worlds

PATIENT = bool(os.environ.get("REDUB_PATIENT"))
KILLS = 50 if PATIENT else 2  # of each command
# Every command takes a minute or two: CI kills those whose folders are the largest work to lose. Stages
# without cutting are killed in tests/test_same_bytes.py.
IN_THE_SUITE = ("cut", "train")
# In a world, which each command needs of those before it; training needs the shards alone.
OUTPUTS = {"shard": "work", "train": "run", "sample": "samples", "evaluate": ".", "report": "."}
SIZE, N_MELS = 32, worlds.N_MELS
PARAMS = f"parts: {{clips_per_part: 1}}\nalign: {{size: {SIZE}}}\nmels: {{n_mels: {N_MELS}}}\n"
RECIPE = replace(
    worlds.TINY,
    network=replace(worlds.TINY.network, size=SIZE),
    steps=16,
    # A checkpoint every other step, of which one is kept besides the best: most steps prune one.
    watch=replace(worlds.TINY.watch, log_every=1, evaluate_every=4, save_every=2, keep_last=1),
)


@pytest.fixture(scope="module")
def world(grid: Path, landmarker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real clips, a film of them, and what the killed commands need of them, made once and unbroken."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, grid, list(OUTPUTS) if PATIENT else ["shard"])
    return folder


def make_world(folder: Path, grid: Path, commands: Iterable[str] = OUTPUTS) -> None:
    for path in sorted(grid.rglob("*.mpg"))[:2]:
        target = folder / "raw" / path.relative_to(grid)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    scene = ("--seconds", "5", "--scene", "speaker")
    pipeline("synth", "--style", "film", "--from", folder / "raw", "--to", folder / "films", *scene)
    (folder / "params.yaml").write_text(PARAMS)
    changes = worlds.recipe_to_changes(RECIPE)
    first, second = sorted((folder / "raw").rglob("*.mpg"))
    (folder / "pairs.csv").write_text(f"video,audio\n{first},{second}\n{second},{first}\n")
    content = {"train": {"preset": "multi-speaker", "changes": changes}}
    (folder / "pruning.yaml").write_text(json.dumps(content))
    for name in commands:
        pipeline(*JOBS[name].words(folder, folder / OUTPUTS[name]))


@pytest.mark.parametrize("name", list(JOBS) if PATIENT else IN_THE_SUITE)
def test_a_killed_command_runs_again_to_the_bytes_of_an_unbroken_one(
    name: str, world: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.killing", name, "--world", world, "--folder", tmp_path]
    seed = int(os.environ.get("REDUB_SEED", "0"))
    process = subprocess.run(
        [*map(str, command), "--kills", str(KILLS), "--seed", str(seed)],
        env=os.environ | worlds.ONE_THREAD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    print(result)
    assert not result["problems"], "\n".join(result["problems"])
    assert result["same bytes"] == result["killed"] == KILLS
