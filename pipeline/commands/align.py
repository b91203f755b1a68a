"""`pipeline align`."""

from __future__ import annotations

import click

from pipeline.options import Request, stage_options


@click.command("align")
@stage_options
def command(request: Request) -> None:
    """Bring each face to its canonical place: a matrix and a mask box per frame.

    Run again to go on where it stopped; what has not changed is not computed again.
    """
    from pipeline import build as road

    road.go(request, ("align",))
