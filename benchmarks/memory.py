"""Measures whether memory depends on the length of a clip: one synthetic clip of 5,000 frames, raw to shards.

    python benchmarks/memory.py --frames 5000

Prints the peak memory of the largest process of each kind. For the sandbox child that decodes, it also prints
the peak in an early and in a late quarter of the landmarks stage, by far the longest stage.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from processes import run_pipeline

from shards.schema import VIDEO_FPS
from stages.synth import ClipSpec, make_clip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=5000, help="length of the clip")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        make_clip(raw / "long.mp4", ClipSpec(seconds=args.frames / VIDEO_FPS))
        usage = run_pipeline(
            "shard", "--dataset", "folder", "--raw", str(raw), "--work", str(work), "--workers", "1"
        )
    seconds = {stage["stage"]: stage["seconds"] for stage in usage.summary["stages"]}
    start, length = seconds["clips"], seconds["landmarks"]
    quarters = [
        max(size for at, size in usage.memory_mb["sandbox"] if low <= (at - start) / length <= high)
        for low, high in ((0.1, 0.35), (0.7, 0.95))
    ]
    print(f"{args.frames} frames in one clip, {usage.wall_seconds:.0f} s wall")
    print(f"peak memory           {usage.format_peaks()}")
    print(f"landmarks, child RSS  early quarter {quarters[0]:.0f} MB, late quarter {quarters[1]:.0f} MB")


if __name__ == "__main__":
    main()
