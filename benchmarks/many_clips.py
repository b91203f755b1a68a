"""Measures whether a build of many clips keeps its rate and its memory: raw clips to shards by the command.

    python benchmarks/many_clips.py --clips 20000

The clips are synthetic, 0.4 s long, the shortest that `clips.min_seconds` allows. A few different ones are
made; the others are copies whose last bytes differ, so that each is another file to every stage. For each
stage it prints the rate and the CPU time per clip in the first and in the last tenth of the clips, and the
memory of the command and all its processes, summed, at 10 % and at 100 % of the clips. The time of a clip is
when its result appeared on disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from processes import Total, run_pipeline

from stages.synth import ClipSpec, make_clip

N_ORIGINALS = 16
SECONDS = 0.4
SIDE = 256  # px
SPEAKERS = 100  # folders that the clips are spread over
BOX_BYTES = 16


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """A stage's speed and memory, in its first and in its last tenth of the clips."""

    stage: str
    clips: int
    seconds: float
    first_rate: float  # clips per second
    last_rate: float
    first_cpu_ms: float  # CPU time of all processes per clip: busy neighbours slow the rate, but not this
    last_cpu_ms: float
    tenth_mb: float  # of all processes, when a tenth of the clips was done
    end_mb: float  # of all processes, when the last was done


def make_clips(raw: Path, n_clips: int) -> None:
    """Write ``n_clips`` mp4 files of which no two have the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        originals = []
        for number in range(min(N_ORIGINALS, n_clips)):
            path = Path(folder, f"{number}.mp4")
            make_clip(path, ClipSpec(speaker=number + 1, seconds=SECONDS, size=(SIDE, SIDE)))
            originals.append(path.read_bytes())
    for number in range(n_clips):
        path = raw / f"s{number % SPEAKERS}" / f"{number:06d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        # An empty box at the end: players skip it, but the file is another one.
        box = BOX_BYTES.to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        path.write_bytes(originals[number % len(originals)] + box)


def measure_stage(
    stage: str, finish_times: Sequence[float], totals: Sequence[Total], clips_per_file: float
) -> StageSpeed:
    """A stage's speed from the moments at which its files appeared, in order, in seconds of the command."""
    tenth = max(1, len(finish_times) // 10)
    first, last = finish_times[: tenth + 1], finish_times[-tenth - 1 :]
    rates, cpu_ms = [], []
    moments = [total.wall_seconds for total in totals]
    for part in (first, last):
        n_clips = (len(part) - 1) * clips_per_file
        start, end = np.interp([part[0], part[-1]], moments, [total.cpu_seconds for total in totals])
        rates.append(n_clips / max(part[-1] - part[0], 1e-9))
        cpu_ms.append(1000 * (end - start) / n_clips)
    return StageSpeed(
        stage,
        round(len(finish_times) * clips_per_file),
        finish_times[-1] - finish_times[0],
        *rates,
        *cpu_ms,
        *(_average_memory(totals, part[-1]) for part in (first, last)),
    )


def _average_memory(totals: Sequence[Total], moment: float) -> float:
    """MB around a moment: the mean of the last ten samples, since each new child process makes a step."""
    before = [total.memory_mb for total in totals if total.wall_seconds <= moment][-10:]
    return sum(before) / len(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=20_000, help="number of clips")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="where the clips and the work go (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        raw, work = Path(folder, "raw"), Path(folder, "work")
        make_clips(raw, args.clips)
        start = time.time()
        usage = run_pipeline(
            "shard", "--dataset", "folder", "--raw", str(raw), "--work", str(work),
            "--cache", str(work / "cache"), "--out", str(work / "shards"), "--workers", str(args.workers),
        )  # fmt: skip
        speeds = []
        for stage, files, is_part in (
            ("clips", work.glob("cache/clips/*/*.npz"), False),
            ("landmarks", work.glob("cache/landmarks/*/*.npz"), False),
            ("mels", work.glob("cache/mels/*/*.npz"), False),
            ("shard", work.glob("shards/*.tar"), True),
        ):
            times = sorted(file.stat().st_mtime - start for file in files)
            n_clips = args.clips / len(times) if is_part else 1
            speeds.append(measure_stage(stage, times, usage.totals, n_clips))
    print(f"{args.clips} clips of {SECONDS} s, {args.workers} workers, {usage.wall_seconds:.0f} s wall")
    print("Each pair: in the first tenth of the clips, in the last.")
    print("| stage | s | clips/s | | CPU ms/clip | | MB | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for speed in speeds:
        print(
            f"| {speed.stage} | {speed.seconds:.0f} | {speed.first_rate:.1f} | {speed.last_rate:.1f} "
            f"| {speed.first_cpu_ms:.0f} | {speed.last_cpu_ms:.0f} "
            f"| {speed.tenth_mb:.0f} | {speed.end_mb:.0f} |"
        )
    print(f"largest process  {usage.format_peaks()}")
    if args.json:
        args.json.write_text(json.dumps([asdict(speed) for speed in speeds], indent=1) + "\n")


if __name__ == "__main__":
    main()
