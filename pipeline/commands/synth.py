"""`pipeline synth`: write a small synthetic corpus with known ground truth."""

import json
from pathlib import Path

import click


@click.command("synth")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write."
)
@click.option(
    "--style",
    type=click.Choice(["grid", "crema-d", "folder"]),
    default="grid",
    show_default=True,
    help="Corpus whose names, folders and formats are used.",
)
@click.option("--speakers", type=int, default=2, show_default=True, help="Number of speakers.")
@click.option(
    "--first-speaker",
    type=int,
    default=1,
    show_default=True,
    help="First speaker; with crema-d, 15 is actor 1015.",
)
@click.option("--clips", type=int, default=3, show_default=True, help="Clips per speaker.")
@click.option("--seconds", type=float, default=2.4, show_default=True, help="Length of a clip.")
@click.option(
    "--fps", help="Frame rate: 25, 29.97, 30000/1001, ... or variable.  [default: that of the style]"
)
@click.option(
    "--container",
    type=click.Choice(["mpg", "flv", "mp4", "mkv"]),
    help="[default: that of the style]",
)
@click.option("--offset-ms", type=float, default=0.0, show_default=True, help="Delay of the audio in ms.")
@click.option("--antiphase", is_flag=True, help="Stereo with an inverted right channel.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
def command(
    to: Path,
    style: str,
    speakers: int,
    first_speaker: int,
    clips: int,
    seconds: float,
    fps: str | None,
    container: str | None,
    offset_ms: float,
    antiphase: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write synthetic talking-head clips with known ground truth.

    A public-domain photograph talks in sync with synthetic speech. Each clip comes with
    <clip>.truth.json: the mouth opening and the time stamp of each frame, and the audio offset. Needs no
    network. The same options give the same bytes. Intact clips are not written again.
    """
    from pydantic import TypeAdapter, ValidationError

    from shards.params import describe_params_error
    from stages import synth

    options = {
        "style": style,
        "speakers": speakers,
        "first_speaker": first_speaker,
        "clips": clips,
        "seconds": seconds,
        "fps": fps,
        "container": container,
        "av_offset_ms": offset_ms,
        "antiphase": antiphase,
        "seed": seed,
    }
    try:
        params = TypeAdapter(synth.SynthParams).validate_python(options)
        synth_clips = synth.make_corpus(to, params)
    except ValidationError as err:
        raise click.ClickException(describe_params_error(err)) from err

    n_new = sum(clip.is_new for clip in synth_clips)
    if as_json:
        summary = {
            "to": str(to),
            "style": style,
            "clips": len(synth_clips),
            "new": n_new,
            "frames": sum(len(clip.truth.frames) for clip in synth_clips),
            "av_offset_ms": offset_ms,
            "paths": [clip.path.relative_to(to).as_posix() for clip in synth_clips],
        }
        click.echo(json.dumps(summary))
        return
    n_clips = len(synth_clips)
    click.echo(f"{n_clips} clips of {speakers} speakers in {to}, {n_new} new, {n_clips - n_new} unchanged")
    for clip in synth_clips:
        click.echo(f"  {clip.path.relative_to(to)}  {len(clip.truth.frames)} frames")
