"""`pipeline shard`."""

from __future__ import annotations

import click

from pipeline.options import Request, stage_options


@click.command("shard")
@click.option("--only", is_flag=True, help="Take the earlier stages' output as it is (for dvc.yaml).")
@stage_options
def command(request: Request, only: bool) -> None:
    """Raw clips to shards: does all that is missing, stage by stage.

    Run again to go on where it stopped; what has not changed is not computed again. The shards are a
    plain WebDataset; `dataset.json` beside them is written last.
    """
    from pipeline import build as road

    road.go(request, ("shard",) if only else road.ROAD)
