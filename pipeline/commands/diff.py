"""`pipeline diff`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pipeline.options import add_endpoint_option

MAX_LINES = 20


@click.command("diff")
@click.argument("first", metavar="DIR|URL")
@click.argument("second", metavar="DIR|URL")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@add_endpoint_option
def command(first: str, second: str, as_json: bool) -> None:
    """Print how two datasets differ: clips, splits, reasons, params. Exits with 1 when they do."""
    from shards.diff import diff
    from shards.storage import open_storage

    difference = diff(open_storage(first), open_storage(second))
    if as_json:
        click.echo(json.dumps(asdict(difference)))
    elif not difference:
        click.echo("the same clips with the same bytes, built with the same params")
    else:
        _print("params", [f"{name}: {change}" for name, change in difference.params.items()])
        _print("dataset.json", [f"{name}: {change}" for name, change in difference.manifest.items()])
        _print("added", difference.added)
        _print("removed", [f"{clip}: {why}" for clip, why in difference.removed.items()])
        _print("changed", [f"{clip}: {', '.join(names)}" for clip, names in difference.changed.items()])
        _print("moved", [f"{clip}: {move}" for clip, move in difference.moved.items()])
        _print("at another place", [f"{clip}: {place}" for clip, place in difference.places.items()])
        _print("ledger rows", [f"{path}: {', '.join(names)}" for path, names in difference.files.items()])
        _print("dropped for another reason", [f"{path}: {why}" for path, why in difference.reasons.items()])
    if difference:
        raise SystemExit(1)


def _print(title: str, lines: list[str]) -> None:
    from shards.errors import shorten_message

    if not lines:
        return
    click.echo(f"{title}: {len(lines)}")
    for line in lines[:MAX_LINES]:
        click.echo(f"  {shorten_message(line)}")
    if len(lines) > MAX_LINES:
        click.echo(f"  ... and {len(lines) - MAX_LINES} more (--json lists all)")
