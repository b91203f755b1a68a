"""`pipeline preview`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.options import FILE, add_endpoint_option

CLIPS_SHOWN = 12


@click.command("preview")
@click.argument("shards", metavar="DIR|URL")
@click.option("-o", "--out", type=FILE, required=True, help="Picture (.png) or video (.mp4) to write.")
@click.option("--video", metavar="CLIP", help="Write this clip, or `any`, as a video.")
@click.option("--clip", "clip_ids", multiple=True, metavar="CLIP", help="A clip to show; may be repeated.")
@click.option(
    "--clips",
    "n_clips",
    type=click.IntRange(1, 200),
    help=f"How many clips to show, spread over speakers and splits.  [default: {CLIPS_SHOWN}]",
)
@click.option("--speaker", help="Only clips of this speaker.")
@click.option("--split", help="Only clips of this split.")
@click.option("--seed", type=int, help="Another one shows other clips.  [default: 0]")
@add_endpoint_option
def command(
    shards: str,
    out: Path,
    video: str | None,
    clip_ids: tuple[str, ...],
    n_clips: int | None,
    speaker: str | None,
    split: str | None,
    seed: int | None,
) -> None:  # fmt: skip
    """See what a dataset holds. Of one at a URL only the clips that are shown are read.

    Without --video: a contact sheet. For each clip some of its frames with their mask boxes, and its
    mels below them, with lines where those frames lie in time.

    With --video: the clip's frames with their boxes, and a line that runs over its mels. The sound is
    made from these mels alone (Griffin-Lim, so it is hollow): what is heard is what the shards hold,
    and its sync is theirs.
    """
    draws = {"--clips": n_clips, "--speaker": speaker, "--split": split, "--seed": seed}
    idle = [name for name, value in draws.items() if value is not None]
    if video is not None and clip_ids:
        raise click.UsageError("--video shows one clip, --clip is for sheets")
    if idle and (video is not None or clip_ids):
        raise click.UsageError(f"{', '.join(idle)}: the clips to show are named already")
    suffix = ".png" if video is None else ".mp4"
    if out.suffix.lower() != suffix:
        kind = "a contact sheet is" if video is None else "a video is"
        raise click.BadParameter(f"{out}: {kind} written as {suffix}", param_hint="--out")
    if not out.parent.is_dir():
        raise click.BadParameter(f"{out}: there is no folder {out.parent}", param_hint="--out")

    from shards.reader import open_dataset
    from shards.schema import VIDEO_FPS, ShardError
    from shards.storage import open_storage
    from stages import preview
    from stages.engine.outcome import StageError

    try:
        dataset = open_dataset(open_storage(shards))
        if video is not None:
            if video == "any" and video not in dataset.clips:
                (video,) = preview.clips_spread(dataset, 1, seed=0)
            n_frames = preview.write_video(dataset, video, out)
            click.echo(f"{out}: {video}, {n_frames} frames, {n_frames / VIDEO_FPS:.2f} s")
            return
        if clip_ids:
            shown = preview.clips_named(dataset, clip_ids)
        else:
            shown = preview.clips_spread(
                dataset, n_clips or CLIPS_SHOWN, seed=seed or 0, speaker=speaker, split=split
            )
        width, height = preview.write_sheet(dataset, shown, out)
    except (ShardError, StageError) as err:
        raise click.ClickException(str(err)) from err
    except OSError as err:
        raise click.ClickException(f"{out}: cannot be written ({err.strerror or err})") from err
    click.echo(f"{out}: {len(shown)} of {len(dataset.clips)} clips, {width}x{height} px")
