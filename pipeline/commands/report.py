"""`pipeline report`: write an HTML page on a dataset, a training run and its results."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import FILE, FOLDER, MEGABYTE, add_endpoint_option


@click.command("report")
@click.option("--shards", metavar="DIR|URL", help="Dataset; not needed for cards alone.")
@click.option("--run", type=FOLDER, help="Output of `pipeline train`: training curves and images.")
@click.option("--evaluation", type=FOLDER, help="Output of `pipeline evaluate`: tables and curves.")
@click.option(
    "--generated", type=FOLDER, multiple=True, help="Output of `pipeline sample`: strips; may be repeated."
)
@click.option(
    "--card",
    "cards",
    type=FOLDER,
    multiple=True,
    help="A card of `pipeline evaluate --card`, or a folder of cards: systems side by side, above Table 2 of "
    "the paper; may be repeated.",
)
@click.option("-o", "--out", type=FILE, required=True, help="HTML file to write (.html).")
@add_endpoint_option
def command(
    shards: str | None,
    run: Path | None,
    evaluation: Path | None,
    generated: tuple[Path, ...],
    cards: tuple[Path, ...],
    out: Path,
) -> None:
    """Write one HTML file that shows the data, the training and the results.

    The file is self-contained and makes no requests. A section without input says which option to give.
    """
    from stages.report.run import ReportRequest, write_report

    if out.suffix.lower() != ".html":
        raise click.BadParameter(f"{out}: the page is written as .html", param_hint="--out")
    if shards is None and (run or evaluation or generated or not cards):
        raise click.UsageError("--shards is required, a folder or an address; only --card needs none")
    n_bytes = write_report(ReportRequest(shards, out, run, evaluation, generated, cards))
    click.echo(f"{out}: {n_bytes / MEGABYTE:.1f} MB")
