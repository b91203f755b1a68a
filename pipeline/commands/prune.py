"""`pipeline prune`."""

from __future__ import annotations

import click

from pipeline.options import add_endpoint_option


@click.command("prune")
@click.argument("shards", metavar="DIR|URL")
@click.option("--delete", is_flag=True, help="Remove the files. Without it they are only listed.")
@add_endpoint_option
def command(shards: str, delete: bool) -> None:
    """List files of older datasets and of interrupted uploads beside the current dataset.

    These are shards and tables that dataset.json does not name. Jobs that started before the dataset was
    rebuilt may still read them, and an upload in progress has not named its own yet: use --delete only when
    there are no such jobs and uploads.
    """
    from shards.publish import find_leftovers
    from shards.storage import open_storage

    storage = open_storage(shards)
    names = find_leftovers(storage)
    for name in names:
        if delete:
            storage.delete(name)
        click.echo(name)
    click.echo(f"{storage.address}: {len(names)} files {'removed' if delete else 'that no dataset names'}")
