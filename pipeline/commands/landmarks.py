"""`pipeline landmarks`."""

from __future__ import annotations

import click

from pipeline.options import Request, stage_options


@click.command("landmarks")
@stage_options
def command(request: Request) -> None:
    """Find 478 face points in every frame of every usable clip, on the 25 fps clock.

    Run again to go on where it stopped; what has not changed is not computed again.
    """
    from pipeline import build as road

    road.go(request, ("landmarks",))
