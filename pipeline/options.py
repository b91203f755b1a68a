"""The options that every stage's command takes, as one record."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stages.corpora import CORPORA

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked of a stage."""

    dataset: str
    raw: Path
    work: Path
    out: Path
    cache: Path
    workers: int
    scheduler: str | None
    params: Path | None
    landmarker: str
    as_json: bool
    dry_run: bool


OPTIONS = (
    click.option("--dataset", type=click.Choice(list(CORPORA)), required=True, help="The corpus of --raw."),
    click.option("--raw", type=FOLDER, help="Raw clips, never written to.  [default: data/DATASET/raw]"),
    click.option("--work", type=FOLDER, help="Outputs of the stages.  [default: data/DATASET]"),
    click.option("--out", help="Folder of the finished shards.  [default: WORK/shards]"),
    click.option("--cache", type=FOLDER, help="Results kept for reuse.  [default: WORK/.cache]"),
    click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1,
                 show_default="one per core", help="Processes on this machine."),
    click.option("--scheduler", metavar="tcp://HOST:PORT", help="A Dask scheduler to use instead."),
    click.option("--params", type=FILE, help="Params file.  [default: ./params.yaml if it is there]"),
    click.option("--landmarker", default="", metavar="FILE", help="MediaPipe's face_landmarker.task."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    click.option("-n", "--dry-run", is_flag=True, help="Print params and what would be done, and exit."),
)  # fmt: skip


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a stage; it receives them as a Request, and its own beside it."""

    @functools.wraps(function)
    def command(
        *,
        dataset: str,
        raw: Path | None,
        work: Path | None,
        out: str | None,
        cache: Path | None,
        **rest: Any,
    ) -> Any:
        work = work or Path("data", dataset)
        if out is not None and "://" in out:
            raise click.BadParameter(f"{out}: only local folders can be written to", param_hint="--out")
        names = ("workers", "scheduler", "params", "landmarker", "as_json", "dry_run")
        request = Request(
            dataset=dataset,
            raw=raw or Path("data", dataset, "raw"),
            work=work,
            out=work / "shards" if out is None else Path(out),
            cache=cache or work / ".cache",
            **{name: rest.pop(name) for name in names},
        )
        return function(request, **rest)

    for option in reversed(OPTIONS):
        command = option(command)
    return command
