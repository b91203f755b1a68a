"""`pipeline explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.options import FOLDER


@click.command("explain")
@click.argument("shards", type=FOLDER)
@click.argument("clip")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def command(shards: Path, clip: str, as_json: bool) -> None:
    """What became of CLIP (its id, path or file name), at which stage, and why.

    SHARDS is a finished dataset, or the work folder of one that is being built.
    """
    from shards.index import INDEX_NAME, LEDGER_NAME, read_index
    from shards.ledger import OK, read_ledger, rows_of
    from shards.schema import ShardError

    finished = (shards / LEDGER_NAME).is_file()
    ledger = shards / (LEDGER_NAME if finished else "clips.parquet")
    try:
        rows = rows_of(read_ledger(ledger), clip)
        index = {row["clip_id"]: row for row in read_index(shards / INDEX_NAME)} if finished else {}
    except ShardError as err:
        raise click.ClickException(str(err)) from err
    if not rows:
        raise click.ClickException(f"{clip!r} is in no row of {ledger}: no such file was found in --raw")
    for row in rows:
        place = index.get(row["clip_id"]) if row["status"] == OK else None
        if as_json:
            click.echo(json.dumps(row | {"index": place}))
        else:
            click.echo("\n".join(_told(row, place)))


def _told(row: dict[str, Any], place: dict[str, Any] | None) -> list[str]:
    """The row in words."""
    lines = [f"{row['clip_id']}  ({row['path']})"]
    if row["video_codec"]:
        lines.append(
            f"  source  {row['video_codec']} {row['width']}x{row['height']}, {row['source_frames']} frames "
            f"at {row['fps']:.2f} fps from {row['video_start']:.3f} s; {row['audio_codec']} "
            f"{row['audio_rate']} Hz from {row['audio_start']:.3f} s"
        )
    if row["sha256"]:
        lines.append(f"  sha256  {row['sha256']}")
    if row["expected"]:
        lines.append(f"  corpus  says of it: {row['expected']}")
    lines += [f"  note    {note}" for note in row["notes"]]
    if row["status"] != "ok":
        lines.append(f"  {row['status']} in {row['stage']}: {row['reason']}  [{row['code']}]")
    elif place is None:
        lines.append(f"  ok up to {row['stage']}")
    else:
        lines.append(
            f"  kept    {place['frames']} frames in {place['shard']}, split {place['split']}, "
            f"frames at byte {place['frames_offset']}"
        )
    return lines
