"""`pipeline diff`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pipeline.options import add_endpoint_option

SHOWN = 20


@click.command("diff")
@click.argument("first", metavar="DIR|URL")
@click.argument("second", metavar="DIR|URL")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@add_endpoint_option
def command(first: str, second: str, as_json: bool) -> None:
    """What two datasets differ in: clips, splits, reasons, params. Exits with 1 when they do."""
    from shards.diff import diff
    from shards.schema import ShardError
    from shards.storage import open_storage

    try:
        found = diff(open_storage(first), open_storage(second))
    except ShardError as err:
        raise click.ClickException(str(err)) from err
    if as_json:
        click.echo(json.dumps(asdict(found)))
    elif not found:
        click.echo("the same clips with the same bytes, built with the same params")
    else:
        _print("params", [f"{name}: {change}" for name, change in found.params.items()])
        _print("added", found.added)
        _print("removed", [f"{clip}: {why}" for clip, why in found.removed.items()])
        _print("changed", [f"{clip}: {', '.join(names)}" for clip, names in found.changed.items()])
        _print("moved", [f"{clip}: {move}" for clip, move in found.moved.items()])
        _print("dropped for another reason", [f"{path}: {why}" for path, why in found.reasons.items()])
    if found:
        raise SystemExit(1)


def _print(title: str, lines: list[str]) -> None:
    if not lines:
        return
    click.echo(f"{title}: {len(lines)}")
    for line in lines[:SHOWN]:
        click.echo(f"  {line}")
    if len(lines) > SHOWN:
        click.echo(f"  ... and {len(lines) - SHOWN} more (--json lists all)")
