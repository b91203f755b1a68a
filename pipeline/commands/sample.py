"""`pipeline sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pipeline.options import FOLDER, at_endpoint, device_options, sampler_options, say_once

if TYPE_CHECKING:
    from model.machine import Precision
    from sampler.steps import SamplerName


@click.command("sample")
@click.option("--shards", required=True, metavar="DIR|URL", help="A finished dataset.")
@click.option("--run", type=FOLDER, required=True, help="Folder of a run, or of one checkpoint.")
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--split", default="test", show_default=True, help="Which clips.")
@click.option(
    "--audio",
    type=click.Choice(["own", "swapped"]),
    default="own",
    show_default=True,
    help="Whose speech: the clip's, or another clip's, paired by --seed.",
)
@click.option("--clips", type=click.IntRange(1), help="Only the first so many, by name.")
@click.option("--slots", type=click.IntRange(1), default=16, show_default=True, help="Clips at once.")
@click.option("--videos/--no-videos", default=True, show_default=True, help="An mp4 beside the crops.")
@sampler_options
@device_options
@at_endpoint
def command(
    shards: str,
    run: Path,
    out: Path,
    split: str,
    audio: Literal["own", "swapped"],
    clips: int | None,
    slots: int,
    videos: bool,
    sampler: SamplerName | None,
    steps: int | None,
    guidance: float | None,
    reanchor_every: int | None,
    seed: int | None,
    device: str,
    precision: Precision,
    compile: bool | None,
) -> None:  # fmt: skip
    """Draw the clips of a split anew. Run again to go on where it stopped.

    On several GPUs: torchrun --nproc-per-node 8 -m -- pipeline.main sample ...
    """
    from model.machine import Machine
    from model.recipe import ModelError
    from sampler.rollout import params_of
    from shards.schema import ShardError
    from stages import sample
    from stages.work import StageError

    try:
        params = params_of(
            sampler=sampler, steps=steps, guidance=guidance, reanchor_every=reanchor_every, seed=seed
        )
        request = sample.SampleRequest(
            shards=shards,
            run=run,
            out=out,
            split=split,
            audio=audio,
            clips=clips,
            slots=slots,
            videos=videos,
            device=device,
            machine=Machine(precision=precision, compile=compile),
        )
        n_clips = sample.run(request, params)
    except (StageError, ShardError, ModelError) as err:
        raise click.ClickException(str(err)) from err
    say_once(f"{out}: {n_clips} clips of {split}, to {audio} speech")
