"""`pipeline verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.options import FOLDER


@click.command("verify")
@click.argument("shards", type=FOLDER)
@click.option("--full", is_flag=True, help="Decode every frame too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(shards: Path, full: bool, as_json: bool) -> None:
    """Check that the dataset in SHARDS is whole and right. Exits with 1 when it is not.

    Checks sizes and sha256 of every shard, byte range and CRC of every member, and that manifest,
    index and ledger tell one story.
    """
    from shards.verify import verify

    problems = list(verify(shards, full=full))
    if as_json:
        click.echo(json.dumps({"shards": str(shards), "full": full, "problems": problems}))
    else:
        for problem in problems:
            click.echo(problem)
        how = "every frame decoded" if full else "sizes, hashes and ranges"
        click.echo(f"{shards}: {f'{len(problems)} problems' if problems else f'whole and right ({how})'}")
    if problems:
        raise SystemExit(1)
