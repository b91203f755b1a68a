"""Joins the training clips of a dataset to films, so that cutting them can be compared with cutting by hand.

    python benchmarks/join.py --shards data/grid/shards --raw data/grid/raw --speaker s1 --to films
    pipeline shard --dataset folder --raw films --work cut --cut --speech-encoder whisper-tiny.en
    python benchmarks/ablation.py --only "context, speech" --set noise.log_snr_shift=-3 --samples 36000 \\
        --shards cut/shards --to runs/cut --split train
    pipeline sample --shards data/grid/shards --run runs/cut/context-speech --audio swapped --seed 0 \\
        --steps 2 --guidance 2 --no-videos -o samples/cut-0
    pipeline evaluate --shards data/grid/shards --generated samples/cut-0 --mouths-only -o evaluation/cut

The network of clips cut by hand is trained and scored likewise, from data/grid/shards to runs/by-hand.
A film has clips one after the other, in an order drawn by ``--seed``, almost without loss (H.264 at CRF 8
and PCM).
"""

from __future__ import annotations

import argparse
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from shards.ledger import OK
from shards.reader import open_dataset
from shards.resident import TRAIN_SPLIT
from shards.schema import VIDEO_FPS

RATE = 44_100  # Hz
SAMPLES_PER_FRAME = RATE // VIDEO_FPS
OPTIONS = {"crf": "8", "preset": "veryfast"}


def read_clip(path: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.int16]]:
    """Pictures as planes of yuv420p, and as much sound, mono: silence where the file has less."""
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
    return pictures, read_sound(path, len(pictures))


def read_sound(path: Path, n_frames: int) -> NDArray[np.int16]:
    """The sound of the first frames, mono: (n_frames, SAMPLES_PER_FRAME), silence where the file has less."""
    resampler = av.AudioResampler("s16", "mono", RATE)
    with av.open(str(path)) as container:
        frames = (*container.decode(audio=0), None)  # None: what the resampler holds back
        blocks = [block.to_ndarray()[0] for frame in frames for block in resampler.resample(frame)]
    sound = np.zeros(n_frames * SAMPLES_PER_FRAME, np.int16)
    samples = np.concatenate(blocks)[: len(sound)]
    sound[: len(samples)] = samples
    return sound.reshape(n_frames, SAMPLES_PER_FRAME)


def make_block(samples: NDArray[np.int16], number: int) -> av.AudioFrame:
    """The sound of frame ``number`` of a film, to be encoded."""
    block = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    block.pts, block.rate, block.time_base = number * SAMPLES_PER_FRAME, RATE, Fraction(1, RATE)
    return block


def write_film(path: Path, clips: list[Path]) -> None:
    """Write clips of one size, at 25 frames a second, one after the other."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=VIDEO_FPS, options=OPTIONS)
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        n_frames = 0
        for clip in clips:
            pictures, sound = read_clip(clip)
            if not n_frames:
                video.height, video.width = pictures[0].shape[0] * 2 // 3, pictures[0].shape[1]
            for picture, samples in zip(pictures, sound, strict=True):
                frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
                frame.pts, frame.time_base = n_frames, Fraction(1, VIDEO_FPS)
                container.mux([*video.encode(frame), *audio.encode(make_block(samples, n_frames))])
                n_frames += 1
        container.mux([*video.encode(), *audio.encode()])


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--speaker", required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=30, help="of a film")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rows = [
        row
        for row in open_dataset(options.shards).ledger()
        if row["status"] == OK and row["split"] == TRAIN_SPLIT and row["speaker"] == options.speaker
    ]
    random.Random(options.seed).shuffle(rows)
    folder = options.to / options.speaker
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(rows), options.clips)):
        some = [options.raw / row["path"] for row in rows[first : first + options.clips]]
        write_film(folder / f"film{number:02d}.mkv", some)
        print(f"{folder / f'film{number:02d}.mkv'}: {len(some)} clips", flush=True)


if __name__ == "__main__":
    main()
