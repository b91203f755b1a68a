"""`pipeline mels`."""

from __future__ import annotations

import click

from pipeline.options import Request, stage_options


@click.command("mels")
@stage_options
def command(request: Request) -> None:
    """Turn each clip's sound into mel rows, exactly two per video frame.

    Run again to go on where it stopped; what has not changed is not computed again.
    """
    from pipeline import build as road

    road.go(request, ("mels",))
