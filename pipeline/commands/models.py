"""`pipeline models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from stages.media.networks import PublishedNetwork


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with everything that is known.")
def command(as_json: bool) -> None:
    """List the published models, whose names `--run` takes.

    Packaged ones come first. The page of each model, NAME.md beside its file, has its data and licences,
    limits, and what it must not be used for; so has --json.
    """
    from stages.media.networks import list_networks

    networks = list_networks()
    if as_json:
        click.echo(json.dumps({"models": [_to_json(network) for network in networks]}, indent=1))
        return
    for network in networks:
        for line in _describe(network):
            click.echo(line)


def _to_json(network: PublishedNetwork) -> dict[str, Any]:
    path = None if network.path is None else str(network.path)
    return {**network.model.model_dump(), "path": path, "packaged": network.is_packaged}


def _describe(network: PublishedNetwork) -> list[str]:
    """A model in some lines: the first has its name and size, the others its figures and licences."""
    from model.published import format_figure

    model = network.model
    place = "packaged" if network.is_packaged else "downloaded" if network.path else "not on this machine"
    lines = [
        f"{model.name}  {model.bytes / 1e6:.1f} MB, {model.parameters:,} parameters, "
        f"hears {model.audio_input}, {place}",
        f"  {model.summary}",
    ]
    lines += [f"  {item.name}: {format_figure(item)} ({item.conditions})" for item in model.figures]
    licences = ", ".join(f"{data.name} {data.licence}" for data in model.data)
    lines.append(f"  weights: {model.licence}; data: {licences}")
    if network.path is None:
        lines.append(f"  `pipeline fetch --model {model.name}` downloads it")
    return lines
