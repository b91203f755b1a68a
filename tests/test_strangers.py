"""A dataset from a stranger, altered in one of 2000 ways: each command ends in one line, soon, in bounds.

The suite tries some of the alterations with the commands that read a dataset alone; $REDUB_PATIENT=1 tries
all of them, and with training, sampling and evaluation too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from model import loop
from model.checkpoint import save_checkpoint
from pipeline.main import cli
from shards.errors import MAX_MESSAGE_LETTERS
from shards.index import INDEX_NAME, INDEX_SCHEMA, LEDGER_NAME
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.publish import publish
from shards.schema import ShardError
from shards.storage import open_storage
from tests.alterations import (
    Alteration,
    list_file_alterations,
    list_manifest_alterations,
    list_member_alterations,
    list_table_alterations,
    make_dataset,
)
from tests.model import worlds

PATIENT = os.environ.get("REDUB_PATIENT")  # set to wait for what takes minutes
MAX_SECONDS = 120.0  # on a crowded machine; each command takes a few
MAX_BYTES = 3 * 2**30  # of memory, in a process that has imported everything
SAMPLED = 40  # every so many alterations of the suite


@dataclass(frozen=True)
class World:
    """Folders that every case starts from."""

    root: Path
    shards: Path  # an intact dataset
    run: Path  # a network that fits it
    generated: Path  # what it generated
    params: Path  # of a short training

    def list_alterations(self) -> list[Alteration]:
        return [
            *list_manifest_alterations(),
            *list_table_alterations(INDEX_NAME, INDEX_SCHEMA),
            *list_table_alterations(LEDGER_NAME, LEDGER_SCHEMA),
            *list_member_alterations(),
            *list_file_alterations(self.root / "outside"),
        ]

    def list_commands(self, shards: Path, scratch: Path, *, all_of_them: bool) -> list[list[str]]:
        """Command lines that read the dataset ``shards``."""
        folder = str(shards)
        commands = [
            ["verify", folder],
            ["verify", folder, "--full"],
            ["diff", str(self.shards), folder],
            ["explain", folder, "s1_clip1"],
            ["preview", folder, "-o", f"{scratch}/sheet.png"],
            ["prune", folder],
            [
                "report",
                "--shards",
                folder,
                "--generated",
                str(self.generated),
                "-o",
                f"{scratch}/report.html",
            ],
            ["publish", folder, f"{scratch}/published"],
        ]
        if not all_of_them:
            return commands
        device = ["--device", "cpu"]
        return [
            *commands,
            ["preview", folder, "--video", "s1_clip1", "-o", f"{scratch}/clip.mp4"],
            *(
                ["train", "--shards", folder, "--run", f"{scratch}/{hold}", "--params", str(self.params),
                 "--hold", hold, "--workers", workers, *device]
                for hold, workers in (("resident", "1"), ("cached", "0"), ("streamed", "0"))
            ),
            ["sample", "--shards", folder, "--run", str(self.run), "-o", f"{scratch}/samples",
             "--sampler", "ancestral", "--steps", "2", *device],
            ["evaluate", "--shards", folder, "--generated", str(self.generated), "-o", f"{scratch}/scores",
             "--cache", f"{scratch}/cache", "--no-landmarks", "--workers", "1"],
        ]  # fmt: skip


def make_world(root: Path) -> World:
    """Write an intact dataset, a run, its samples, and the params of a short training."""
    shards = make_dataset(root / "shards")
    run = root / "run"
    save_checkpoint(loop.create_state(worlds.TINY, worlds.CPU), run, worlds.TINY, "digest", None)
    params = root / "params.json"
    changes = worlds.recipe_to_changes(worlds.TINY) | {"steps": 1, "batch": 4}
    params.write_text(json.dumps({"train": {"preset": "multi-speaker", "changes": changes}}))
    generated = root / "generated"
    command = [
        "sample",
        "--shards",
        shards,
        "--run",
        run,
        "-o",
        generated,
        "--sampler",
        "ancestral",
        "--steps",
        "2",
    ]
    result = CliRunner().invoke(cli, [*map(str, command), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return World(root, shards, run, generated, params)


def try_alteration(world: World, alteration: Alteration, number: int, *, all_of_them: bool) -> list[str]:
    """Run every command on an altered dataset, in a process of its own; what went wrong, one line each."""
    scratch = world.root / "cases" / f"{number:04}"
    shards = scratch / "shards"
    scratch.mkdir(parents=True)
    shutil.copytree(world.shards, shards)
    before = list_files(world.root, scratch)
    problems = []
    try:
        alteration.apply(shards)
    except Exception as err:  # the alteration, not what it tests
        return [f"{alteration.name}: cannot be made: {err!r}"]
    for command in world.list_commands(shards, scratch, all_of_them=all_of_them):
        problem = run_limited(command, scratch)
        if problem:
            problems.append(f"{alteration.name}: {command[0]} {' '.join(command[2:4])}: {problem}")
    escapes = list_files(world.root, scratch).keys() - before.keys()
    escapes = {path for path in escapes if "outside" not in path}
    if escapes or Path("/tmp/escape").exists() or (scratch / "escape").exists():
        problems.append(f"{alteration.name}: wrote {sorted(escapes)[:3]}")
    shutil.rmtree(scratch)
    return problems


def list_files(root: Path, without: Path) -> dict[str, int]:
    """Every path below a folder, without those below another."""
    return {os.fspath(path): 0 for path in root.rglob("*") if not path.is_relative_to(without)}


def run_limited(command: Sequence[str], scratch: Path) -> str:
    """Run a command in a fork of this process; a problem, or an empty string."""
    output = scratch / "output.json"
    output.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            output.write_text(json.dumps(run_command(command)))
        finally:
            os._exit(0)
    deadline, peak = time.monotonic() + MAX_SECONDS, 0
    try:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            with_children = [psutil.Process(child), *psutil.Process(child).children(recursive=True)]
            for process in with_children:
                try:
                    peak = max(peak, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            if time.monotonic() > deadline:
                return f"hangs for {MAX_SECONDS:.0f} s"
            if peak > MAX_BYTES:
                return f"takes {peak / 2**30:.1f} GB"
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return judge(json.loads(output.read_text())) if output.is_file() else "died"


def run_command(command: Sequence[str]) -> dict[str, Any]:
    """Exit code, lines of output and traceback of a command in this process."""
    if command[0] == "publish":
        try:
            publish(Path(command[1]), open_storage(command[2]))
        except ShardError as err:
            return {"code": 1, "lines": [f"{err}"], "traceback": ""}
        except BaseException:
            return {"code": 1, "lines": [], "traceback": traceback.format_exc()}
        return {"code": 0, "lines": [], "traceback": ""}
    result = CliRunner().invoke(cli, list(command))
    trace = ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        trace = "".join(traceback.format_exception(*result.exc_info)) if result.exc_info else "?"
    return {"code": result.exit_code, "lines": result.output.splitlines(), "traceback": trace}


def judge(result: dict[str, Any]) -> str:
    """What is wrong with how a command ended."""
    if result["traceback"]:
        lines = [line.strip() for line in result["traceback"].splitlines()]
        place = [line for line in lines if line.startswith("File") and "/site-packages/" not in line][-1:]
        return f"traceback {lines[-1][:200]} {place}"
    if any("Traceback" in line for line in result["lines"]):
        return f"printed a traceback: {result['lines'][-1][:200]}"
    errors = [line for line in result["lines"] if line.startswith("Error: ")]
    if any(len(line) > MAX_MESSAGE_LETTERS + 200 for line in errors):  # a path of this test is long
        return f"a message of {max(map(len, errors))} letters"
    if result["code"] not in (0, 1, 2):
        return f"exit code {result['code']}"
    return ""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("strangers"))


def test_an_altered_dataset_ends_each_command_in_one_line(world: World) -> None:
    alterations = world.list_alterations()
    assert len(alterations) > 1000
    step = 1 if PATIENT else SAMPLED
    problems = [
        problem
        for number, alteration in enumerate(alterations[::step])
        for problem in try_alteration(world, alteration, number, all_of_them=bool(PATIENT))
    ]
    assert not problems, "\n".join(problems)


def main() -> None:
    """``python -m tests.test_strangers FOLDER [FIRST STEP]``: print every problem, then the counts."""
    folder, first, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    light = len(sys.argv) > 4
    shutil.rmtree(folder, ignore_errors=True)
    world = make_world(folder)
    counts: Counter[str] = Counter()
    alterations = world.list_alterations()
    print(len(alterations), "alterations", flush=True)
    for number, alteration in enumerate(alterations):
        if number % step == first:
            problems = try_alteration(world, alteration, number, all_of_them=not light)
            counts["tried"] += 1
            counts["problems"] += len(problems)
            for problem in problems:
                print(problem, flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
