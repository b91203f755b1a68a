"""Measures whether memory depends on the length of a file.

    python benchmarks/memory.py --frames 5000
    python benchmarks/memory.py --film film.mp4 --hours 2 --work work

The first takes one synthetic clip from raw to shards. The second repeats a film, as ``pipeline synth --style
film`` makes, until it is so long, and only cuts that. Prints the peak memory of the largest process of each
kind: in all, and in the quarters of the longest stage.
"""

from __future__ import annotations

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import av
from join import RATE, make_block, read_sound
from processes import Usage, run_pipeline

from shards.schema import VIDEO_FPS
from stages.synth import ClipSpec, make_clip

QUARTERS = ((0.02, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.98))


def repeat_film(source: Path, target: Path, seconds: float) -> None:
    """Write copies of a film at 25 frames a second one after the other: its packets, and its sound as PCM."""
    with av.open(str(target), "w") as output:
        with av.open(str(source)) as film:
            length = film.streams.video[0].frames
            video = output.add_stream_from_template(film.streams.video[0])
        sound = read_sound(source, length)
        audio = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for k in range(round(seconds * VIDEO_FPS / length)):
            with av.open(str(source)) as film:
                for packet in film.demux(film.streams.video[0]):
                    if packet.dts is not None and packet.pts is not None:
                        offset = round(k * Fraction(length, VIDEO_FPS) / packet.time_base)
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = video
                        output.mux(packet)
            for number, samples in enumerate(sound, k * length):
                output.mux(audio.encode(make_block(samples, number)))
        output.mux(audio.encode())


def print_quarters(usage: Usage, start: float, length: float) -> None:
    """Print the peak memory of each kind of process in the quarters of some seconds."""
    for kind, series in usage.memory_mb.items():
        peaks = [
            max((size for at, size in series if low <= (at - start) / length <= high), default=0.0)
            for low, high in QUARTERS
        ]
        print(f"{kind:<8} by quarters: {', '.join(f'{peak:.0f}' for peak in peaks)} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=5000, help="length of the clip")
    parser.add_argument("--film", type=Path, help="to repeat and cut, instead")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument(
        "--work", type=Path, help="folder for the film and its dataset; default: a temporary one"
    )
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.work or Path(folder)
        raw, work = root / "raw", root / "work"
        raw.mkdir(parents=True, exist_ok=True)
        paths = ["--raw", f"{raw}", "--work", f"{work}"]
        words = ["--dataset", "folder", *paths, "--workers", f"{args.workers}"]
        if args.film is None:
            make_clip(raw / "long.mp4", ClipSpec(seconds=args.frames / VIDEO_FPS))
            usage = run_pipeline("shard", *words)
            seconds = {stage["stage"]: stage["seconds"] for stage in usage.summary["stages"]}
            start, length = seconds["clips"], seconds["landmarks"]
        else:
            repeat_film(args.film, raw / "long.mkv", args.hours * 3600)
            run_pipeline("clips", *words, "--cut")
            usage = run_pipeline("cut", *words, "--cut")
            start, length = 0.0, usage.wall_seconds
    print(f"{usage.wall_seconds:.0f} s wall, {usage.cpu_seconds:.0f} s of CPU")
    print(f"peak memory: {usage.format_peaks()}")
    print_quarters(usage, start, length)


if __name__ == "__main__":
    main()
