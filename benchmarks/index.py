"""An index of a million clips: written, opened, split and ordered; seconds and memory.

    python benchmarks/index.py --clips 1000000

Clips of 40 to 400 frames in shards of 64: about VoxCeleb2. Each step runs in this one process; memory is what
the process held at most, Python and its libraries included. The order of an epoch takes no memory and no time
to begin with: a batch is looked up anywhere in it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    ShardEntry,
    write_dataset,
    write_index,
)
from shards.ledger import write_ledger
from shards.loader import split_off, table_of
from shards.order import drawn
from shards.reader import open_dataset
from shards.windows import Windows

T = TypeVar("T")
PER_SHARD = 64
BATCH, WINDOW = 1024, 32
BYTES = {"affine": 7328, "boxes": 1328, "frames": 1_500_000, "json": 1500, "mels": 307_328}


def rows_of(n_clips: int) -> Iterator[dict[str, Any]]:
    """Index rows, one at a time, as a build has them."""
    rng = np.random.default_rng(0)
    frames = rng.integers(40, 400, n_clips)
    for number in range(n_clips):
        place, offset = number % PER_SHARD, 0
        row = {
            "clip_id": f"id{(number * 7919) % n_clips:07d}_{number % 97:05d}",
            "split": "train",
            "speaker": f"id{number % 6112:05d}",
            "frames": int(frames[number]),
            "shard": f"train-{number // PER_SHARD:05d}-0123456789ab.tar",
            "sha256": f"{number:064x}",
            "source_sha256": f"{number + 1:064x}",
        }
        for name in MEMBERS:
            row[f"{name}_offset"] = place * 2_000_000 + offset
            row[f"{name}_size"] = BYTES[name]
            row[f"{name}_crc32"] = (number * 2654435761 + offset) % 2**32
            offset += BYTES[name] + 1024
        yield row


def timed(what: str, work: Callable[[], T]) -> T:
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{what:<44}{seconds:>8.2f} s{cpu_seconds:>8.2f} s of CPU{peak:>8.0f} MB at most so far", flush=True
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--at", type=Path, help="keep the dataset here, and only open it if it is there")
    n_clips = parser.parse_args().clips
    timed("Python and its libraries", lambda: None)
    with tempfile.TemporaryDirectory() as name:
        folder = parser.parse_args().at or Path(name)
        if not (folder / DATASET_NAME).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            timed(
                f"index of {n_clips:,} clips written",
                lambda: write_index(folder / INDEX_NAME, rows_of(n_clips)),
            )
            write_ledger(folder / LEDGER_NAME, [])
            n_shards = -(-n_clips // PER_SHARD)
            entries = (
                ShardEntry(
                    f"train-{k:05d}-0123456789ab.tar",
                    "train",
                    2_000_000 * PER_SHARD,
                    f"{k:064x}",
                    PER_SHARD,
                    0,
                )
                for k in range(n_shards)
            )
            timed(
                f"manifest of {n_shards:,} shards written",
                lambda: write_dataset(folder / DATASET_NAME, entries),
            )
            print(f"index.parquet {(folder / INDEX_NAME).stat().st_size / 1e6:.0f} MB")
        dataset = timed("dataset opened and checked", lambda: open_dataset(folder))
        ids = timed("ids of the train split", lambda: dataset.clips.of_split("train"))
        trained, _ = timed("one in twenty held out", lambda: split_off(ids, 0.05, seed=0))
        table = timed("frames numbered", lambda: table_of(dataset, trained))
        n = len(table)
        timed(
            f"a batch of {BATCH} out of {n:,} frames",
            lambda: table.clip_of(drawn(np.arange(n // 2, n // 2 + BATCH), n, seed=0)),
        )
        _, shard_of = timed("shard of each clip", lambda: dataset.clips.shards_of(trained))
        windows = timed(f"windows of {WINDOW} shards", lambda: Windows(table, shard_of, WINDOW))
        timed(
            f"a batch of {BATCH} in windows", lambda: windows.drawn(np.arange(n // 2, n // 2 + BATCH), seed=0)
        )


if __name__ == "__main__":
    main()
