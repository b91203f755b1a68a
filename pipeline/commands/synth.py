"""`pipeline synth`: write a small synthetic corpus with known ground truth."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.options import FOLDER

# Options that only films have, or only clips: with the other kind they are refused.
FILM_OPTIONS = {"source": "--from", "films": "--films", "scenes": "--scene"}
CLIP_OPTIONS = {
    "speakers": "--speakers", "first_speaker": "--first-speaker", "clips": "--clips", "fps": "--fps",
    "container": "--container", "offset_ms": "--offset-ms", "antiphase": "--antiphase",
}  # fmt: skip


@click.command("synth")
@click.option("--to", type=FOLDER, required=True, help="Folder to write.")
@click.option(
    "--style",
    type=click.Choice(["grid", "crema-d", "folder", "film"]),
    default="grid",
    show_default=True,
    help="Corpus whose names, folders and formats are used; film: films made of the clips in --from.",
)
@click.option(
    "--from",
    "source",
    type=FOLDER,
    help="With film: folder of clips, a folder in it for each person.",
)
@click.option("--films", type=int, default=1, show_default=True, help="With film: number of films.")
@click.option(
    "--scene",
    "scenes",
    multiple=True,
    metavar="KIND",
    help="With film: a kind of scene: speaker, lag, noise, punch-in, two-faces, voice-over, no-face, music "
    "or black; may be repeated.  [default: all]",
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
@click.option("--seconds", type=float, help="Length of a clip, or of a film.  [default: 2.4; with film: 60]")
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
@click.pass_context
def command(
    context: click.Context,
    to: Path,
    style: str,
    source: Path | None,
    films: int,
    scenes: tuple[str, ...],
    speakers: int,
    first_speaker: int,
    clips: int,
    seconds: float | None,
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

    With --style film, films are made of the clips of talking people in --from, which may be real ones: one
    person speaks, one of two, or none whose face is seen, with sound in time or late, noise, music and black.
    <film>.truth.json says for each scene who is seen where, who speaks, and by how much the sound is late.
    """
    inapplicable = CLIP_OPTIONS if style == "film" else FILM_OPTIONS
    for name, option in inapplicable.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.ClickException(f"{option} does not go with --style {style}")
    if style == "film":
        if source is None:
            raise click.ClickException(
                "--style film needs --from: the folder of clips that films are made of"
            )
        film_options: dict[str, Any] = {"films": films, "seed": seed}
        if scenes:
            film_options["scenes"] = scenes
        if seconds is not None:
            film_options["seconds"] = seconds
        _make_films(to, source, film_options, as_json)
        return
    from pydantic import TypeAdapter, ValidationError

    from shards.params import describe_mismatch
    from stages import synth

    options = {
        "style": style,
        "speakers": speakers,
        "first_speaker": first_speaker,
        "clips": clips,
        "seconds": 2.4 if seconds is None else seconds,
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
        raise click.ClickException(describe_mismatch(err)) from err

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


def _make_films(to: Path, source: Path, options: dict[str, Any], as_json: bool) -> None:
    from pydantic import TypeAdapter, ValidationError

    from shards.params import describe_mismatch
    from stages.synth.film import make_films
    from stages.synth.film_spec import FilmParams

    try:
        films = make_films(to, source, TypeAdapter(FilmParams).validate_python(options))
    except ValidationError as err:
        raise click.ClickException(describe_mismatch(err)) from err
    if as_json:
        paths = [path.relative_to(to).as_posix() for path, _ in films]
        frames = sum(truth.n_frames for _, truth in films)
        click.echo(json.dumps({"to": str(to), "style": "film", "frames": frames, "paths": paths}))
        return
    for path, truth in films:
        click.echo(f"{path}  {truth.n_frames} frames, {len(truth.scenes)} scenes, {len(truth.shots)} shots")
