"""`pipeline explain`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.options import add_endpoint_option, params_option

if TYPE_CHECKING:
    from shards.spans import FileSpans
    from shards.table import Row, Rows


@click.command("explain")
@click.argument("shards", metavar="DIR|URL")
@click.argument("clip", required=False)
@click.option(
    "--thresholds",
    "is_of_thresholds",
    is_flag=True,
    help="Instead, print how many clips each of cut.thresholds drops, at its limit in the params file and at "
    "others.",
)
@params_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row of the ledger.")
@add_endpoint_option
def command(
    shards: str, clip: str | None, is_of_thresholds: bool, params: Path | None, as_json: bool
) -> None:
    """Print the result for CLIP (its id, path or file name): its last stage, and why it was dropped.

    DIR is a finished dataset, or the work folder of one that is being built. Of a file that was cut into
    clips, print what became of every second; with --thresholds, what each limit of cut.thresholds costs.
    """
    if clip is None and not is_of_thresholds:
        raise click.UsageError("Missing argument 'CLIP', or '--thresholds'.")
    if clip is not None and is_of_thresholds:
        raise click.UsageError("--thresholds is about all clips: leave out CLIP")

    from shards.errors import shorten, shorten_message
    from shards.index import LEDGER_NAME
    from shards.ledger import OK, find_rows, has_spans, read_ledger
    from shards.reader import open_dataset
    from shards.spans import group_spans
    from shards.storage import open_storage, strip_address
    from shards.table import Rows

    index: Mapping[str, Mapping[str, Any]] = {}
    unfinished = Path(shards, "clips.parquet")
    if unfinished.exists() and not Path(shards, LEDGER_NAME).exists():
        ledger = read_ledger(unfinished)
    else:
        dataset = open_dataset(open_storage(shards))
        ledger, index = dataset.ledger(), dataset.clips
    if clip is None:
        _print_costs(ledger, shards, params, as_json=as_json)
        return
    rows = find_rows(ledger, clip)
    if not rows:
        raise click.ClickException(
            f"{shorten(clip)} is in no ledger row of {strip_address(shards)}: no such file was in --raw"
        )
    if has_spans(ledger) and not as_json and all(row["clip_id"] != clip for row in rows):
        for file in group_spans(Rows.from_rows(rows, ledger.table.schema)):
            click.echo("\n".join(map(shorten_message, _describe_file(file))))
        return
    for row in rows:
        entry = index.get(row["clip_id"]) if row["status"] == OK else None
        if as_json:
            click.echo(json.dumps(row | {"index": entry}))
        else:
            click.echo("\n".join(map(shorten_message, _describe_row(row, entry))))


def _print_costs(ledger: Rows, shards: str, params_path: Path | None, *, as_json: bool) -> None:
    """What each threshold costs."""
    from pipeline import params as params_file
    from pipeline.threshold_table import dump_costs, format_costs
    from shards.ledger import has_spans
    from shards.storage import strip_address
    from stages.cut.thresholds import count_costs

    if not has_spans(ledger):
        raise click.ClickException(
            f"{strip_address(shards)}: its files were not cut into clips, so it has no thresholds"
        )
    table = count_costs(ledger, params_file.load(params_path).cut)
    click.echo(json.dumps(dump_costs(table)) if as_json else "\n".join(format_costs(table)))


def _describe_file(file: FileSpans) -> Iterator[str]:
    """The lines that describe a file of a dataset whose files were cut."""
    from pipeline.timeline import format_time, format_timeline

    if file.is_whole:
        yield from _describe_row(file.rows[0], None)
        return
    yield f"{file.path}  ({len(file.rows)} spans, {format_time(file.seconds)})"
    yield from _describe_source(file.rows[0])
    yield from format_timeline(file)


def _describe_row(row: Row, entry: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines that describe a row of the ledger and its entry in the index."""
    from pipeline.timeline import describe_span

    yield f"{row['clip_id']}  ({row['path']})"
    yield from _describe_source(row)
    if row.get("start_seconds") is not None:
        yield from (f"  {line}" for line in describe_span(row))
    if row["expected"]:
        yield f"  corpus  known problem: {row['expected']}"
    yield from (f"  note    {note}" for note in row["notes"])
    if row["status"] != "ok":
        yield f"  {row['status']} in {row['stage']}: {row['reason']}  [{row['code']}]"
    elif entry is None:
        yield f"  ok up to {row['stage']}"
    else:
        yield (
            f"  kept    {entry['frames']} frames in {entry['shard']}, split {entry['split']}, "
            f"frames at byte {entry['frames_offset']}"
        )


def _describe_source(row: Row) -> Iterator[str]:
    """What the file of a row is."""
    if row["video_codec"]:
        fps, video_start, audio_start = (row[name] or 0 for name in ("fps", "video_start", "audio_start"))
        yield (
            f"  source  {row['video_codec']} {row['width']}x{row['height']}, {row['source_frames']} frames "
            f"at {fps:.2f} fps from {video_start:.3f} s; {row['audio_codec']} "
            f"{row['audio_rate']} Hz from {audio_start:.3f} s"
        )
    if row["sha256"]:
        yield f"  sha256  {row['sha256']}"
