"""`pipeline edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import params as params_file
from pipeline.options import (
    DEFAULT_NETWORK,
    FILE,
    MAX_ADAPT_MINUTES,
    NETWORK,
    NumberRange,
    device_options,
    landmarker_option,
    params_option,
    sampler_options,
)
from pipeline.progress import ProgressBars

if TYPE_CHECKING:
    from stages.edit.face_track import FaceChoice
    from stages.edit.run import EditParams, Preset
    from stages.edit.timing import Fit


def _parse_face(ctx: click.Context, param: click.Parameter, value: str) -> FaceChoice:
    """Parse largest, left, right, or a number from the left."""
    choices: dict[str, FaceChoice] = {"largest": "largest", "left": "left", "right": "right"}
    if value in choices:
        return choices[value]
    if value.isdecimal() and len(value) <= 2:
        return int(value)
    raise click.BadParameter(f"{value}: expected largest, left, right or a number")


@click.command("edit")
@click.option("--video", type=FILE, required=True, help="Input video: a person talking.")
@click.option("--audio", type=FILE, required=True, help="The new speech: an audio or a video file.")
@click.option(
    "--run",
    type=NETWORK,
    default=DEFAULT_NETWORK,
    show_default=True,
    help="A published model (`pipeline models` lists them), the folder of a run or checkpoint, or a file of "
    "`pipeline export`.",
)
@click.option("-o", "--out", type=FILE, required=True, help="Video to write: .mp4, .mov or .mkv.")
@click.option(
    "--adapt",
    is_flag=True,
    help="First train the model on the person in VIDEO and on their own speech in it: some minutes, and none "
    "for a second edit of the same video.",
)
@click.option(
    "--adapt-minutes",
    type=NumberRange(0, MAX_ADAPT_MINUTES, min_open=True),
    metavar="M",
    help="How long --adapt trains.  [default: as many steps as the preset own has]",
)
@click.option(
    "--keep-model",
    type=FILE,
    metavar="FILE",
    help="Also write the model of --adapt to this .safetensors file, for --run.",
)
@click.option(
    "--fit",
    type=click.Choice(["trim", "hold", "loop"]),
    default="trim",
    show_default=True,
    help="What to do when the lengths differ. trim: end with the shorter one. hold: the last frame stays, or "
    "the audio is silent, until the longer one ends. loop: the video plays forwards and backwards until the "
    "speech ends.",
)
@click.option(
    "--face",
    callback=_parse_face,
    default="largest",
    show_default=True,
    metavar="WHICH",
    help="Face to re-draw: largest, left, right, or a number from the left; 0 is the leftmost.",
)
@click.option(
    "--preview", type=FILE, metavar="FILE", help="Also write the source and the result side by side (.mp4)."
)
@click.option(
    "--crf",
    type=click.IntRange(1, 51),
    default=18,
    show_default=True,
    help="x264 quality; lower is better.",
)
@click.option(
    "--preset",
    type=click.Choice(
        ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
    ),
    default="medium",
    show_default=True,
    help="x264 preset; slower gives a smaller file.",
)
@click.option(
    "--max-seconds",
    type=NumberRange(0, 86_400, min_open=True),
    default=3600.0,
    show_default=True,
    help="Longest output.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=4096 * 2304, show_default=True, help="Largest frame."
)
@click.option("--any-face", is_flag=True, help="Draw also where the network does not fit the face.")
@params_option
@landmarker_option
@sampler_options
@device_options
def command(
    video: Path,
    audio: Path,
    run: Path,
    out: Path,
    adapt: bool,
    adapt_minutes: float | None,
    keep_model: Path | None,
    fit: Fit,
    face: FaceChoice,
    preview: Path | None,
    crf: int,
    preset: Preset,
    max_seconds: float,
    max_pixels: int,
    any_face: bool,
    params: Path | None,
    landmarker: str,
    sampling: dict[str, Any],
    device: str,
    execution: dict[str, Any],
) -> None:  # fmt: skip
    """Make the person in VIDEO say the speech in AUDIO.

    Only the lower face is re-drawn. Size, frames, their times and all other pixels are the source's; the
    video is encoded once. The audio is copied unchanged where the container can hold it. A face that the
    network does not fit is refused.
    """
    from model.checkpoint import find_run
    from model.execution import Execution, select_device
    from sampler.rollout import load_generator
    from stages.edit.face_check import MisfitError
    from stages.edit.run import check_paths, edit
    from stages.media import weights

    for name, value in (("--adapt-minutes", adapt_minutes), ("--keep-model", keep_model)):
        if value is not None and not adapt:
            raise click.UsageError(f"{name} needs --adapt")
    sections = params_file.load(params)
    model = weights.find(weights.LANDMARKER, landmarker or sections.landmarks.model)
    sample_params = sections.make_sample_params(run, **sampling)
    edit_params = sections.make_edit_params(
        find_run(run),
        fit=fit,
        face=face,
        crf=crf,
        preset=preset,
        max_seconds=max_seconds,
        max_pixels=max_pixels,
        any_face=any_face or adapt,  # after minutes of training an edit is not refused
    )
    if adapt:
        check_paths(video, audio, out, preview)  # now, not after minutes of training
        run = _adapt(video, run, edit_params, model, adapt_minutes, keep_model, device, execution)
    generator = load_generator(run, sample_params, select_device(device), Execution(**execution))
    try:
        with ProgressBars() as bars:
            result = edit(
                video,
                audio,
                out,
                generator,
                model=model,
                params=edit_params,
                preview=preview,
                progress=bars,
            )
    except MisfitError as err:
        advice = "--adapt trains it on this video, --any-face draws all the same"
        raise MisfitError(f"{err}; {advice}") from err
    click.echo(f"{out}: " + "\n  ".join(result.summary_lines()))


def _adapt(
    video: Path,
    run: Path,
    params: EditParams,
    landmarker: Path,
    minutes: float | None,
    keep: Path | None,
    device: str,
    execution: dict[str, Any],
) -> Path:
    """Train a network further on the video's own person, with progress bars; the file of the result."""
    from model.execution import Execution
    from model.recipe import build_recipe
    from model.start import find_start
    from stages.adapt.run import AdaptRequest, adapt

    start = find_start(run)
    request = AdaptRequest(
        video=video,
        start=start,
        recipe=build_recipe("own", start=start.recipe),
        params=params,
        landmarker=landmarker,
        minutes=minutes,
        keep=keep,
        device=device,
        execution=Execution(**execution),
    )
    with ProgressBars() as bars:
        result = adapt(request, bars, lambda estimate: click.echo(estimate.describe(), err=True))
    for line in result.summary_lines():
        click.echo(line)
    return result.path
