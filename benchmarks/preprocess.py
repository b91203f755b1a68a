"""What the whole road costs beside the face landmarker alone: CPU seconds on one core, and memory.

    python benchmarks/preprocess.py --raw data/grid/raw --dataset grid --clips 211

The peer is the bare landmarker: MediaPipe's ``detect`` on the same frames, already decoded, in one process.
Everything else that redub does (hashing, reading packets, two decodes, gaps, alignment, mels, crops,
coding, tars, Dask, child processes, start-up) is what comes on top. Goal: at most 1.3 times.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from processes import pin_to_one_core, pipeline, video_files

from stages.media import video, weights
from stages.media.faces import FaceFinder
from stages.media.video import read_frames_at_25fps, read_video_span


def bare_landmarker(files: list[Path], model: Path) -> tuple[int, float]:
    """Frames on the 25 fps clock, and the CPU seconds of ``detect`` on them."""
    n_frames, seconds = 0, 0.0
    with FaceFinder(model, max_faces=1) as find:
        for path in files:
            span = read_video_span(path)
            n = video.count_frames_at_25fps(span)
            images = [find.make_image(frame.image) for frame in read_frames_at_25fps(path, float(span.start), n)]
            started = time.process_time()
            for image in images:
                find.landmarker.detect(image)
            seconds += time.process_time() - started
            n_frames += n
    return n_frames, seconds


def on_one_core(files: list[Path], model: Path) -> tuple[int, float]:
    """``bare_landmarker`` in a process of its own, so that the watching is not bound to its core."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=pin_to_one_core) as pool:
        return pool.submit(bare_landmarker, files, model).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="a corpus with clips that are all usable")
    parser.add_argument("--dataset", choices=["grid", "crema-d", "folder"], required=True)
    parser.add_argument("--clips", type=int, default=211, help="how many of them, in order of name")
    parser.add_argument("--bare", type=int, default=32, help="clips the bare landmarker runs on, twice")
    parser.add_argument("--landmarker", default="")
    asked = parser.parse_args()
    model = weights.find(weights.LANDMARKER, asked.landmarker)
    files = video_files(asked.raw, asked.clips)
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        for path in files:
            target = raw / path.relative_to(asked.raw)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        some = files[:: max(1, len(files) // asked.bare)]
        n_bare, before = on_one_core(some, model)
        road = pipeline(
            "shard", "--dataset", asked.dataset, "--raw", str(raw), "--work", str(work),
            "--workers", "1", "--landmarker", str(model), one_core=True,
        )  # fmt: skip
        after = on_one_core(some, model)[1]  # before and after: machines drift
    n_frames = road.answer["stages"][0]["frames"]
    bare = (before + after) / 2 * n_frames / n_bare
    for stage in road.answer["stages"]:
        print(f"  {stage['stage']:<10} {stage['seconds']:7.1f} s wall", file=sys.stderr)
    cpu, wall = road.cpu_seconds, road.wall_seconds
    print(
        f"{len(files)} clips, {n_frames} frames, one core; the bare landmarker ran on {n_bare} of them, twice"
    )
    print(f"bare landmarker  {bare:8.1f} CPU s   {1000 * bare / n_frames:6.2f} ms/frame")
    print(f"whole road       {cpu:8.1f} CPU s   {1000 * cpu / n_frames:6.2f} ms/frame   {wall:.1f} s wall")
    print("of that          " + ", ".join(f"{kind} {s:.1f} s" for kind, s in road.cpu_by_kind.items()))
    print(f"ratio            {cpu / bare:8.2f}")
    print(f"peak memory      {road.peaks()}")


if __name__ == "__main__":
    main()
