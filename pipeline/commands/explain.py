"""`pipeline explain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.options import add_endpoint_option


@click.command("explain")
@click.argument("shards", metavar="DIR|URL")
@click.argument("clip")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
@add_endpoint_option
def command(shards: str, clip: str, as_json: bool) -> None:
    """Print the result for CLIP (its id, path or file name): its last stage, and why it was dropped.

    DIR is a finished dataset, or the work folder of one that is being built.
    """
    from shards.errors import shorten, shorten_message
    from shards.index import LEDGER_NAME
    from shards.ledger import OK, find_rows, read_ledger
    from shards.reader import open_dataset
    from shards.storage import open_storage

    index: Mapping[str, Mapping[str, Any]] = {}
    unfinished = Path(shards, "clips.parquet")
    if unfinished.exists() and not Path(shards, LEDGER_NAME).exists():
        ledger = read_ledger(unfinished)
    else:
        dataset = open_dataset(open_storage(shards))
        ledger, index = dataset.ledger(), dataset.clips
    rows = find_rows(ledger, clip)
    if not rows:
        raise click.ClickException(
            f"{shorten(clip)} is in no ledger row of {shards}: no such file was in --raw"
        )
    for row in rows:
        entry = index.get(row["clip_id"]) if row["status"] == OK else None
        if as_json:
            click.echo(json.dumps(row | {"index": entry}))
        else:
            click.echo("\n".join(map(shorten_message, _describe_row(row, entry))))


def _describe_row(row: dict[str, Any], entry: Mapping[str, Any] | None) -> list[str]:
    """The lines that describe a row of the ledger and its entry in the index."""
    lines = [f"{row['clip_id']}  ({row['path']})"]
    if row["video_codec"]:
        fps, video_start, audio_start = (row[name] or 0 for name in ("fps", "video_start", "audio_start"))
        lines.append(
            f"  source  {row['video_codec']} {row['width']}x{row['height']}, {row['source_frames']} frames "
            f"at {fps:.2f} fps from {video_start:.3f} s; {row['audio_codec']} "
            f"{row['audio_rate']} Hz from {audio_start:.3f} s"
        )
    if row["sha256"]:
        lines.append(f"  sha256  {row['sha256']}")
    if row["expected"]:
        lines.append(f"  corpus  known problem: {row['expected']}")
    lines += [f"  note    {note}" for note in row["notes"]]
    if row["status"] != "ok":
        lines.append(f"  {row['status']} in {row['stage']}: {row['reason']}  [{row['code']}]")
    elif entry is None:
        lines.append(f"  ok up to {row['stage']}")
    else:
        lines.append(
            f"  kept    {entry['frames']} frames in {entry['shard']}, split {entry['split']}, "
            f"frames at byte {entry['frames_offset']}"
        )
    return lines
