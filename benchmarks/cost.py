"""What a corpus of a given size costs to build and to read: every input is an option, every line follows.

    python benchmarks/cost.py --clips 1000000 --frames 220e6 --workers 1000

Inputs that were measured have those figures as defaults (docs/performance.md, docs/scale.md); prices stand
in docs/scale.md with their dates and sources. A worker is one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Inputs:
    """Name, default, and in the comment where it is from."""

    clips: float = 1e6
    frames: float = 220e6  # VoxCeleb2: 2,442 h at 25 fps
    raw_bytes_per_clip: float = 250e3  # supposed: 224 px H.264 of 9 s
    ms_per_frame: float = 17.07  # measured: whole road, GRID, one core
    shard_bytes_per_frame: float = 23_185  # measured: GRID, lossless WebP; 11,090 with JPEG
    clips_per_part: float = 61  # a million clips in 16,384 parts
    receipt_bytes_per_clip: float = 1300  # measured: benchmarks/building.py
    workers: float = 1000
    core_hour_usd: float = 0.0425
    spot_core_hour_usd: float = 0.021
    storage_gb_month_usd: float = 0.023
    put_usd: float = 5e-6
    get_usd: float = 0.4e-6
    egress_gb_usd: float = 0.09
    task_seconds: float = 0.0059  # measured: benchmarks/building.py, a task through Dask and back
    command_seconds: float = 60  # measured, docs/scale.md: tables written, parts dealt, receipts read
    gpus: float = 64  # that train
    gpu_frames_per_second: float = 1000  # each, as docs/performance.md expects of an H100
    nodes: float = 8


def table(given: Inputs) -> list[tuple[str, str]]:
    """What follows, by lines."""
    core_hours = given.frames * given.ms_per_frame / 3.6e6
    hours = core_hours / given.workers
    parts = given.clips / given.clips_per_part
    hands = given.clips / 64
    raw_gb = given.clips * given.raw_bytes_per_clip / 1e9
    shards_gb = given.frames * given.shard_bytes_per_frame / 1e9
    receipts_gb = 2 * given.clips * given.receipt_bytes_per_clip / 1e9
    puts = 2 * parts + hands + given.clips / 1000  # shards, receipts; lists cost as much as puts
    gets = 2 * given.clips
    requests_usd = puts * given.put_usd + gets * given.get_usd
    stored_usd = (raw_gb + shards_gb) * given.storage_gb_month_usd
    seconds = hours * 3600
    streamed = given.gpus / given.nodes * given.gpu_frames_per_second * given.shard_bytes_per_frame
    epoch_hours = given.frames / (given.gpus * given.gpu_frames_per_second) / 3600
    return [
        ("core-hours", f"{core_hours:,.0f}"),
        (f"hours with {given.workers:,.0f} workers", f"{hours:.2f}"),
        ("raw clips", f"{raw_gb:,.0f} GB"),
        ("shards", f"{shards_gb:,.0f} GB in {parts:,.0f} files of {shards_gb / parts * 1e3:,.0f} MB"),
        ("receipts", f"{receipts_gb:,.1f} GB"),
        ("GET requests", f"{gets:,.0f}"),
        ("PUT and LIST requests", f"{puts:,.0f}"),
        ("cores, on demand", f"{core_hours * given.core_hour_usd:,.2f} USD"),
        ("cores, spot", f"{core_hours * given.spot_core_hour_usd:,.2f} USD"),
        ("requests", f"{requests_usd:,.2f} USD"),
        ("storage of raw and shards, a month", f"{stored_usd:,.2f} USD"),
        ("the same, all of it read once from outside", f"{shards_gb * given.egress_gb_usd:,.2f} USD"),
        ("into workers", f"{2 * raw_gb / seconds * 8:,.2f} Gbit/s, {gets / seconds:,.0f} GET/s"),
        ("out of workers", f"{shards_gb / seconds * 8:,.1f} Gbit/s"),
        ("tasks", f"{(parts + hands) / seconds:.1f}/s; the scheduler does {1 / given.task_seconds:,.0f}/s"),
        ("workers at which the scheduler is the limit",
         f"{core_hours * 3600 / ((parts + hands) * given.task_seconds):,.0f}"),
        ("workers at which the command's own work takes as long as theirs",
         f"{core_hours * 3600 / given.command_seconds:,.0f}"),
        (f"an epoch on {given.gpus:,.0f} GPUs", f"{epoch_hours:.2f} h"),
        ("into each node, where no cache holds it",
         f"{streamed * 8 / 1e9:.2f} Gbit/s"),
        ("GETs of an epoch, one a shard and node", f"{parts * given.nodes:,.0f}, "
         f"{parts * given.nodes * given.get_usd:.2f} USD"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for item in fields(Inputs):
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=float, default=item.default)
    given = Inputs(**vars(parser.parse_args()))
    print("| given | |\n| --- | --- |")
    for item in fields(Inputs):
        print(f"| {item.name} | {getattr(given, item.name):,g} |")
    print("\n| follows | |\n| --- | --- |")
    for name, value in table(given):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
