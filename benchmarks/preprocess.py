"""What the whole road costs beside the face landmarker alone: CPU seconds on one core, and memory.

    python benchmarks/preprocess.py --raw data/grid/raw --dataset grid --clips 48

The peer is the bare landmarker: MediaPipe's ``detect`` on the same frames, already decoded, in one process.
Everything else that redub does (hashing, three decodes, gaps, alignment, mels, crops, coding, tars, Dask,
child processes, start-up) is what comes on top. Goal: at most 1.3 times the bare landmarker.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from stages import video, weights
from stages.faces import FaceFinder
from stages.video import open_media, packet_spans, read_on_clock, video_stream

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.2


def bare_landmarker(files: list[Path], model: Path) -> tuple[int, float]:
    """Frames on the 25 fps clock, and the CPU seconds of ``detect`` on them."""
    n_frames, seconds = 0, 0.0
    with FaceFinder(model, max_faces=1) as find:
        for path in files:
            with open_media(path) as container:
                (span,) = packet_spans(container, video_stream(container))
            n = video.frames_on_clock(span)
            images = [find.image(frame.image) for frame in read_on_clock(path, float(span.start), n)]
            started = time.process_time()
            for image in images:
                find.landmarker.detect(image)
            seconds += time.process_time() - started
            n_frames += n
    return n_frames, seconds


def whole_road(raw: Path, dataset: str, work: Path, model: Path) -> tuple[float, float, dict[str, float]]:
    """CPU seconds and wall seconds of ``pipeline shard``; peak RSS in MB by kind of process."""
    command = [
        "pipeline", "shard", "--dataset", dataset, "--raw", str(raw), "--work", str(work),
        "--workers", "1", "--landmarker", str(model), "--json",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peaks: dict[str, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks), daemon=True)
    watcher.start()
    answer, _ = process.communicate()
    wall = time.monotonic() - started
    if process.returncode:
        raise SystemExit(f"pipeline shard failed: {answer.decode()}")
    while True:  # the sandbox's child outlives its worker for a moment; its CPU counts too
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for stage in json.loads(answer)["stages"]:
        print(f"  {stage['stage']:<10} {stage['seconds']:7.1f} s wall", file=sys.stderr)
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return used, wall, peaks


def _watch(pid: int, peaks: dict[str, float]) -> None:
    """Peak RSS of the command, its Dask workers and their sandbox children, in MB."""
    root = psutil.Process(pid)
    while True:
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                line = " ".join(process.cmdline())
                kind = (
                    "sandbox" if "stages.sandbox" in line else "worker" if "spawn_main" in line else "command"
                )
                peaks[kind] = max(peaks.get(kind, 0.0), process.memory_info().rss / 2**20)
            except psutil.Error:
                continue
        time.sleep(SAMPLE_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="a corpus with clips that are all usable")
    parser.add_argument("--dataset", choices=["grid", "crema-d", "folder"], required=True)
    parser.add_argument("--clips", type=int, default=48, help="how many of them, in order of name")
    parser.add_argument("--landmarker", default="")
    asked = parser.parse_args()
    # Orphans come to this process, so their CPU time is counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    model = weights.find(weights.LANDMARKER, asked.landmarker)
    suffixes = (".mpg", ".flv", ".mp4", ".mkv")
    files = [path for path in sorted(asked.raw.rglob("*")) if path.suffix in suffixes][: asked.clips]
    with tempfile.TemporaryDirectory() as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        for path in files:
            target = raw / path.relative_to(asked.raw)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        n_frames, bare = bare_landmarker(files, model)
        road, wall, peaks = whole_road(raw, asked.dataset, work, model)
        bare = (bare + bare_landmarker(files, model)[1]) / 2  # before and after: machines drift
    print(f"{len(files)} clips, {n_frames} frames, one core")
    print(f"bare landmarker  {bare:8.1f} CPU s   {1000 * bare / n_frames:6.2f} ms/frame")
    print(f"whole road       {road:8.1f} CPU s   {1000 * road / n_frames:6.2f} ms/frame   {wall:.1f} s wall")
    print(f"ratio            {road / bare:8.2f}")
    print("peak memory      " + ", ".join(f"{kind} {size:.0f} MB" for kind, size in sorted(peaks.items())))


if __name__ == "__main__":
    main()
