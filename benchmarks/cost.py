"""Estimates what it costs to build and to read a corpus of a given size. It measures nothing.

    python benchmarks/cost.py --clips 1000000 --frames 220e6 --workers 1000

Every input is an option. Measured inputs are the defaults (docs/performance.md, docs/scale.md); docs/scale.md
has the dates and sources of the prices. A worker is one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Inputs:
    """Inputs of the estimate. Comments name the source of a default."""

    clips: float = 1e6
    frames: float = 220e6  # VoxCeleb2: 2,442 h at 25 fps
    raw_bytes_per_clip: float = 250e3  # assumed: 224 px H.264 of 9 s
    ms_per_frame: float = 11.82  # measured: raw to shards, GRID, one core
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
    command_seconds: float = 60  # measured, docs/scale.md: write tables, plan parts, read receipts
    gpus: float = 64  # in training
    gpu_frames_per_second: float = 1000  # each; docs/performance.md expects it of an H100, it is not measured
    nodes: float = 8


def estimate_costs(inputs: Inputs) -> list[tuple[str, str]]:
    """Name and value of each result."""
    core_hours = inputs.frames * inputs.ms_per_frame / 3.6e6
    hours = core_hours / inputs.workers
    parts = inputs.clips / inputs.clips_per_part
    probe_tasks = inputs.clips / 64
    raw_gb = inputs.clips * inputs.raw_bytes_per_clip / 1e9
    shards_gb = inputs.frames * inputs.shard_bytes_per_frame / 1e9
    receipts_gb = 2 * inputs.clips * inputs.receipt_bytes_per_clip / 1e9
    puts = 2 * parts + probe_tasks + inputs.clips / 1000  # shards, receipts; a LIST costs as much as a PUT
    gets = 2 * inputs.clips
    requests_usd = puts * inputs.put_usd + gets * inputs.get_usd
    storage_usd = (raw_gb + shards_gb) * inputs.storage_gb_month_usd
    seconds = hours * 3600
    node_bytes_per_second = (
        inputs.gpus / inputs.nodes * inputs.gpu_frames_per_second * inputs.shard_bytes_per_frame
    )
    epoch_hours = inputs.frames / (inputs.gpus * inputs.gpu_frames_per_second) / 3600
    return [
        ("core-hours", f"{core_hours:,.0f}"),
        (f"hours with {inputs.workers:,.0f} workers", f"{hours:.2f}"),
        ("raw clips", f"{raw_gb:,.0f} GB"),
        ("shards", f"{shards_gb:,.0f} GB in {parts:,.0f} files of {shards_gb / parts * 1e3:,.0f} MB"),
        ("receipts", f"{receipts_gb:,.1f} GB"),
        ("GET requests", f"{gets:,.0f}"),
        ("PUT and LIST requests", f"{puts:,.0f}"),
        ("cores, on demand", f"{core_hours * inputs.core_hour_usd:,.2f} USD"),
        ("cores, spot", f"{core_hours * inputs.spot_core_hour_usd:,.2f} USD"),
        ("requests", f"{requests_usd:,.2f} USD"),
        ("storage of raw clips and shards per month", f"{storage_usd:,.2f} USD"),
        ("egress of all shards, once", f"{shards_gb * inputs.egress_gb_usd:,.2f} USD"),
        ("into all workers", f"{2 * raw_gb / seconds * 8:,.2f} Gbit/s, {gets / seconds:,.0f} GET/s"),
        ("out of all workers", f"{shards_gb / seconds * 8:,.1f} Gbit/s"),
        ("tasks",
         f"{(parts + probe_tasks) / seconds:.1f}/s; the scheduler handles {1 / inputs.task_seconds:,.0f}/s"),
        ("workers at which the scheduler is saturated",
         f"{core_hours * 3600 / ((parts + probe_tasks) * inputs.task_seconds):,.0f}"),
        ("workers at which the command itself takes as long as they do",
         f"{core_hours * 3600 / inputs.command_seconds:,.0f}"),
        (f"an epoch on {inputs.gpus:,.0f} GPUs", f"{epoch_hours:.2f} h"),
        ("into each node, without a cache",
         f"{node_bytes_per_second * 8 / 1e9:.2f} Gbit/s"),
        ("GET requests per epoch, one per shard and node", f"{parts * inputs.nodes:,.0f}, "
         f"{parts * inputs.nodes * inputs.get_usd:.2f} USD"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for item in fields(Inputs):
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=float, default=item.default)
    inputs = Inputs(**vars(parser.parse_args()))
    print("| input | |\n| --- | --- |")
    for item in fields(Inputs):
        print(f"| {item.name} | {getattr(inputs, item.name):,g} |")
    print("\n| result | |\n| --- | --- |")
    for name, value in estimate_costs(inputs):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
