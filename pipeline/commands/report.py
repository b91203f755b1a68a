"""`pipeline report`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import FILE, FOLDER, add_endpoint_option


@click.command("report")
@click.option("--shards", required=True, metavar="DIR|URL", help="A finished dataset.")
@click.option("--run", type=FOLDER, help="Folder of a run: training curves and pictures.")
@click.option("--evaluation", type=FOLDER, help="What `pipeline evaluate` wrote: tables and curves.")
@click.option(
    "--generated", type=FOLDER, multiple=True, help="What `pipeline sample` wrote: strips; may be repeated."
)
@click.option("-o", "--out", type=FILE, required=True, help="The page to write (.html).")
@add_endpoint_option
def command(
    shards: str, run: Path | None, evaluation: Path | None, generated: tuple[Path, ...], out: Path
) -> None:
    """One HTML file that shows the data, the training and the results.

    It holds all it needs and asks nothing of the network: mail it, print it, open it in ten years. Sections
    whose inputs are not given say what to give.
    """
    from shards.schema import ShardError
    from stages.engine.outcome import StageError
    from stages.report import run as report
    from stages.report.run import ReportRequest

    if out.suffix.lower() != ".html":
        raise click.BadParameter(f"{out}: the page is written as .html", param_hint="--out")
    try:
        n_bytes = report.write(ReportRequest(shards, out, run, evaluation, generated))
    except (ShardError, StageError) as err:
        raise click.ClickException(str(err)) from err
    except OSError as err:
        raise click.ClickException(f"{out}: cannot be written ({err.strerror or err})") from err
    click.echo(f"{out}: {n_bytes / 1e6:.1f} MB")
