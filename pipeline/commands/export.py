"""`pipeline export`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import FILE, MEGABYTE, NETWORK


@click.command("export")
@click.option(
    "--run", type=NETWORK, required=True, help="Folder of a run or checkpoint, or a published model."
)
@click.option("-o", "--out", type=FILE, required=True, help="File to write: NAME.safetensors.")
@click.option("--newest", is_flag=True, help="The newest checkpoint of a run instead of the best.")
def command(run: Path, out: Path, newest: bool) -> None:
    """Write the network of a run as one file, which `--run` takes in place of the run's folder.

    It holds the averaged weights as float16 (half the size of one file of a checkpoint, a tenth of the
    whole), the recipe, and how mels and speech features are made for it. It cannot be resumed, but
    `pipeline train` can start from it.
    """
    from model.published_file import SUFFIX
    from pipeline.export import export_network

    if out.suffix != SUFFIX:
        raise click.BadParameter(f"{out}: expected a name that ends in {SUFFIX}", param_hint="--out")
    result = export_network(run, out, which="newest" if newest else "best")
    if result.info.mels is None:
        click.echo(
            f"{run}: has no run.json that says how its mels were made; whoever uses {out} needs the "
            "params.yaml of its dataset",
            err=True,
        )
    click.echo(f"trained on {', '.join(map(str, result.info.data))}")
    click.echo(
        f"{out}: {result.n_parameters:,} parameters of step {result.info.step:,}, "
        f"{out.stat().st_size / MEGABYTE:.1f} MB; "
        f"no tensor changes by more than {result.rounding:.1e} of its size"
    )
