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
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from pipeline.main import cli
from shards.errors import MAX_MESSAGE_LETTERS
from shards.index import INDEX_NAME, LEDGER_NAME, SPEECH_INDEX_SCHEMA
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.publish import publish
from shards.schema import ShardError
from shards.storage import open_storage
from tests.alterations import (
    SPEECH_SIZE,
    Alteration,
    list_file_alterations,
    list_manifest_alterations,
    list_member_alterations,
    list_table_alterations,
    make_dataset,
)

PATIENT = os.environ.get("REDUB_PATIENT")  # set to wait for what takes minutes
MAX_SECONDS = 120.0  # on a crowded machine; each command takes a few
MAX_BYTES = 3 * 2**30  # of memory, in a process that has imported everything
SAMPLED = 40  # every so many alterations of the suite


QUICK = ("--sampler", "ancestral", "--steps", "2", "--device", "cpu")
# What the commands write beside the altered dataset.
OUTPUTS = {"shards", "output.jsonl", "sheet.png", "published", "clip.mp4", "report.html", "resident",
           "cached", "streamed", "samples", "scores", "cache"}  # fmt: skip


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
            *list_table_alterations(INDEX_NAME, SPEECH_INDEX_SCHEMA),
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
            ["card", folder],
            ["publish", folder, f"{scratch}/published"],
        ]
        if not all_of_them:
            return commands
        report = [
            "report",
            "--shards",
            folder,
            "-o",
            f"{scratch}/report.html",
            "--generated",
            f"{self.generated}",
        ]
        training = ["train", "--shards", folder, "--params", f"{self.params}", "--device", "cpu"]
        sampling = ["sample", "--shards", folder, "--run", f"{self.run}", "-o", f"{scratch}/samples", *QUICK]
        scores = [
            "evaluate",
            "--shards",
            folder,
            "--generated",
            f"{self.generated}",
            "-o",
            f"{scratch}/scores",
        ]
        return [
            *commands,
            ["preview", folder, "--video", "s1_clip1", "-o", f"{scratch}/clip.mp4"],
            report,
            *(
                [*training, "--run", f"{scratch}/{hold}", "--hold", hold, "--workers", workers]
                for hold, workers in (("resident", "1"), ("cached", "0"), ("streamed", "0"))
            ),
            sampling,
            [*scores, "--cache", f"{scratch}/cache", "--no-landmarks", "--workers", "1"],
        ]


def make_world(root: Path, *, with_run: bool) -> World:
    """Write an intact dataset; with a run, its samples and the params of a short training too."""
    shards = make_dataset(root / "shards")
    world = World(root, shards, root / "run", root / "generated", root / "params.json")
    if with_run:
        from model import loop  # the processes of the cases are forks, which need not import torch again
        from model.checkpoint import save_checkpoint
        from tests.model import worlds

        # In a process of its own: a fork of one whose torch has computed anything waits for its threads.
        child = fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            return world
        audio = replace(worlds.TINY.network.audio, input="both", speech_size=SPEECH_SIZE)
        recipe = replace(worlds.TINY, network=replace(worlds.TINY.network, audio=audio))
        save_checkpoint(loop.create_state(recipe, worlds.CPU), world.run, recipe, "digest", None)
        changes = worlds.recipe_to_changes(recipe) | {"steps": 1, "batch": 4}
        world.params.write_text(json.dumps({"train": {"preset": "multi-speaker", "changes": changes}}))
        command = ["sample", "--shards", shards, "--run", world.run, "-o", world.generated, *QUICK]
        os._exit(CliRunner().invoke(cli, [*map(str, command)]).exit_code)
    return world


def try_alteration(world: World, alteration: Alteration, number: int, *, all_of_them: bool) -> list[str]:
    """Run every command on an altered dataset, in a process of its own; what went wrong, one line each."""
    scratch = world.root / "cases" / f"{number:04}"
    shards = scratch / "shards"
    scratch.mkdir(parents=True)
    shutil.copytree(world.shards, shards)
    before = list_files(world.root, scratch)
    alteration.apply(shards)
    commands = world.list_commands(shards, scratch, all_of_them=all_of_them)
    problems = [f"{alteration.name}: {problem}" for problem in run_limited(commands, scratch)]
    escapes = list_files(world.root, scratch) - before - list_files(world.root / "outside", scratch)
    strays = {path.name for path in scratch.iterdir()} - OUTPUTS
    if escapes or strays or Path("/tmp/escape").exists():
        problems.append(f"{alteration.name}: wrote {sorted(escapes)[:3]} {sorted(strays)}")
    shutil.rmtree(scratch)
    return problems


def list_files(root: Path, without: Path) -> set[str]:
    """Every path below a folder and the folder itself, without those below another."""
    return {os.fspath(path) for path in (root, *root.rglob("*")) if not path.is_relative_to(without)}


def fork() -> int:
    """As ``os.fork``, which from Python 3.12 on warns of threads; those of Arrow are idle here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run_limited(commands: Sequence[Sequence[str]], scratch: Path) -> list[str]:
    """Run commands in a fork of this process; the problems."""
    output = scratch / "output.jsonl"
    child = fork()
    if child == 0:
        os.setsid()
        try:
            with output.open("w", buffering=1) as file:
                for command in commands:
                    file.write(json.dumps(judge(run_command(command))) + "\n")
        finally:
            os._exit(0)
    deadline, ending = time.monotonic() + MAX_SECONDS * len(commands), ""
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        n_bytes = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child)
            n_bytes = max(each.memory_info().rss for each in [process, *process.children(recursive=True)])
        if time.monotonic() > deadline or n_bytes > MAX_BYTES:
            ending = f"takes {n_bytes / 2**30:.1f} GB" if n_bytes > MAX_BYTES else "hangs"
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.05)
    results = [json.loads(line) for line in output.read_text().splitlines()]
    if len(results) < len(commands):
        results.append(ending or "died")
    return [f"{' '.join(command[:1] + command[2:4])}: {problem}"
            for command, problem in zip(commands, results, strict=False) if problem]  # fmt: skip


def run_command(command: Sequence[str]) -> dict[str, Any]:
    """Exit code, lines of output and traceback of a command in this process."""
    if command[0] == "publish":
        try:
            publish(Path(command[1]), open_storage(command[2]))
        except ShardError as err:
            return {"code": 1, "lines": [f"{err}"], "traceback": ""}
        except BaseException:  # as click's runner does: whatever it is, it is counted
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
    return make_world(tmp_path_factory.mktemp("strangers"), with_run=bool(PATIENT))


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
    """``python -m tests.test_strangers FOLDER FIRST STEP [light]``: print every problem, then the counts."""
    folder, first, step, light = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "light" in sys.argv
    shutil.rmtree(folder, ignore_errors=True)
    world = make_world(folder, with_run=not light)
    counts: Counter[str] = Counter()
    for number, alteration in enumerate(world.list_alterations()):
        if number % step == first:
            problems = try_alteration(world, alteration, number, all_of_them=not light)
            counts["tried"] += 1
            counts["problems"] += len(problems)
            if problems or counts["tried"] % 50 == 0:
                print(*problems or [dict(counts)], sep="\n", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
