"""`pipeline sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from pipeline import params as params_file
from pipeline.options import (
    FOLDER,
    NETWORK,
    add_endpoint_option,
    device_options,
    params_option,
    print_once,
    sampler_options,
)
from pipeline.progress import ProgressBars


@click.command("sample")
@click.option("--shards", required=True, metavar="DIR|URL", help="A finished dataset.")
@click.option(
    "--run",
    type=NETWORK,
    required=True,
    help="Folder of a run or checkpoint, a published model, or a file of `pipeline export`.",
)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder to write.")
@click.option("--split", default="test", show_default=True, help="Split to generate.")
@click.option(
    "--audio",
    type=click.Choice(["own", "swapped"]),
    default="own",
    show_default=True,
    help="The clip's own speech, or another clip's, paired by --seed.",
)
@click.option("--clips", type=click.IntRange(1), help="Only the first N clips, by name.")
@click.option(
    "--slots", type=click.IntRange(1, 10_000), default=16, show_default=True, help="Clips at a time."
)
@click.option("--videos/--no-videos", default=True, show_default=True, help="Write an mp4 beside the crops.")
@params_option
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
    params: Path | None,
    sampling: dict[str, Any],
    device: str,
    execution: dict[str, Any],
) -> None:  # fmt: skip
    """Generate the clips of a split. Run again to continue where it stopped.

    A published model, a run that started from one and a network of the paper's recipe say how they are
    sampled; for any other it is the section `sample` of the params file. --sampler to --seed override both.

    On several GPUs: torchrun --nproc-per-node 8 -m -- pipeline.main sample ...
    """
    from model.execution import Execution
    from stages.sample import run as sample
    from stages.sample.pairs import explain_other_splits

    sample_params = params_file.load(params).make_sample_params(run, **sampling)
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
        execution=Execution(**execution),
    )
    with ProgressBars() as bars:
        result = sample.run(request, sample_params, bars)
    note = explain_other_splits(result.other_splits)
    print_once(f"{out}: {result.n_clips} clips of {split}, with {audio} speech" + (note and f"; {note}"))
