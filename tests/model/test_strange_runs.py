"""A run that a stranger altered: each command ends well or with one line, soon and with little memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import CHECKPOINTS, EMA, OPTIMIZER, STATE, WEIGHTS
from model.execution import Execution
from model.recipe import ModelError
from model.run_log import METRICS, PICTURES, TENSORBOARD
from pipeline.app.models import ModelList, describe_run
from sampler.params import SampleParams
from shards.atomic import WriteError
from shards.schema import ShardError
from stages.engine.outcome import StageError
from stages.report.training import read_run
from stages.sample import run as sample
from stages.train.run_file import RUN_FILE
from tests.model import worlds
from tests.model.worlds import CPU, TINY

PATIENT = os.environ.get("REDUB_PATIENT")  # set to try all alterations; without it, every eighth is tried
RECIPE = replace(TINY, steps=2, watch=replace(TINY.watch, log_every=1, evaluate_every=1, save_every=2))
SECONDS, MEGABYTES = 60, 1500  # of one command; memory that it adds
TENSORS = (WEIGHTS, EMA, OPTIMIZER)

Alteration = Callable[[Path], None]  # of a run's folder


# --- alterations ----------------------------------------------------------------------------------


def alter_state(name: str, value: Any) -> Alteration:
    """Set a value of ``state.json``, given by its keys with dots; None of a key removes it."""

    def alter(run: Path) -> None:
        for folder in (run / CHECKPOINTS).iterdir():
            content = json.loads((folder / STATE).read_text())
            *sections, key = name.split(".")
            section = content
            for part in sections:
                section = section[part]
            section[key] = value
            (folder / STATE).write_text(json.dumps(content))

    return alter


def alter_tensors(change: Callable[[str, Tensor], Tensor | None]) -> Alteration:
    def alter(run: Path) -> None:
        for path in (folder / name for folder in (run / CHECKPOINTS).iterdir() for name in TENSORS):
            changed = {name: change(name, value) for name, value in load_file(path).items()}
            save_file({name: value for name, value in changed.items() if value is not None}, path)

    return alter


def alter_header(change: Callable[[bytes, bytes], bytes]) -> Alteration:
    """Replace each file of tensors by what ``change`` makes of its header and its values."""

    def alter(run: Path) -> None:
        for path in (folder / name for folder in (run / CHECKPOINTS).iterdir() for name in TENSORS):
            data = path.read_bytes()
            end = 8 + struct.unpack("<Q", data[:8])[0]
            path.write_bytes(change(data[8:end], data[end:]))

    return alter


def alter_info(**values: Any) -> Alteration:
    def alter(run: Path) -> None:
        path = run / RUN_FILE
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return alter


def add_metrics(line: str) -> Alteration:
    def alter(run: Path) -> None:
        (run / METRICS).write_text(f"{line}\n{(run / METRICS).read_text()}")

    return alter


def replace_file(name: str, make: Callable[[Path], object]) -> Alteration:
    """Make something else of a file of the run, or of that file in each checkpoint."""

    def alter(run: Path) -> None:
        folders = (run / CHECKPOINTS).iterdir() if name in (STATE, *TENSORS) else [run]
        paths = (run / PICTURES).iterdir() if name == PICTURES else (folder / name for folder in folders)
        for path in list(paths):
            path.unlink()
            make(path)

    return alter


def join(header: bytes, values: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + values


def change_first(**values: Any) -> Callable[[bytes, bytes], bytes]:
    """Change the header's entry of the first tensor."""

    def change(header: bytes, tensors: bytes) -> bytes:
        entries = json.loads(header)
        name = next(name for name in entries if name != "__metadata__")
        entries[name] |= values
        return join(json.dumps(entries).encode(), tensors)

    return change


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


STATES = {
    "network.blocks": 10**6,
    "network.channels": 2**20,
    "network.multiples": [1] * 10**5,
    "network.size": 2**30,
    "network.patch": 2**20,
    "network.head_channels": 10**9,
    "network.audio.n_mels": 10**8,
    "network.audio.rows_before": 10**9,
    "network.audio.encoder": ["flat"],
    "network.top": -1,
    "network.dropout": float("nan"),
    "network.attention_sizes": [8] * 10**5,
    "noise.steps": 10**9,
    "noise.beta_end": 2.0,
    "noise.target": 5,
    "noise": {"schedule": "linear", "beta_start": 0.9, "beta_end": 0.99},
    "frames.mask_region": [0, 0, 10**9, 10**9],
    "batch": 10**15,
    "seed": 2**70,
    "watch.pictures": 10**9,
    "watch.keep_last": 10**30,
    "window": 10**18,
    "bogus": 1,
    "network": None,
}
ALTERATIONS: dict[str, Alteration] = {
    **{f"recipe.{name}": alter_state(f"recipe.{name}", value) for name, value in STATES.items()},
    **{
        f"{name}={str(value)[:20]}": alter_state(name, value)
        for name, values in {
            "step": ["x", -1, 10**30, float("inf"), [], True, None],
            "drawn": [10**40, None, 1.5],
            "held_out": ["x", float("-inf"), [1], 10**400],
            "digest": [5, "x" * 10**6, None],
            "format": [2, [1], None],
            "recipe": [[1], None, "x"],
            "extra": [1],
        }.items()
        for value in values
    },
    **{
        f"dtype {dtype}": alter_tensors(lambda name, value, dtype=dtype: value.to(dtype))
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64)
    },
    **{
        f"all {value}": alter_tensors(lambda name, tensor, value=value: torch.full_like(tensor, value))
        for value in (float("nan"), float("inf"), float("-inf"), 1e30, -1e38, 1e6)
    },
    "one nan": alter_tensors(lambda name, value: value * torch.nan if name == "out.bias" else value),
    "large": alter_tensors(lambda name, value: value * 5e3),
    "missing": alter_tensors(lambda name, value: None if "stem" in name else value),
    "flat": alter_tensors(lambda name, value: value.reshape(-1)),
    "length 2**62": alter_header(lambda header, values: join(header, values, 2**62)),
    "length 0": alter_header(lambda header, values: join(header, values, 0)),
    "deep header": alter_header(lambda header, values: join(b'{"a":' * 20_000, values)),
    "no header": alter_header(lambda header, values: b""),
    "short": alter_header(lambda header, values: join(header, values[:-9])),
    "long": alter_header(lambda header, values: join(header, values + bytes(10**6))),
    "negative shape": alter_header(change_first(shape=[-1, -1])),
    "huge shape": alter_header(change_first(shape=[2**40])),
    "shape x": alter_header(change_first(shape="x")),
    "offsets": alter_header(change_first(data_offsets=[0, 2**60])),
    "dtype x": alter_header(change_first(dtype=[1])),
    **{
        f"{kind} {name}": replace_file(name, make)
        for name in (STATE, EMA, WEIGHTS, OPTIMIZER, RUN_FILE, METRICS, PICTURES)
        for kind, make in {
            "pipe": os.mkfifo,
            "folder": Path.mkdir,
            "link": lambda path: path.symlink_to("/etc/passwd"),
            "zero": lambda path: path.symlink_to("/dev/zero"),
            "loop": lambda path: path.symlink_to(path.name),
            "text": lambda path: path.write_text("x" * 100),
            "deep": lambda path: path.write_text("[" * 10**6),
            "list": lambda path: path.write_text("[1]"),
            "sparse": make_sparse,
        }.items()
    },
    **{
        f"metrics {line[:20]}": add_metrics(line)
        for line in (
            '{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e999}', '{"step": 1, "loss": "x"}', "[1]",
            '{"loss": 1}', '{"step": "x"}', '{"step": 1' + "0" * 300 + "}", '{"step": 1, "loss": 1e308}',
            '{"step": 1, "loss": {"a": 1}}', '{"step": 1, "lo', '{"step": 1, "' + "x" * 10**6 + '": 1}', "{}",
        )
    },
    "shards 5": alter_info(shards=5),
    "long preset": alter_info(preset="x" * 10**6),
    "digest [1]": alter_info(digest=[1]),
    "recipe x": alter_info(recipe="x"),
    "recipe blocks": alter_info(recipe={"network": {"blocks": 10**9}}),
    "versions": alter_info(versions=[1]),
}  # fmt: skip
# A loss that is not finite was measured as such; a last line may be incomplete.
HARMLESS = {"held_out=-inf", "text metrics.jsonl", "deep metrics.jsonl"}
CHOICE = list(ALTERATIONS) if PATIENT else list(ALTERATIONS)[::8]


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_dataset(tmp_path_factory.mktemp("shards") / "shards", test=("s1_clip3",))


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    worlds.run_training(shards, folder, RECIPE)
    return folder


@contextlib.contextmanager
def limit_time_and_memory() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


def list_commands(shards: Path, run: Path, out: Path) -> dict[str, Callable[[], object]]:
    """What ``train``, ``sample``, ``report``, and ``edit`` and ``app``, do with a run."""
    models = ModelList(run.parent, [], CPU, Execution())
    request = sample.SampleRequest(str(shards), run, out, "test", clips=1, videos=False, device="cpu")
    return {
        "train": lambda: worlds.run_training(shards, run, replace(RECIPE, steps=3)),
        "sample": lambda: sample.run(request, SampleParams(steps=1, guidance=1.0)),
        "report": lambda: read_run(run),
        "app": lambda: [describe_run(*item) for item in models.find_runs().items()],
        "edit": lambda: models.load_generator(
            models.get_checkpoint(run.name), SampleParams(steps=1, guidance=1.0)
        ),
    }


@pytest.mark.parametrize("name", CHOICE)
def test_an_altered_run_is_read_or_refused_in_one_line(
    shards: Path, trained: Path, tmp_path: Path, name: str
) -> None:
    messages: list[str] = []
    for command in list_commands(shards, trained, tmp_path):
        run = shutil.copytree(trained, tmp_path / command / "run")
        ALTERATIONS[name](run)
        with limit_time_and_memory():
            try:
                list_commands(shards, run, tmp_path / f"{command}-out")[command]()
            except (ModelError, StageError, ShardError, WriteError) as err:
                messages.append(str(err))
    assert all("\n" not in message and len(message) < 800 for message in messages), messages
    assert messages or name in HARMLESS, "some command refuses it"


def test_a_password_in_the_address_of_an_older_run_is_not_shown(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    alter_info(shards="https://me:hidden@host/shards?sig=hidden")(run)
    [line] = [describe_run(*item) for item in ModelList(tmp_path, [], CPU, Execution()).find_runs().items()]
    assert line.endswith("trained on https://host/shards")
    assert read_run(run).info["shards"] == "https://host/shards"


def test_an_unaltered_run_is_read_by_every_command(shards: Path, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    for command, call in list_commands(shards, run, tmp_path / "out").items():
        assert call(), command


@pytest.mark.parametrize("name", [CHECKPOINTS, METRICS, PICTURES, TENSORBOARD])
def test_training_writes_to_no_place_that_a_link_in_the_run_leads_to(
    shards: Path, trained: Path, tmp_path: Path, name: str
) -> None:
    run, outside = shutil.copytree(trained, tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    if (run / name).is_dir():
        shutil.rmtree(run / name)
    else:
        (run / name).unlink(missing_ok=True)
    # Of a file that does not exist yet, the link would make one.
    (run / name).symlink_to(outside / "new" if name == METRICS else outside)
    with pytest.raises(ModelError, match=f"run/{name}: leads out of its folder by a link"):
        worlds.run_training(shards, run, replace(RECIPE, steps=RECIPE.steps + 1))
    assert not list(outside.iterdir())
