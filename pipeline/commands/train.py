"""`pipeline train`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from pipeline import params as params_file
from pipeline.options import (
    FOLDER,
    MAX_WORKERS,
    NETWORK,
    NumberRange,
    add_endpoint_option,
    device_options,
    params_option,
    print_once,
)
from pipeline.plain_yaml import parse_yaml
from shards.cores import count_cores_per_rank
from shards.errors import shorten
from stages.engine.outcome import StageError

if TYPE_CHECKING:
    from model.recipe import Recipe
    from stages.train.run import Hold


MAX_DEFAULT_WORKERS = 16
WINDOW = 32  # shards, where neither an option nor the params file says it


def default_workers() -> int:
    """Workers per rank: the cores that this process may use, divided by the ranks of this machine."""
    return min(MAX_DEFAULT_WORKERS, count_cores_per_rank())


@click.command("train")
@click.option("--shards", metavar="DIR|URL", help="Dataset to train on.")
@click.option("--run", type=FOLDER, help="Folder for the run.  [default: runs/PRESET]")
@click.option(
    "--preset",
    help="Recipe to start from: multi-speaker, single-speaker, multi-speaker-256, single-speaker-256, "
    "paper-multi-speaker, paper-single-speaker, demo, small, fast or own.  "
    "[default: train.preset of the params file]",
)
@click.option(
    "--start-from",
    type=NETWORK,
    help="Start from the weights of a published model, of a run, of one checkpoint or of a file of `pipeline "
    "export`, and take its network; the presets own and fast are made for it.  [default: from nothing]",
)
@click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a value of the recipe, e.g. optim.learning_rate=1e-4; may be repeated.",
)
@params_option
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    metavar="N",
    help="Frames per forward pass, when a whole batch does not fit into memory.",
)
@click.option(
    "--frames-on",
    type=click.Choice(["device", "host"]),
    default="device",
    show_default=True,
    help="Memory for the decoded frames; host if they do not fit on the GPU.",
)
@click.option(
    "--hold",
    type=click.Choice(["resident", "cached", "windowed", "streamed"]),
    default="resident",
    show_default=True,
    help="Where the frames are. resident: all decoded in memory. cached: in shards on this machine's disk. "
    "windowed: --window shards at a time, decoded in memory. streamed: a buffer of clips in memory, without "
    "exact epochs (docs/reading.md).",
)
@click.option("--cache", type=FOLDER, help="Folder for downloaded shards.  [default: the user's cache]")
@click.option(
    "--cache-gb", type=NumberRange(0, 1e6), default=100.0, show_default=True, help="Size limit of --cache."
)
@click.option(
    "--window",
    type=click.IntRange(1),
    show_default=f"the recipe's, or {WINDOW}",
    metavar="K",
    help="Shards that --hold windowed shuffles together; a run cannot be resumed with another K.",
)
@click.option(
    "--memory-gb",
    type=NumberRange(1e-3, 1e6),
    show_default="16, or 80 % of the free memory if that is less",
    help="Limit of the decoded frames that --hold windowed has in memory, per rank; with less than two "
    "windows some frames are decoded more than once.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    default=default_workers,
    show_default="the cores it may use divided by the machine's ranks; 16 at most",
    help="Decoding threads (--hold resident, windowed) or processes, per rank.",
)
@click.option(
    "--set-aside",
    is_flag=True,
    help="If --run holds a run that cannot go on with these numbers or on this dataset, or has no checkpoint "
    "to go on from, rename it to RUN-1, RUN-2, ... and start a new one.  [default: refuse]",
)
@click.option(
    "--dvclive",
    type=FOLDER,
    help="Folder for the losses as `dvc exp show` and `dvc plots` read them (needs the extra `dvclive`).",
)
@device_options
@add_endpoint_option
@click.option("-n", "--dry-run", is_flag=True, help="Print the recipe and the parameter count, and exit.")
def command(
    shards: str | None,
    run: Path | None,
    preset: str | None,
    start_from: Path | None,
    settings: tuple[str, ...],
    params: Path | None,
    device: str,
    micro_batch: int | None,
    execution: dict[str, Any],
    frames_on: str,
    hold: Hold,
    cache: Path | None,
    cache_gb: float,
    window: int | None,
    memory_gb: float | None,
    workers: int,
    set_aside: bool,
    dvclive: Path | None,
    dry_run: bool,
) -> None:  # fmt: skip
    """Train a network on the training clips of --shards. Run again to resume.

    Exits with 143 or 130 if SIGTERM or Ctrl-C stopped it, once it has saved a checkpoint.

    On several GPUs: torchrun --nproc-per-node 8 -m -- pipeline.main train ...
    Without the -- torchrun reads --run as an option of its own.

    On a processor, a run of half an hour or more begins with a trial of compiled fp32 and compiled bf16, and
    goes on with what is fastest. --precision fp32 --no-compile is the reference, without a trial.
    """
    from model.execution import Execution
    from model.recipe import build_recipe, nest_changes
    from model.start import find_start
    from pipeline.progress import ProgressBars
    from stages.train import run as train

    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for package in ("model", "stages"):
        logging.getLogger(package).setLevel(logging.INFO)
    section = params_file.load(params).train
    name = preset or section.preset
    start = find_start(start_from) if start_from else None
    changes = [section.changes, nest_changes(_parse_settings(settings))]
    if hold == "windowed":
        if window is not None and changes[1].get("window", window) != window:
            raise click.UsageError(
                f"--window is {window}, and --set window={changes[1]['window']}; leave out one"
            )
        changes = [{"window": WINDOW}, *changes, {"window": window} if window is not None else {}]
    recipe = build_recipe(name, *changes, start=start.recipe if start else None)
    if dry_run:
        _print_plan(name, recipe)
        return
    if shards is None:
        raise click.UsageError("--shards is required: the folder or address of a dataset")
    request = train.TrainRequest(
        shards=shards,
        run=run or Path("runs", name),
        preset=name,
        device=device,
        frames_on=frames_on,
        workers=workers,
        hold=hold,
        cache=cache,
        cache_gb=cache_gb,
        memory_gb=memory_gb,
        execution=Execution(micro_batch=micro_batch or 0, **execution),
        trial=True,
        start=start,
        set_aside=set_aside,
        dvclive=dvclive,
    )
    with ProgressBars() as bars:
        outcome = train.run(request, recipe, bars)
    print_once(f"{request.run}: {outcome}")
    if outcome != "done":
        # As a shell says of a process that a signal ended: what needs the network must not run next.
        raise SystemExit(128 + getattr(signal, outcome.rpartition(" ")[2], signal.SIGTERM))


def _parse_settings(settings: tuple[str, ...]) -> dict[str, object]:
    """("batch=8",) -> {"batch": 8}: values are YAML, as in the params file."""
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{shorten(setting)[1:-1]}: expected NAME=VALUE", param_hint="--set")
        try:
            values[name] = parse_yaml(value)
        except StageError as err:
            raise click.BadParameter(f"{name}: not YAML ({err})", param_hint="--set") from err
    return values


def _print_plan(preset: str, recipe: Recipe) -> None:
    from model.unet import count_parameters, make_empty_network

    values = json.loads(json.dumps(asdict(recipe)))  # tuples as lists, which YAML prints without tags
    click.echo(yaml.safe_dump({"preset": preset, **values}, sort_keys=False).rstrip())
    click.echo(f"parameters: {count_parameters(make_empty_network(recipe.network)):,}")
