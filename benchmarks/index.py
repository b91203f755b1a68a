"""Time and memory to write, open, split and order an index of a million clips.

    python benchmarks/index.py --clips 1000000

Clips of 40 to 400 frames in shards of 64, about the size of VoxCeleb2. All steps run in this process; memory
is the peak of the process so far, with Python and its libraries. The order of an epoch takes no memory and no
time to prepare: any batch of it is computed when it is needed.
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
import pyarrow as pa

from shards.index import (
    DATASET_NAME,
    HASHES,
    INDEX_NAME,
    INDEX_SCHEMA,
    LEDGER_NAME,
    MEMBERS,
    ShardEntry,
    write_index,
    write_manifest,
)
from shards.ledger import write_ledger
from shards.reader import open_dataset
from shards.resident import build_clip_table, split_held_out
from shards.rng import epoch_order
from shards.table import ROWS_AT_ONCE, PackedRows, Rows
from shards.windows import Windows

T = TypeVar("T")
PER_SHARD = 64
CLIP_BYTES = 2_000_000
BATCH, WINDOW = 1024, 32
BYTES = {"affine": 7328, "boxes": 1328, "frames": 1_500_000, "json": 1500, "mels": 307_328}


def make_shards(n_clips: int) -> Iterator[Rows]:
    """Yield the random rows of each shard, as a build has them; thousands of clips are generated at once."""
    rng = np.random.default_rng(0)
    for first in range(0, n_clips, ROWS_AT_ONCE):
        numbers = range(first, min(n_clips, first + ROWS_AT_ONCE))
        n = len(numbers)
        columns: dict[str, Any] = {
            "clip_id": [f"id{(number * 7919) % n_clips:07d}_{number % 97:05d}" for number in numbers],
            "split": ["train"] * n,
            "speaker": [f"id{number % 6112:05d}" for number in numbers],
            "frames": rng.integers(40, 400, n),
            "shard": [make_name(number // PER_SHARD) for number in numbers],
        }
        offset = (np.array(numbers) % PER_SHARD) * CLIP_BYTES
        for name in MEMBERS:
            columns[f"{name}_offset"], columns[f"{name}_size"] = offset, np.full(n, BYTES[name])
            columns[f"{name}_crc32"] = rng.integers(0, 2**32, n)
            offset = offset + BYTES[name] + 1024
        for name in HASHES:
            letters = rng.bytes(32 * n).hex()
            columns[name] = [letters[at : at + 64] for at in range(0, 64 * n, 64)]
        rows = Rows(pa.table(columns).cast(INDEX_SCHEMA))
        yield from (PackedRows(rows.table[at : at + PER_SHARD]) for at in range(0, n, PER_SHARD))


def make_name(number: int) -> str:
    return f"train-{number:05d}-0123456789ab.tar"


def measure(step: str, work: Callable[[], T]) -> T:
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{step:<44}{seconds:>8.2f} s{cpu_seconds:>8.2f} s of CPU{peak:>8.0f} MB peak so far", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--at", type=Path, help="write the dataset here; an existing one is only opened")
    n_clips = parser.parse_args().clips
    measure("Python and its libraries", lambda: None)
    with tempfile.TemporaryDirectory() as name:
        folder = parser.parse_args().at or Path(name)
        if not (folder / DATASET_NAME).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            measure(f"rows of {n_clips:,} clips generated", lambda: sum(map(len, make_shards(n_clips))))
            measure(
                "the same, and the index written",
                lambda: write_index(folder / INDEX_NAME, make_shards(n_clips)),
            )
            write_ledger(folder / LEDGER_NAME, [])
            n_shards = -(-n_clips // PER_SHARD)
            entries = (
                ShardEntry(make_name(k), "train", CLIP_BYTES * PER_SHARD, f"{k:064x}", PER_SHARD, 0)
                for k in range(n_shards)
            )
            measure(
                f"manifest of {n_shards:,} shards written",
                lambda: write_manifest(folder / DATASET_NAME, entries),
            )
            print(f"index.parquet {(folder / INDEX_NAME).stat().st_size / 1e6:.0f} MB")
        dataset = measure("dataset opened and checked", lambda: open_dataset(folder, hashes=False))
        ids = measure("ids of the train split", lambda: dataset.clips.ids_in_split("train"))
        trained, _ = measure("one in twenty held out", lambda: split_held_out(ids, 0.05, seed=0))
        table = measure("frames numbered", lambda: build_clip_table(dataset, trained))
        n = len(table)
        measure(
            f"a batch of {BATCH} out of {n:,} frames",
            lambda: table.find_clips(epoch_order(np.arange(n // 2, n // 2 + BATCH), n, seed=0)),
        )
        _, which = measure("shard of each clip", lambda: dataset.clips.locate_shards(trained))
        windows = measure(f"windows of {WINDOW} shards", lambda: Windows(table, which, WINDOW))
        measure(
            f"a batch of {BATCH} in windows",
            lambda: windows.epoch_order(np.arange(n // 2, n // 2 + BATCH), seed=0),
        )


if __name__ == "__main__":
    main()
