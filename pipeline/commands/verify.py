"""`pipeline verify`."""

from __future__ import annotations

import json

import click

from pipeline.options import add_endpoint_option


@click.command("verify")
@click.argument("shards", metavar="DIR|URL")
@click.option("--full", is_flag=True, help="Decode every frame too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@add_endpoint_option
def command(shards: str, full: bool, as_json: bool) -> None:
    """Check that a dataset is complete and right. Exits with 1 when it is not.

    Checks sizes and sha256 of every shard, byte range and CRC of every member, and that manifest, index and
    ledger agree. At a URL the shards are not read without --full: only their sizes are requested, and their
    sha256 where the server keeps it.
    """
    from shards.storage import is_remote, open_storage, strip_address
    from shards.verify import verify

    problems = list(verify(open_storage(shards), full=full))
    name = strip_address(shards)
    if as_json:
        click.echo(json.dumps({"shards": name, "full": full, "problems": problems}))
    else:
        for problem in problems:
            click.echo(problem)
        quick = "tables, and the sizes of shards" if is_remote(shards) else "sizes, hashes and ranges"
        scope = "every frame decoded" if full else quick
        click.echo(f"{name}: {f'{len(problems)} problems' if problems else f'no problems ({scope})'}")
    if problems:
        raise SystemExit(1)
