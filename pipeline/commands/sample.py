"""`pipeline sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pipeline import params as params_file
from pipeline.options import FILE, FOLDER, add_endpoint_option, device_options, print_once, sampler_options

if TYPE_CHECKING:
    from model.execution import Precision
    from sampler.params import SamplerName


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
@click.option(
    "--params",
    "params_path",
    type=FILE,
    help="Params file, for its `sample` section.  [default: ./params.yaml]",
)
@sampler_options
@device_options
@add_endpoint_option
def command(
    shards: str,
    run: Path,
    out: Path,
    split: str,
    audio: Literal["own", "swapped"],
    clips: int | None,
    slots: int,
    videos: bool,
    params_path: Path | None,
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
    from model.execution import Execution
    from model.recipe import ModelError
    from sampler.rollout import override_params
    from shards.schema import ShardError
    from stages.engine.outcome import StageError
    from stages.sample import run as sample

    try:
        params = override_params(
            params_file.load(params_path).sample,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            reanchor_every=reanchor_every,
            seed=seed,
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
            machine=Execution(precision=precision, compile=compile),
        )
        n_clips = sample.run(request, params)
    except (StageError, ShardError, ModelError) as err:
        raise click.ClickException(str(err)) from err
    print_once(f"{out}: {n_clips} clips of {split}, to {audio} speech")
