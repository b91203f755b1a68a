"""The options that every stage's command takes, as one record."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
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
    source: str | None  # an address, where raw clips lie instead
    work: Path
    out: Path
    publish: str | None  # an address, where the finished dataset goes as well
    cache: Path
    workers: int
    scheduler: str | None
    params: Path | None
    landmarker: str
    as_json: bool
    dry_run: bool


OPTIONS = (
    click.option("--dataset", type=click.Choice(list(CORPORA)), required=True, help="The corpus of --raw."),
    click.option("--raw", metavar="DIR|s3://BUCKET/PREFIX",
                 help="Raw clips, never written to.  [default: data/DATASET/raw]"),
    click.option("--work", type=FOLDER, help="Outputs of the stages.  [default: data/DATASET]"),
    click.option("--out", metavar="DIR|s3://BUCKET/PREFIX",
                 help="For the finished shards; a bucket gets those in WORK/shards.  [default: WORK/shards]"),
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
        raw: str | None,
        work: Path | None,
        out: str | None,
        cache: Path | None,
        **rest: Any,
    ) -> Any:
        work = work or Path("data", dataset)
        source, raw = _bucket_or_folder(raw, "--raw")
        publish, out = _bucket_or_folder(out, "--out")
        if source and not publish:
            raise click.BadParameter(
                "clips in a bucket go to shards in a bucket: s3://...", param_hint="--out"
            )
        names = ("workers", "scheduler", "params", "landmarker", "as_json", "dry_run")
        request = Request(
            dataset=dataset,
            raw=Path(raw) if raw else Path("data", dataset, "raw"),
            source=source,
            work=work,
            out=Path(out) if out else work / ("published" if source else "shards"),
            publish=publish,
            cache=cache or work / ".cache",
            **{name: rest.pop(name) for name in names},
        )
        return function(request, **rest)

    return at_endpoint(_with(OPTIONS, command))


def _bucket_or_folder(where: str | None, option: str) -> tuple[str | None, str | None]:
    """An address and no folder, or a folder and no address, or neither."""
    if where is None or "://" not in where:
        return None, where
    if not where.startswith("s3://"):
        raise click.BadParameter(
            f"{where}: only folders and s3://BUCKET/PREFIX are known here", param_hint=option
        )
    return where, None


SAMPLER_OPTIONS = (
    click.option("--sampler", type=click.Choice(["ancestral", "ddim", "dpm++2m"]), help="How noise is left."),
    click.option("--steps", type=click.IntRange(1, 2000), help="Network passes per frame."),
    click.option("--guidance", type=click.FloatRange(0), help="Beyond 1: follow the audio more closely."),
    click.option("--reanchor-every", type=click.IntRange(0), metavar="N",
                 help="Hide the previous frame's mouth every N frames, against drift.  [0: never]"),
    click.option("--seed", type=click.IntRange(0), help="Another one draws other mouths."),
)  # fmt: skip
DEVICE_OPTIONS = (
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto",
                 show_default=True, help="Of matrix products; auto is bf16 on a GPU. Weights stay fp32."),
    click.option("--compile/--no-compile", default=None, help="torch.compile.  [default: on a GPU]"),
)  # fmt: skip


def sampler_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How frames are drawn. What is not given is None: its default stands beside the code that uses it."""
    return _with(SAMPLER_OPTIONS, function)


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where a network runs."""
    return _with(DEVICE_OPTIONS, function)


def at_endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--endpoint-url``, passed on in the environment: there every S3 client looks, also of a child."""

    def heard(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ["AWS_ENDPOINT_URL_S3"] = value

    return click.option("--endpoint-url", metavar="URL", expose_value=False, callback=heard,
                        help="An S3-compatible server.  [default: AWS_ENDPOINT_URL, the profile's, AWS]"
                        )(function)  # fmt: skip


def _with(options: Sequence[Callable[..., Any]], function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function


def say_once(text: str) -> None:
    """Print a command's answer: under ``torchrun`` by its first process alone."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(text)
