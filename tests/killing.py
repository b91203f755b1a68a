"""Kills a command at random moments and runs it again: `python -m tests.killing train --kills 50 ...`.

The process imports what commands need and forks one child for each run, so that a kill hits the work rather
than the imports. A child is the leader of a process group, which is killed as a whole. A second run must then
end with the bytes of an unbroken one. ``main`` prints a JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import CHECKPOINTS, load_network
from model.recipe import ModelError
from model.run_log import METRICS, TENSORBOARD
from pipeline.main import cli
from shards.checksum import file_sha256
from shards.index import DATASET_NAME
from shards.verify import verify
from stages.edit.batch import LEDGER_NAME
from tests.build import hash_files

# Of a run and a table of scores: how fast the machine was.
SPEED = ("frames_per_second", "waiting_for_data", "memory_gb", "seconds")
SKIPPED = (TENSORBOARD, ".cache", ".lock", "stdout.txt")


@dataclass(frozen=True, slots=True)
class Job:
    """A command whose output is in one folder."""

    words: Callable[[Path, Path], Sequence[str | Path]]  # of the world and the output folder
    check: Callable[[Path], object]  # of the output folder after a kill: raises AssertionError if it is torn
    modules: tuple[str, ...]  # that the command imports


def check_shards(out: Path) -> None:
    if (out / "shards" / DATASET_NAME).exists():
        problems = list(verify(out / "shards", full=False))
        assert not problems, problems


def check_run(out: Path) -> None:
    if not (out / CHECKPOINTS).is_dir():
        return
    try:
        load_network(out)
    except ModelError as err:
        if "no checkpoint here" not in str(err):
            raise AssertionError(f"cannot be read: {err}") from err


def check_edits(out: Path) -> None:
    """Each file has the bytes of its row."""
    folder = out / "edits"
    if not (folder / LEDGER_NAME).exists():
        return
    with (folder / LEDGER_NAME).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["status"] in ("ok", "waiting"), row
        if row["status"] == "ok":
            assert file_sha256(folder / row["out"]) == row["sha256"], row


def check_nothing(out: Path) -> None:
    """The file appears at the end, complete: what is there is compared after the second run."""


JOBS = {
    "shard": Job(
        lambda world, out: [
            "shard", "--dataset", "grid", "--raw", world / "raw", "--work", out,
            "--params", world / "params.yaml", "--workers", "1",
        ],
        check_shards,
        ("pipeline.commands.dataset_stages", "stages.shard", "distributed"),
    ),
    "cut": Job(
        lambda world, out: [
            "shard", "--dataset", "folder", "--raw", world / "films", "--work", out, "--cut",
            "--params", world / "params.yaml", "--workers", "1",
        ],
        check_shards,
        ("pipeline.commands.dataset_stages", "stages.shard", "distributed"),
    ),
    "train": Job(
        lambda world, out: [
            "train", "--shards", world / "work" / "shards", "--run", out,
            "--params", world / "pruning.yaml", "--device", "cpu", "--workers", "1",
        ],
        check_run,
        ("pipeline.commands.train", "stages.train.run", "torch._dynamo"),
    ),
    "sample": Job(
        lambda world, out: [
            "sample", "--shards", world / "work" / "shards", "--run", world / "run", "-o", out,
            "--split", "train", "--steps", "2", "--device", "cpu",
        ],
        check_nothing,
        ("pipeline.commands.sample", "stages.sample.run"),
    ),
    "edit": Job(
        lambda world, out: [
            "edit", "--video", sorted((world / "raw").rglob("*.mpg"))[0],
            "--audio", sorted((world / "raw").rglob("*.mpg"))[1], "--run", world / "run",
            "--params", world / "params.yaml", "-o", out / "edit.mp4", "--steps", "2", "--device", "cpu",
            "--preset", "ultrafast", "--any-face",
        ],
        check_nothing,
        ("pipeline.commands.edit", "stages.edit.run", "sampler.rollout"),
    ),
    "edits": Job(
        lambda world, out: [
            "edit", "--batch", world / "pairs.csv", "--run", world / "run", "--params", world / "params.yaml",
            "-o", out / "edits", "--steps", "2", "--device", "cpu", "--preset", "ultrafast", "--any-face",
            "--workers", "2",
        ],
        check_edits,
        ("pipeline.commands.edit", "stages.edit.batch", "distributed"),
    ),
    "evaluate": Job(
        lambda world, out: [
            "evaluate", "--shards", world / "work" / "shards", "--generated", f"ours={world / 'samples'}",
            "-o", out / "evaluation", "--split", "train", "--workers", "1", "--device", "cpu",
        ],
        check_nothing,
        ("pipeline.commands.evaluate", "stages.evaluate.run", "distributed"),
    ),
    "report": Job(
        lambda world, out: [
            "report", "--shards", world / "work" / "shards", "--run", world / "run",
            "--evaluation", world / "evaluation", "--generated", world / "samples", "-o", out / "report.html",
        ],
        check_nothing,
        ("pipeline.commands.report", "stages.report.run"),
    ),
}  # fmt: skip


def start(words: Sequence[str | Path], log: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Run a command in a child, the leader of a process group. Returns its pid.

    ``prepare`` is called in the child before the command, to limit it.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["pipeline", *map(str, words)]
        prepare()
        cli.main(list(map(str, words)), prog_name="pipeline")
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # without the exit handlers of the process that it was forked from
        os._exit(code)
    return 0


def run(job: Job, world: Path, out: Path, log: Path) -> float:
    """Run a command to its end. Returns the seconds that it took."""
    out.mkdir(exist_ok=True)
    begin = time.monotonic()
    _, status = os.waitpid(start(job.words(world, out), log), 0)
    assert status == 0, log.read_text()[-3000:]
    return time.monotonic() - begin


def read_output(out: Path) -> dict[str, str]:
    """What a second run must make again: hashes by path, and of JSON lines what does not depend on speed."""
    hashes = {
        name: digest
        for name, digest in hash_files(out).items()
        if not any(part in SKIPPED or part.endswith(".lock") for part in Path(name).parts)
    }
    if METRICS in hashes:
        lines = map(json.loads, (out / METRICS).read_text().splitlines())
        hashes[METRICS] = str([{k: v for k, v in line.items() if k not in SPEED} for line in lines])
    return hashes


def kill_and_repeat(job: Job, world: Path, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill a command at random moments of its work, and run it again after each kill.

    Returns how many runs were killed, how many of them ended with the bytes of the unbroken run, and what
    differed in the others.
    """
    log = folder / "stdout.txt"
    run(job, world, folder / "first", log)
    seconds = run(job, world, folder / "unbroken", log)
    first, unbroken = read_output(folder / "first"), read_output(folder / "unbroken")
    varying = {name for name in first.keys() | unbroken.keys() if first.get(name) != unbroken.get(name)}
    expected = {name: value for name, value in unbroken.items() if name not in varying}
    moments = random.Random(seed)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    while counts["killed"] < kills:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        moment = moments.uniform(0, seconds)
        pid = start(job.words(world, out), log)
        time.sleep(moment)
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            counts["was done before"] += 1
            continue
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        counts["killed"] += 1
        try:
            job.check(out)
            run(job, world, out, log)
            output = read_output(out)
            partials = [name for name in output if name.endswith(".partial")]
            assert not partials, f"is left behind: {partials}"
            different = [
                name
                for name in sorted(expected.keys() | (output.keys() - varying))
                if expected.get(name) != output.get(name)
            ]
            assert not different, f"differs: {different}"
            counts["same bytes"] += 1
        except AssertionError as err:
            problems.append(f"seed {seed}, after {moment:.2f} of {seconds:.2f} s: {str(err)[-1500:]}")
    return counts | {"seed": seed, "seconds": seconds, "varying": sorted(varying), "problems": problems}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("job", choices=list(JOBS))
    options.add_argument("--world", type=Path, required=True, help="made by tests.test_kills.make_world")
    options.add_argument("--folder", type=Path, required=True, help="an empty folder")
    options.add_argument("--kills", type=int, default=6)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    import importlib

    job = JOBS[args.job]
    for module in job.modules:
        importlib.import_module(module)
    print(json.dumps(kill_and_repeat(job, args.world, args.folder, kills=args.kills, seed=args.seed)))


if __name__ == "__main__":
    main()
