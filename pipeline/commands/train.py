"""`pipeline train`."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from pipeline import params as params_file
from pipeline.options import FILE, FOLDER, at_endpoint, device_options, say_once

if TYPE_CHECKING:
    from model.execution import Precision
    from model.recipe import Recipe
    from stages.train import Hold


MOST_WORKERS = 16


def default_workers() -> int:
    """Of each rank: ``torchrun`` says how many share this machine."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@click.command("train")
@click.option("--shards", metavar="DIR|URL", help="A finished dataset; a remote one is copied here once.")
@click.option("--run", type=FOLDER, help="Folder of the run.  [default: runs/PRESET]")
@click.option("--preset", help="Recipe to start from.  [default: train.preset of the params file]")
@click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a number of the recipe, e.g. optim.learning_rate=1e-4; may be repeated.",
)
@click.option("--params", type=FILE, help="Params file.  [default: ./params.yaml if it is there]")
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    metavar="N",
    help="Frames at once, when a whole batch does not fit the memory.",
)
@click.option(
    "--frames-on",
    type=click.Choice(["device", "host"]),
    default="device",
    show_default=True,
    help="Where decoded frames lie, when a dataset does not fit the GPU.",
)
@click.option(
    "--hold",
    type=click.Choice(["resident", "cached", "windowed"]),
    default="resident",
    show_default=True,
    help="Where the frames are: decoded in memory; decoded anew from shards on this machine's disk; the same "
    "of --window shards at a time (docs/reading.md).",
)
@click.option("--cache", type=FOLDER, help="Keeps shards from elsewhere.  [default: the user's cache]")
@click.option(
    "--cache-gb", type=click.FloatRange(0), default=100.0, show_default=True, help="Limit of --cache."
)
@click.option(
    "--window",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="K",
    help="Shards whose frames --hold windowed shuffles with each other; another K is another run.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=default_workers,
    show_default="the cores, shared among a machine's ranks; 16 at most",
    help="Threads that decode a resident dataset, processes that decode another; of each rank.",
)
@device_options
@at_endpoint
@click.option("-n", "--dry-run", is_flag=True, help="Print the recipe and the parameter count, and exit.")
def command(
    shards: str | None,
    run: Path | None,
    preset: str | None,
    settings: tuple[str, ...],
    params: Path | None,
    device: str,
    precision: Precision,
    micro_batch: int | None,
    compile: bool | None,
    frames_on: str,
    hold: Hold,
    cache: Path | None,
    cache_gb: float,
    window: int,
    workers: int,
    dry_run: bool,
) -> None:  # fmt: skip
    """Train a network on the training clips of --shards. Run again to go on where it stopped.

    On several GPUs: torchrun --nproc-per-node 8 -m -- pipeline.main train ...
    Without the -- torchrun takes --run for an option of its own.
    """
    from model.execution import Execution
    from model.recipe import ModelError, build_recipe, nest_changes
    from shards.schema import ShardError
    from stages import train
    from stages.engine.outcome import StageError

    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    for package in ("model", "stages"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        section = params_file.load(params).train
        name = preset or section.preset
        recipe = build_recipe(name, section.changes, nest_changes(_values(settings)))
        if hold == "windowed":
            recipe = replace(recipe, window=window)
        if dry_run:
            _print_plan(name, recipe)
            return
        if shards is None:
            raise click.UsageError("--shards is needed: the folder of a finished dataset")
        ended = train.run(
            train.TrainRequest(
                shards=shards,
                run=run or Path("runs", name),
                preset=name,
                device=device,
                frames_on=frames_on,
                workers=workers,
                hold=hold,
                cache=cache,
                cache_gb=cache_gb,
                machine=Execution(micro_batch=micro_batch or 0, precision=precision, compile=compile),
            ),
            recipe,
        )
    except (StageError, ShardError, ModelError) as err:
        raise click.ClickException(str(err)) from err
    say_once(f"{run or Path('runs', name)}: {ended}")


def _values(settings: tuple[str, ...]) -> dict[str, object]:
    """("batch=8",) -> {"batch": 8}: values are YAML, as in the params file."""
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{setting}: expected NAME=VALUE", param_hint="--set")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError as err:
            why = " ".join(str(err).split())
            raise click.BadParameter(f"{setting}: not YAML ({why})", param_hint="--set") from err
    return values


def _print_plan(preset: str, recipe: Recipe) -> None:
    import torch

    from model.unet import UNet, parameter_count

    with torch.device("meta"):
        n_parameters = parameter_count(UNet(recipe.network))
    described = json.loads(json.dumps(asdict(recipe)))  # tuples as lists, which YAML shows plainly
    click.echo(yaml.safe_dump({"preset": preset, **described}, sort_keys=False).rstrip())
    click.echo(f"parameters: {n_parameters:,}")
