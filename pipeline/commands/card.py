"""`pipeline card`."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import click

from pipeline.options import FOLDER


@click.command("card")
@click.argument("shards", metavar="DIR", type=FOLDER)
@click.option("--url", metavar="URL", help="Web page of the dataset.  [default: not stated]")
@click.option("--creator", metavar="NAME", help="Who made the dataset.  [default: not stated]")
@click.option("--published", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD",
              help="The day on which it was published.  [default: not stated]")  # fmt: skip
def command(shards: Path, url: str | None, creator: str | None, published: datetime | None) -> None:
    """Describe a dataset for others: README.md and croissant.json beside its dataset.json.

    With them `datasets.load_dataset(DIR)` reads the splits, a hub shows sources, licences, counts and
    reasons, and tools that know Croissant 1.1 read tables and members. The dataset itself stays as it is.
    Check it with `pipeline verify` before you publish it.
    """
    from shards.croissant import CROISSANT_NAME, Publication
    from shards.dataset_card import write_dataset_card

    if url is not None and not re.fullmatch(r"https?://[!-~]{1,1000}", url):
        raise click.BadParameter(f"{url!a}: expected http:// or https:// and no spaces", param_hint="--url")
    if creator is not None and not (creator.strip() and creator.isprintable() and len(creator) <= 1000):
        raise click.BadParameter(f"{creator[:80]!a}: expected one printable line", param_hint="--creator")
    date = None if published is None else f"{published:%Y-%m-%d}"
    for path in write_dataset_card(shards, Publication(url, creator, date)):
        click.echo(path)
    values = {"url": url, "creator": creator, "published": date}
    missing = ", ".join(f"--{name}" for name, value in values.items() if value is None)
    if missing:
        click.echo(f"{CROISSANT_NAME} lacks what Croissant asks for and no dataset says: {missing}", err=True)
