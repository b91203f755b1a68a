"""`pipeline preview`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import FILE, add_endpoint_option

if TYPE_CHECKING:
    from shards.reader import Dataset

DEFAULT_CLIPS = 12


@dataclass(frozen=True, slots=True)
class _PreviewRequest:
    """The options of the command."""

    shards: str
    out: Path
    video: str | None
    clip_ids: Sequence[str]
    n_clips: int | None
    speaker: str | None
    split: str | None
    seed: int | None


@click.command("preview")
@click.argument("shards", metavar="DIR|URL")
@click.option("-o", "--out", type=FILE, required=True, help="Image (.png) or video (.mp4) to write.")
@click.option("--video", metavar="CLIP", help="Write this clip, or `any`, as a video.")
@click.option("--clip", "clip_ids", multiple=True, metavar="CLIP", help="A clip to show; may be repeated.")
@click.option(
    "--clips",
    "n_clips",
    type=click.IntRange(1, 200),
    help=f"How many clips to show, spread over speakers and splits.  [default: {DEFAULT_CLIPS}]",
)
@click.option("--speaker", help="Only clips of this speaker.")
@click.option("--split", help="Only clips of this split.")
@click.option("--seed", type=int, help="Random seed of the selection of clips.  [default: 0]")
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
    """Show what a dataset holds. From a URL, only the clips that are shown are read.

    Without --video: write a contact sheet. For each clip it has some of the frames with their mask boxes and,
    below, the mels with lines at the times of these frames.

    With --video: write a video of the clip's frames with their mask boxes, and a line that moves over the
    mels. The audio is made from the mels alone (by Griffin-Lim, so it sounds hollow): it is what the shards
    hold, and so is its synchrony with the frames.
    """
    request = _PreviewRequest(shards, out, video, clip_ids, n_clips, speaker, split, seed)
    _check_selection(request)
    _check_out(out, suffix=".png" if video is None else ".mp4")

    from shards.reader import open_dataset
    from shards.storage import open_storage

    dataset = open_dataset(open_storage(shards))
    message = _write_sheet(dataset, request) if video is None else _write_video(dataset, video, out)
    click.echo(message)


def _check_selection(request: _PreviewRequest) -> None:
    """Raise UsageError if options select the clips in more than one way."""
    if request.video is not None and request.clip_ids:
        raise click.UsageError("--video shows one clip, --clip is for sheets")
    filters: Mapping[str, object] = {
        "--clips": request.n_clips,
        "--speaker": request.speaker,
        "--split": request.split,
        "--seed": request.seed,
    }
    unused = [name for name, value in filters.items() if value is not None]
    if unused and (request.video is not None or request.clip_ids):
        raise click.UsageError(f"{', '.join(unused)}: the clips to show are named already")


def _check_out(out: Path, *, suffix: str) -> None:
    if out.suffix.lower() != suffix:
        kind = "contact sheet" if suffix == ".png" else "video"
        raise click.BadParameter(f"{out}: a {kind} is written as {suffix}", param_hint="--out")
    if not out.parent.is_dir():
        raise click.BadParameter(f"{out}: there is no folder {out.parent}", param_hint="--out")


def _write_video(dataset: Dataset, clip_id: str, out: Path) -> str:
    """Write the video of a clip; return the message to print."""
    from shards.schema import VIDEO_FPS
    from stages import preview

    if clip_id == "any" and clip_id not in dataset.clips:
        (clip_id,) = preview.spread_clips(dataset, 1, seed=0)
    n_frames = preview.write_video(dataset, clip_id, out)
    return f"{out}: {clip_id}, {n_frames} frames, {n_frames / VIDEO_FPS:.2f} s"


def _write_sheet(dataset: Dataset, request: _PreviewRequest) -> str:
    """Write a contact sheet; return the message to print."""
    from stages import preview

    if request.clip_ids:
        clip_ids = preview.select_clips(dataset, request.clip_ids)
    else:
        clip_ids = preview.spread_clips(
            dataset,
            request.n_clips or DEFAULT_CLIPS,
            seed=request.seed or 0,
            speaker=request.speaker,
            split=request.split,
        )
    width, height = preview.write_sheet(dataset, clip_ids, request.out)
    return f"{request.out}: {len(clip_ids)} of {len(dataset.clips)} clips, {width}x{height} px"
