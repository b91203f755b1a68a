"""Measures the CPU seconds per frame from raw clips to shards against the face landmarker alone, on one core.

    python benchmarks/preprocess.py --raw data/grid/raw --dataset grid --clips 211

The reference is MediaPipe's ``detect`` on the same frames, already decoded, in one process. Everything else
that the pipeline does comes on top: hashing, packets, decoding twice, gaps, alignment, mels, crops, encoding,
tars, Dask, child processes, start-up. Faces are found by ``--engine``; with litert the goal is a ratio of at
most 0.85, with mediapipe one of 1.3. Memory is printed as well.
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

from processes import list_videos, pin_to_one_core, run_pipeline

from stages.media import weights
from stages.media.faces import DEFAULT_ENGINE, ENGINE_PACKAGES
from stages.media.mediapipe_faces import MediaPipeFaces
from stages.media.presentation import read_shown_video
from stages.media.video import count_frames_at_25fps, read_frames_at_25fps


def measure_landmarker(files: list[Path], model: Path) -> tuple[int, float]:
    """Number of frames at 25 fps, and the CPU seconds of ``detect`` on them."""
    n_frames, seconds = 0, 0.0
    with MediaPipeFaces(model, max_faces=1) as find:
        for path in files:
            span = read_shown_video(path).span
            n = count_frames_at_25fps(span)
            images = [
                find.make_image(frame.image) for frame in read_frames_at_25fps(path, float(span.start), n)
            ]
            start = time.process_time()
            for image in images:
                find.landmarker.detect(image)
            seconds += time.process_time() - start
            n_frames += n
    return n_frames, seconds


def measure_landmarker_on_one_core(files: list[Path], model: Path) -> tuple[int, float]:
    """``measure_landmarker`` in a process of its own, so that this process is not pinned."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=pin_to_one_core) as pool:
        return pool.submit(measure_landmarker, files, model).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="a corpus whose clips are all usable")
    parser.add_argument("--dataset", choices=["grid", "crema-d", "folder"], required=True)
    parser.add_argument("--clips", type=int, default=211, help="number of clips, in order of their names")
    parser.add_argument(
        "--bare", type=int, default=32, help="clips for the landmarker alone, which runs twice"
    )
    parser.add_argument("--landmarker", default="", help="MediaPipe's face_landmarker.task")
    parser.add_argument("--engine", choices=list(ENGINE_PACKAGES), default=DEFAULT_ENGINE)
    args = parser.parse_args()
    model = weights.find(weights.LANDMARKER, args.landmarker)
    files = list_videos(args.raw, args.clips)
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        for path in files:
            target = raw / path.relative_to(args.raw)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        subset = files[:: max(1, len(files) // args.bare)]
        n_bare, seconds_before = measure_landmarker_on_one_core(subset, model)
        params = Path(folder, "params.yaml")
        params.write_text(f"landmarks: {{engine: {args.engine}}}\n")
        usage = run_pipeline(
            "shard", "--dataset", args.dataset, "--raw", str(raw), "--work", str(work),
            "--params", str(params), "--workers", "1", "--landmarker", str(model), one_core=True,
        )  # fmt: skip
        # Before and after, because the speed of the machine drifts.
        _, seconds_after = measure_landmarker_on_one_core(subset, model)
    n_frames = usage.summary["stages"][0]["frames"]
    bare = (seconds_before + seconds_after) / 2 * n_frames / n_bare
    for stage in usage.summary["stages"]:
        print(f"  {stage['stage']:<10} {stage['seconds']:7.1f} s wall", file=sys.stderr)
    cpu, wall = usage.cpu_seconds, usage.wall_seconds
    print(
        f"{len(files)} clips, {n_frames} frames, one core; the landmarker alone ran on {n_bare} frames, twice"
    )
    print(f"engine            {args.engine}")
    print(f"landmarker alone  {bare:8.1f} CPU s   {1000 * bare / n_frames:6.2f} ms/frame")
    print(f"raw to shards     {cpu:8.1f} CPU s   {1000 * cpu / n_frames:6.2f} ms/frame   {wall:.1f} s wall")
    print("of that           " + ", ".join(f"{kind} {s:.1f} s" for kind, s in usage.cpu_by_kind.items()))
    print(f"ratio             {cpu / bare:8.2f}")
    print(f"peak memory       {usage.format_peaks()}")


if __name__ == "__main__":
    main()
