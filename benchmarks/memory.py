"""Is memory flat in a clip's length? One made clip of 5,000 frames through the whole road.

    python benchmarks/memory.py --frames 5000

Prints the largest process of each kind over the run, and for the child that decodes its peak in the first
and the last quarter of the landmarks stage, by far the longest.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from processes import pipeline

from shards.schema import VIDEO_FPS
from stages.synth import ClipSpec, make_clip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=5000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        make_clip(raw / "long.mp4", ClipSpec(seconds=asked.frames / VIDEO_FPS))
        road = pipeline(
            "shard", "--dataset", "folder", "--raw", str(raw), "--work", str(work), "--workers", "1"
        )
    seconds = {stage["stage"]: stage["seconds"] for stage in road.answer["stages"]}
    start, length = seconds["clips"], seconds["landmarks"]
    quarters = [
        max(size for at, size in road.memory_mb["sandbox"] if low <= (at - start) / length <= high)
        for low, high in ((0.1, 0.35), (0.7, 0.95))
    ]
    print(f"{asked.frames} frames in one clip, {road.wall_seconds:.0f} s wall")
    print(f"peak memory           {road.peaks()}")
    print(f"landmarks, child RSS  first quarter {quarters[0]:.0f} MB, last quarter {quarters[1]:.0f} MB")


if __name__ == "__main__":
    main()
