"""`pipeline clips`."""

from __future__ import annotations

import click

from pipeline.options import Request, stage_options


@click.command("clips")
@stage_options
def command(request: Request) -> None:
    """Find every file in --raw, read its facts, and write one row for each: WORK/clips.parquet.

    Run again to go on where it stopped; what has not changed is not computed again.
    """
    from pipeline import build as road

    road.go(request, ("clips",))
