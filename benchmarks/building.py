"""Measures what the build command itself does for a million clips, without the clips and the workers.

    python benchmarks/building.py --clips 1000000

Each line is one step (ledger, parts, receipts, scheduling) in a new process: its seconds, the bytes that it
writes, and the peak memory of that process. The rows are synthetic, of the size of VoxCeleb2's.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.bucket_build import BuiltPart
from pipeline.runner import DaskMapper
from shards.index import MEMBERS, ShardEntry, make_shard_rows
from shards.ledger import SCHEMA, read_ledger, write_ledger
from shards.table import Rows
from stages.engine.cache import digest
from stages.engine.parts import PartParams, plan_parts
from stages.engine.stage import Work
from stages.shard import PackedShard, ShardParams, finish_dataset

MEAN_FRAMES = 220


def make_rows(n_clips: int) -> Iterator[dict[str, Any]]:
    """Rows of a ledger, as the first stage writes them."""
    for number in range(n_clips):
        speaker = f"id{number // 180:05d}"
        name = f"{speaker}_{number // 9:07d}_{number % 9:05d}"
        yield {
            "clip_id": name, "corpus": "folder", "speaker": speaker, "sentence": None, "emotion": None,
            "level": None, "split": "test" if number % 20 == 0 else "train",
            "path": name.replace("_", "/") + ".mp4", "bytes": 300_000 + number, "sha256": digest(number),
            "video_codec": "h264", "width": 224, "height": 224,
            "source_frames": MEAN_FRAMES, "fps": 25.0, "video_start": 0.0, "video_seconds": MEAN_FRAMES / 25,
            "frames": MEAN_FRAMES, "audio_codec": "aac", "audio_rate": 16000, "audio_channels": 1,
            "audio_start": 0.0, "audio_seconds": MEAN_FRAMES / 25, "expected": None, "notes": [],
            "stage": "clips", "status": "ok", "code": "", "reason": "",
        }  # fmt: skip


def run_write_ledger(folder: Path, n_clips: int) -> int:
    write_ledger(folder / "ledger.parquet", make_rows(n_clips))
    return (folder / "ledger.parquet").stat().st_size


def run_read_ledger(folder: Path, n_clips: int) -> int:
    assert len(read_ledger(folder / "ledger.parquet")) == n_clips
    return 0


def run_plan_parts(folder: Path, n_clips: int) -> int:
    """Read the ledger, plan the parts and compute the key of each part's result, as every run does."""
    parts = plan_parts(read_ledger(folder / "ledger.parquet"), PartParams())
    assert len({digest(part.name, list(part.rows)) for part in parts}) == len(parts)
    return 0


def run_finish_dataset(folder: Path, n_clips: int) -> int:
    """Make, read and hold a receipt for every part, then write the dataset, as at the end of a build."""
    work = Work("folder", folder, folder, folder / "out", folder)
    work.out.mkdir()
    built_parts, n_bytes = [], 0
    for part in plan_parts(read_ledger(folder / "ledger.parquet"), PartParams()):
        entry = ShardEntry(f"{part.name}-0123456789ab.tar", part.split, 1, digest(1), len(part.rows), 1)
        index = make_shard_rows(entry.name, map(make_index_row, part.rows))
        receipt = json.dumps(BuiltPart(PackedShard(entry, index), part.rows).to_json())
        built_parts.append(BuiltPart.from_json(json.loads(receipt), "receipt"))
        n_bytes += len(receipt)
    ledger = Rows.concatenate((built.ledger for built in built_parts), SCHEMA)
    write_ledger(work.ledger, ledger)
    shards = [built.packed for built in built_parts if built.packed]
    dataset_params = {"align": {"size": 128}, "mels": {"n_mels": 80}}
    finish_dataset(work, ShardParams(), dataset_params, shards, ledger)
    return n_bytes


def make_index_row(row: dict[str, Any]) -> dict[str, Any]:
    """A clip's row of the index."""
    byte_ranges = {
        f"{member}_{column}": 12345678 for member in MEMBERS for column in ("offset", "size", "crc32")
    }
    labels = {name: row[name] for name in ("clip_id", "split", "speaker", "frames", "sha256")}
    return byte_ranges | labels | {"source_sha256": row["sha256"]}


def return_item(item: int) -> int:
    return item


def run_schedule_parts(folder: Path, n_clips: int) -> int:
    """Run one task per part that does nothing, through Dask and back."""
    n_parts = 2 ** (n_clips // 64 - 1).bit_length()
    with DaskMapper(2, None, quiet=True) as mapper:
        assert sum(1 for _ in mapper(return_item, range(n_parts), label="")) == n_parts
    return 0


STEPS: dict[str, Callable[[Path, int], int]] = {
    "import the libraries only": lambda folder, n_clips: 0,
    "write the ledger": run_write_ledger,
    "read the ledger": run_read_ledger,
    "read the ledger, plan the parts, compute their keys": run_plan_parts,
    "plan the parts, make and read their receipts, write the dataset": run_finish_dataset,
    "schedule all parts": run_schedule_parts,
}


def measure_step(step: str, folder: Path, n_clips: int) -> tuple[float, int, float]:
    """Seconds, bytes written, and peak memory of this process in MB."""
    start = time.perf_counter()
    n_bytes = STEPS[step](folder, n_clips)
    seconds = time.perf_counter() - start
    return seconds, n_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_000_000, help="number of clips")
    n_clips = parser.parse_args().clips
    print(f"| {n_clips} clips | s | MB | peak MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                seconds, n_bytes, peak = pool.submit(measure_step, step, Path(folder), n_clips).result()
            print(f"| {step} | {seconds:.1f} | {n_bytes / 1e6:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
