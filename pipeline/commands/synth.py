"""`pipeline synth`: make a small corpus whose truth is known."""

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
    help="Whose names, layout and formats to follow.",
)
@click.option("--speakers", type=int, default=2, show_default=True)
@click.option("--first-speaker", type=int, default=1, show_default=True, help="15: actor 1015.")
@click.option("--clips", type=int, default=3, show_default=True, help="Clips per speaker.")
@click.option("--seconds", type=float, default=2.4, show_default=True, help="Length of a clip.")
@click.option("--fps", help="25, 29.97, 30000/1001, ... or variable.  [default: the style's]")
@click.option(
    "--container",
    type=click.Choice(["mpg", "flv", "mp4", "mkv"]),
    help="[default: the style's]",
)
@click.option("--offset-ms", type=float, default=0.0, show_default=True, help="How late the sound comes.")
@click.option("--antiphase", is_flag=True, help="Stereo whose right channel is minus the left.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a summary for machines.")
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
    """Make talking-head clips whose truth is known.

    A public-domain photograph talks, in step with made speech. Beside each clip lies
    <clip>.truth.json: how open the mouth is in each frame, each frame's time stamp, how late the
    sound comes. Needs no network. The same options give the same bytes; run again, it keeps what
    is there.
    """
    from pydantic import TypeAdapter, ValidationError

    from stages import synth

    asked = {
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
        params = TypeAdapter(synth.SynthParams).validate_python(asked)
        made = synth.make_corpus(to, params)
    except ValidationError as err:
        wrong = (f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in err.errors())
        raise click.ClickException("; ".join(wrong)) from err
    except (synth.SynthError, OSError) as err:
        raise click.ClickException(str(err)) from err

    n_new = sum(clip.is_new for clip in made)
    if as_json:
        summary = {
            "to": str(to),
            "style": style,
            "clips": len(made),
            "new": n_new,
            "frames": sum(len(clip.truth.frames) for clip in made),
            "av_offset_ms": offset_ms,
            "paths": [clip.path.relative_to(to).as_posix() for clip in made],
        }
        click.echo(json.dumps(summary))
        return
    click.echo(f"{len(made)} clips of {speakers} speakers in {to}, {n_new} new, {len(made) - n_new} kept")
    for clip in made:
        click.echo(f"  {clip.path.relative_to(to)}  {len(clip.truth.frames)} frames")
