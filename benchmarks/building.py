"""Building at the size of a million clips, without the clips: the ledger, the parts, receipts, scheduling.

    python benchmarks/building.py --clips 1000000

Each line is one thing that the command itself does, apart from the workers' frames: seconds, bytes on disk,
and the most memory that the process that did it ever held. Rows are made up, of VoxCeleb2's size.
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

from pipeline.bucket_build import Built
from pipeline.runner import DaskMapper
from shards.index import MEMBERS, ShardEntry, make_shard_rows
from shards.ledger import SCHEMA, read_ledger, write_ledger
from shards.table import Rows
from stages.engine.cache import digest
from stages.engine.outcome import Work
from stages.engine.parts import PartParams, plan
from stages.shard import ShardParams
from stages.shard import Packed, publish

MEAN_FRAMES = 220


def rows(n_clips: int) -> Iterator[dict[str, Any]]:
    """Rows of a ledger, as the first stage leaves them."""
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


def ledger_out(folder: Path, n_clips: int) -> int:
    write_ledger(folder / "ledger.parquet", rows(n_clips))
    return (folder / "ledger.parquet").stat().st_size


def ledger_in(folder: Path, n_clips: int) -> int:
    assert len(read_ledger(folder / "ledger.parquet")) == n_clips
    return 0


def planned(folder: Path, n_clips: int) -> int:
    """Read the ledger, deal the parts, and name each part's result, as every run does."""
    parts = plan(read_ledger(folder / "ledger.parquet"), PartParams())
    assert len({digest(part.name, list(part.rows)) for part in parts}) == len(parts)
    return 0


def finished(folder: Path, n_clips: int) -> int:
    """Make up a receipt for every part, read it and keep it, then publish, as the command does at the end."""
    work = Work("folder", folder, folder, folder / "out", folder)
    work.out.mkdir()
    built, n_bytes = [], 0
    for part in plan(read_ledger(folder / "ledger.parquet"), PartParams()):
        entry = ShardEntry(f"{part.name}-0123456789ab.tar", part.split, 1, digest(1), len(part.rows), 1)
        index = make_shard_rows(entry.name, map(packed, part.rows))
        told = json.dumps(Built(Packed(entry, index), part.rows).to_json())
        built.append(Built.from_json(json.loads(told)))
        n_bytes += len(told)
    ledger = Rows.concatenate((one.ledger for one in built), SCHEMA)
    write_ledger(work.ledger, ledger)
    shards = [one.packed for one in built if one.packed]
    publish(work, ShardParams(), 128, {"mels": {"n_mels": 80}}, shards, ledger)
    return n_bytes


def packed(row: dict[str, Any]) -> dict[str, Any]:
    """A clip's row of the index."""
    places = {f"{member}_{column}": 12345678 for member in MEMBERS for column in ("offset", "size", "crc32")}
    known = {name: row[name] for name in ("clip_id", "split", "speaker", "frames", "sha256")}
    return places | known | {"source_sha256": row["sha256"]}


def nothing(item: int) -> int:
    return item


def scheduled(folder: Path, n_clips: int) -> int:
    """As many tasks as there are parts, that do nothing, through Dask and back."""
    n_parts = 2 ** (n_clips // 64 - 1).bit_length()
    with DaskMapper(2, None, quiet=True) as mapper:
        assert sum(1 for _ in mapper(nothing, range(n_parts), label="")) == n_parts
    return 0


STEPS: dict[str, Callable[[Path, int], int]] = {
    "nothing but its libraries": lambda folder, n_clips: 0,
    "write the ledger": ledger_out,
    "read the ledger": ledger_in,
    "read it, deal parts, name each": planned,
    "deal parts, a receipt for each, publish": finished,
    "schedule every part": scheduled,
}


def measured(step: str, folder: Path, n_clips: int) -> tuple[float, int, float]:
    """Seconds, bytes, and peak memory in MB. In a process of its own."""
    started = time.perf_counter()
    n_bytes = STEPS[step](folder, n_clips)
    seconds = time.perf_counter() - started
    return seconds, n_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_000_000)
    n_clips = parser.parse_args().clips
    print(f"| {n_clips} clips | s | MB | peak MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                seconds, n_bytes, peak = alone.submit(measured, step, Path(folder), n_clips).result()
            print(f"| {step} | {seconds:.1f} | {n_bytes / 1e6:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
