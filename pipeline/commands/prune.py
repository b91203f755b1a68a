"""`pipeline prune`."""

from __future__ import annotations

import click

from pipeline.options import add_endpoint_option


@click.command("prune")
@click.argument("shards", metavar="DIR|URL")
@click.option("--delete", is_flag=True, help="Remove them. Without it they are only listed.")
@add_endpoint_option
def command(shards: str, delete: bool) -> None:
    """List what older datasets and broken uploads left beside the dataset that is there now.

    These are shards and tables that dataset.json does not name. Jobs that began before the dataset was
    rebuilt may still read them, and an upload that is under way has not named its own yet: --delete is for
    when there are none.
    """
    from shards.publish import leftovers
    from shards.schema import ShardError
    from shards.storage import open_storage

    try:
        place = open_storage(shards)
        left = leftovers(place)
        for name in left:
            if delete:
                place.delete(name)
            click.echo(name)
    except ShardError as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{place.address}: {len(left)} files {'removed' if delete else 'that no dataset names'}")
