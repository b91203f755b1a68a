"""`pipeline models`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import MEGABYTE

if TYPE_CHECKING:
    from stages.media.networks import PublishedNetwork

COLUMNS = ("name", "hears", "size", "parameters", "licence", "where")


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with everything that is known.")
def command(as_json: bool) -> None:
    """List the published models, whose names `--run` takes.

    Packaged ones come first; `pipeline fetch --model NAME` downloads others. The page of each model, NAME.md
    beside its file, has its data and licences, limits, and what it must not be used for; so has --json.
    """
    from stages.media.networks import list_networks

    networks = list_networks()
    if as_json:
        click.echo(json.dumps({"models": [_to_json(network) for network in networks]}, indent=1))
        return
    for line in _format_table(networks):
        click.echo(line)


def _to_json(network: PublishedNetwork) -> dict[str, Any]:
    path = None if network.path is None else str(network.path)
    return {**network.model.model_dump(), "path": path, "packaged": network.is_packaged}


def _format_table(networks: Sequence[PublishedNetwork]) -> list[str]:
    """A row of facts per model, and below it its figures, its data, its limits and what it is not for."""
    from model.published import format_figure

    rows = [COLUMNS, *(_make_row(network) for network in networks)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    lines = []
    for row, network in zip(rows, [None, *networks], strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if network is None:
            continue
        model = network.model
        figures = [f"{item.name}: {format_figure(item)} ({item.conditions})" for item in model.figures]
        data = "; ".join(f"{item.name} ({item.licence}), {item.part}" for item in model.data)
        limits = [f"limit: {text}" for text in model.limits]
        must_not = [f"must not be used {text}" for text in model.must_not]
        texts = (model.summary, *figures, f"trained on {data}", *limits, *must_not)
        lines += [f"    {text}" for text in texts]
    return lines


def _make_row(network: PublishedNetwork) -> tuple[str, ...]:
    model = network.model
    if network.path is not None:
        place = "packaged" if network.is_packaged else "downloaded"
    else:
        place = "missing" if model.url is None else "fetch --model"
    size = f"{model.bytes / MEGABYTE:.1f} MB"
    return model.name, model.audio_input, size, f"{model.parameters:,}", model.licence, place
