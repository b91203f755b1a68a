"""Fuzz the parsers of ``tests.fuzz.targets``, guided by coverage, or replay the inputs that are kept.

    python -m tests.fuzz.run --seconds 120 --parser state_json
    python -m tests.fuzz.run --seconds 3                         # every parser
    python -m tests.fuzz.run --replay                            # without atheris

Prints a row for each parser: executions, minutes, findings. A finding is an input that a parser neither reads
nor refuses by an error class of ours within its time and the memory limit. The smallest one for each line of
code is written to --findings, with its traceback. When the parser is mended, it moves to ``corpus/PARSER/``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tests.fuzz.targets import Parser

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
# Whose branches are counted: our packages, and the pure Python parsers below them.
INSTRUMENTED = ["shards", "stages", "model", "pipeline", "sampler", "yaml", "zipfile", "tarfile"]
RSS_LIMIT_MB = 2500  # torch alone takes 500
SPARE_BYTES = 2**30  # that parsing may allocate: the inputs are small
WALL_FACTOR = 20  # of the CPU time: an input that waits, or never leaves a library, is found by the clock
MAX_RESTARTS = 3  # after an input that takes too long ends a process
# What stands in the place of a value in JSON.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, -(2**63) - 1, 10**300, 1e308, float("inf"), float("nan"),
    "", "x", "../../x", "/x", "a\0b", "a\nb", "\ud800", "x" * 300, [], {}, [None], [[]], {"": 0}, [0] * 300,
)  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--parser", action="append", help="name of a parser; may be repeated  [default: all]"
    )
    options.add_argument("--seconds", type=int, default=3, help="per parser")
    options.add_argument("--seed", type=int, default=1, help="of the mutations")
    options.add_argument(
        "--runs", type=int, default=-1, help="of each parser at most, so that they are always the same"
    )
    options.add_argument("--replay", action="store_true", help="only run the inputs that are kept")
    options.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    args = options.parse_args()
    if not args.replay and importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is not installed: it has wheels for Python 3.11 to 3.13 on Linux x86-64")
    parsers = load_parsers(instrument=not args.replay)
    n_findings = 0
    print("| parser | executions | minutes | findings |\n| --- | --- | --- | --- |", flush=True)
    for name in args.parser or parsers:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            n_executions = run_parser(
                parsers[name], Path(folder), args.seconds, args.seed, args.runs, replay=args.replay
            )
            minutes = (time.monotonic() - start) / 60
            findings = describe_findings(Path(folder, "findings"), args.findings / name)
        n_findings += len(findings)
        print(f"| {name} | {n_executions} | {minutes:.1f} | {len(findings)} |", flush=True)
        for finding in findings:
            print(f"    {finding}", flush=True)
    raise SystemExit(1 if n_findings else 0)


def load_parsers(*, instrument: bool) -> Mapping[str, Parser]:
    """All parsers by name, with their branches counted if ``instrument``."""
    if not instrument:
        from tests.fuzz.targets import PARSERS

        return PARSERS
    import atheris

    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(INSTRUMENTED):
        from tests.fuzz.targets import PARSERS
    return PARSERS


def run_parser(parser: Parser, folder: Path, seconds: int, seed: int, runs: int, *, replay: bool) -> int:
    """Run a parser in child processes until the time is over. Returns the number of executions."""
    inputs, findings = folder / "inputs", folder / "findings"
    inputs.mkdir()
    findings.mkdir()
    for path in sorted((CORPUS / parser.name).glob("*")):
        shutil.copyfile(path, inputs / path.name)
    end = time.monotonic() + seconds
    n_executions = 0
    for restart in range(MAX_RESTARTS):
        log = folder / f"log-{restart}"
        pid = os.fork()
        if not pid:
            run_child(parser, folder, log, round(end - time.monotonic()), seed + restart, runs, replay=replay)
        _, status = os.waitpid(pid, 0)
        text = log.read_text(errors="replace")
        n_executions += max(map(int, re.findall(r"^#(\d+)", text, re.MULTILINE)), default=0)
        if not status:
            break
        if not any(findings.iterdir()):
            (findings / "ended.txt").write_text(f"wait status {status}\n{text[-3000:]}")
        if end - time.monotonic() < 2:
            break
    return n_executions


def run_child(
    parser: Parser, folder: Path, log: Path, seconds: int, seed: int, runs: int, *, replay: bool
) -> NoReturn:
    """What a child process does: prepare the parser, limit this process, and run inputs."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        work = Path(tempfile.mkdtemp(dir=folder))
        parse, seeds = parser.prepare(work)
        for number, data in enumerate(seeds):
            (folder / "inputs" / f"seed-{number}").write_bytes(data)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        runner = Runner(parse, parser.seconds, folder / "findings")
        if replay:
            runner.replay(folder / "inputs")
            os._exit(0)
        fuzz(runner, parser, folder, max(1, seconds), seed, runs)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(9)


class TooSlow(BaseException):
    """An input took longer than its parser may. Not an Exception, so that no parser catches it."""


def _raise_too_slow(number: int, frame: object) -> NoReturn:
    raise TooSlow("its CPU time is over")


class Runner:
    """Runs inputs, and keeps the smallest one for each line of code that lets a wrong exception out."""

    def __init__(self, parse: Any, seconds: float, findings: Path) -> None:
        self.parse = parse
        self.seconds = seconds  # of CPU time that an input may take: the machine may be busy
        signal.signal(signal.SIGPROF, _raise_too_slow)
        self.findings = findings
        self.sizes: dict[str, int] = {}

    def run(self, data: bytes) -> None:
        from tests.fuzz.targets import call

        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            call(self.parse, bytes(data))
        except (Exception, TooSlow) as err:
            self.save(data, err)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def save(self, data: bytes, err: BaseException) -> None:
        frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(err.__traceback__)]
        ours = [place for place in frames if str(ROOT) in place and "/tests/" not in place] or frames
        place = hashlib.sha256(f"{type(err).__name__} {ours[-1]}".encode()).hexdigest()[:12]
        if len(data) < self.sizes.get(place, sys.maxsize):
            self.sizes[place] = len(data)
            (self.findings / f"{place}.bin").write_bytes(data)
            text = "".join(traceback.format_exception(err, limit=-8))[-4000:]
            where = ours[-1].removeprefix(f"{ROOT}/")
            (self.findings / f"{place}.txt").write_text(
                f"{where} {type(err).__name__}: {str(err)[:150]}\n{text}"
            )

    def replay(self, inputs: Path) -> None:
        """Run each file of a folder. One that hangs ends this process by SIGALRM."""
        for number, path in enumerate(sorted(inputs.iterdir()), start=1):
            print(f"#{number} {path.name}", flush=True)
            signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * self.seconds)
            self.run(path.read_bytes())
            signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(runner: Runner, parser: Parser, folder: Path, seconds: int, seed: int, runs: int) -> NoReturn:
    """Hand this process over to libFuzzer, which ends it."""
    import atheris

    def mutate(data: bytes, max_size: int, mutation_seed: int) -> bytes:
        rng = random.Random(mutation_seed)
        if (
            rng.random() < 0.5
            and (mutated := mutate_json(data, rng)) is not None
            and len(mutated) <= max_size
        ):
            return mutated
        mutated_bytes: bytes = atheris.Mutate(data, max_size)
        return mutated_bytes

    atheris.Setup(
        [
            "fuzz",
            str(folder / "inputs"),
            f"-max_total_time={seconds}",
            f"-runs={runs}",
            f"-max_len={parser.max_bytes}",
            f"-timeout={round(WALL_FACTOR * parser.seconds)}",
            f"-rss_limit_mb={RSS_LIMIT_MB}",
            f"-artifact_prefix={folder / 'findings'}/",
            f"-seed={seed}",
            "-report_slow_units=100000",  # by the clock, which says nothing on a busy machine
            "-print_final_stats=1",
        ],
        runner.run,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
    os._exit(0)


def mutate_json(data: bytes, rng: random.Random) -> bytes | None:
    """The JSON text with one value replaced, removed or doubled; None for other data."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            collect(node[key])

    collect(content)
    if not places or rng.random() < 0.02:
        return json.dumps(rng.choice(ODD_VALUES)).encode()
    parent, key = rng.choice(places)
    action = rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1:
        other, other_key = rng.choice(places)
        with contextlib.suppress(LookupError):  # it may be inside of what was just replaced
            parent[key] = json.loads(json.dumps(other[other_key]))
    elif action == 2 and isinstance(parent, dict):
        parent[rng.choice(["", "x", "__class__", "a\0"])] = rng.choice(ODD_VALUES)
    else:
        parent[key] = rng.choice(ODD_VALUES)
    return json.dumps(content).encode()


def describe_findings(folder: Path, target: Path) -> list[str]:
    """Move a parser's findings to ``target``; a line for each."""
    lines = []
    for path in sorted(folder.iterdir()):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
        if path.suffix == ".txt":
            with path.open() as file:
                lines.append(f"{path.stem}: {file.readline().strip()}")
        elif path.suffix != ".bin":  # libFuzzer's: timeout-SHA, oom-SHA, crash-SHA
            lines.append(f"{path.name}: {path.stat().st_size} bytes")
    return lines


if __name__ == "__main__":
    main()
