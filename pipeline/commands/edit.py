"""`pipeline edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import params as params_file
from pipeline.options import FILE, FOLDER, device_options, sampler_options
from pipeline.progress import ProgressBars

if TYPE_CHECKING:
    from model.execution import Precision
    from sampler.params import SamplerName
    from stages.edit.face_track import Choice
    from stages.edit.run import Preset
    from stages.edit.timing import Fit


def _choice(ctx: click.Context, param: click.Parameter, value: str) -> Choice:
    """largest, left, right, or a number from the left."""
    named: dict[str, Choice] = {"largest": "largest", "left": "left", "right": "right"}
    if value in named:
        return named[value]
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value}: expected largest, left, right or a number")


@click.command("edit")
@click.option("--video", type=FILE, required=True, help="Somebody who talks.")
@click.option("--audio", type=FILE, required=True, help="The new speech: sound, or a video that has some.")
@click.option("--run", type=FOLDER, required=True, help="Folder of a trained run, or of one checkpoint.")
@click.option("-o", "--out", type=FILE, required=True, help="Video to write: .mp4, .mov or .mkv.")
@click.option(
    "--fit",
    type=click.Choice(["trim", "hold", "loop"]),
    default="trim",
    show_default=True,
    help="trim: end with the shorter of both. hold: the last picture stands, or the sound is silent, until "
    "the longer ends. loop: the video runs to and fro until the speech ends.",
)
@click.option(
    "--face",
    callback=_choice,
    default="largest",
    show_default=True,
    metavar="WHICH",
    help="largest, left, right, or a number from the left, the leftmost is 0.",
)
@click.option("--preview", type=FILE, metavar="FILE", help="Write source and result side by side too (.mp4).")
@click.option(
    "--crf", type=click.IntRange(1, 51), default=18, show_default=True, help="x264's; lower is better."
)
@click.option(
    "--preset",
    type=click.Choice(
        ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
    ),
    default="medium",
    show_default=True,
    help="x264's; slower is smaller.",
)
@click.option("--max-seconds", type=click.FloatRange(0, min_open=True), default=3600.0, show_default=True)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=4096 * 2304, show_default=True, help="Of a frame."
)
@click.option(
    "--params", type=FILE, help="Params file of the dataset.  [default: ./params.yaml if it is there]"
)
@click.option("--landmarker", default="", metavar="FILE", help="MediaPipe's face_landmarker.task.")
@sampler_options
@device_options
def command(
    video: Path,
    audio: Path,
    run: Path,
    out: Path,
    fit: Fit,
    face: Choice,
    preview: Path | None,
    crf: int,
    preset: Preset,
    max_seconds: float,
    max_pixels: int,
    params: Path | None,
    landmarker: str,
    sampler: SamplerName | None,
    steps: int | None,
    guidance: float | None,
    reanchor_every: int | None,
    seed: int | None,
    device: str,
    precision: Precision,
    compile: bool | None,
) -> None:  # fmt: skip
    """Make the person in VIDEO say what is heard in AUDIO.

    Only the lower face is drawn anew. All else is the source's: size, frames and their times, and every
    pixel around, which is encoded once. The sound is copied as it is where the container can hold it.
    """
    from model.execution import Execution, select_device
    from model.recipe import ModelError
    from sampler.rollout import load_generator, override_params
    from stages.edit.run import edit
    from stages.engine.outcome import StageError
    from stages.media import weights

    try:
        sections = params_file.load(params)
        asked = sections.for_edit(
            fit=fit, face=face, crf=crf, preset=preset, max_seconds=max_seconds, max_pixels=max_pixels
        )
        model = weights.find(weights.LANDMARKER, landmarker or sections.landmarks.model)
        drawing = override_params(
            sections.sample,
            sampler=sampler,
            steps=steps,
            guidance=guidance,
            reanchor_every=reanchor_every,
            seed=seed,
        )
        machine = Execution(precision=precision, compile=compile)
        generator = load_generator(run, drawing, select_device(device), machine)
        with ProgressBars() as bars:
            edited = edit(
                video, audio, out, generator, model=model, params=asked, preview=preview, progress=bars
            )
    except (StageError, ModelError) as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{out}: " + "\n  ".join(edited.told()))
