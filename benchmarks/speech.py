"""Measures what speech features cost, and how much they depend on what surrounds a clip, on one core.

    python benchmarks/speech.py --raw data/grid/raw --clips 60

Clips are encoded alone and inside recordings of fifteen in a random order. A change is the size of the
difference over that of the deviation from the mean feature; cosines are of features without their mean.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from processes import list_videos, pin_to_one_core

from stages.media import weights
from stages.media.audio import mix_to_mono, read_channels
from stages.mels import count_samples
from stages.speech import compute_speech_rows, load_encoder

N_FRAMES = 75  # of a clip of GRID
CLIPS_IN_A_ROW = 15
ROWS = {"all": (0, 150), "middle second": (50, 100), "first 10": (0, 10), "last 10": (140, 150)}

Features = np.ndarray
Compute = Callable[[np.ndarray], Features]


def encode_inside(sounds: list[np.ndarray], compute: Compute, rng: np.random.Generator) -> Features:
    """The features of each clip, (clips, 150, 384), as they are between others."""
    inside = [np.zeros(0)] * len(sounds)
    order = rng.permutation(len(sounds))
    for group in (order[at : at + CLIPS_IN_A_ROW] for at in range(0, len(order), CLIPS_IN_A_ROW)):
        before = int(rng.integers(1, N_FRAMES))  # frames, so that clips do not begin where windows do
        joined = np.concatenate([np.append(sounds[index], np.float32(0)) for index in group])
        recording = np.concatenate([joined[-before * 640 :], joined])[:-1]
        features = compute(recording)
        for place, index in enumerate(group):
            inside[index] = features[2 * (before + N_FRAMES * place) :][: 2 * N_FRAMES]
    return np.stack(inside)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="a folder of clips of three seconds")
    parser.add_argument("--clips", type=int, default=60, help="number of clips, in order of their names")
    args = parser.parse_args()
    pin_to_one_core()
    encode = load_encoder(weights.find(weights.SPEECH_ENCODER))
    n_samples = count_samples(N_FRAMES)
    sounds = [
        mix_to_mono(read_channels(path, 0.0, n_samples))[0] for path in list_videos(args.raw, args.clips)
    ]

    def compute(sound: np.ndarray) -> Features:
        return compute_speech_rows(sound, encode).astype(float)

    compute(sounds[0])  # warm
    seconds = []
    alone = []
    for sound in sounds:
        start = time.process_time()
        alone.append(compute(sound))
        seconds.append(time.process_time() - start)
    clips = np.stack(alone)
    minute = np.concatenate([np.append(sound, np.float32(0)) for sound in sounds[:20]])[:-1]
    start = time.process_time()
    compute(minute)
    per_frame = (time.process_time() - start) / (N_FRAMES * min(20, len(sounds)))
    print(f"a clip of 3 s   {1000 * np.median(seconds) / N_FRAMES:5.2f} ms of CPU per frame, median")
    print(f"a minute        {1000 * per_frame:5.2f} ms")
    inside = encode_inside(sounds, compute, np.random.default_rng(0))
    quiet = np.stack([compute(np.float32(0.1) * sound) for sound in sounds])
    mean, deviation = clips.mean((0, 1)), clips.std((0, 1))
    for name, (first, last) in ROWS.items():
        a, b = ((x[:, first:last] - mean) / deviation for x in (clips, inside))
        cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        change = np.linalg.norm(a - b) / np.linalg.norm(a)
        print(f"{name:<15} change {change:.3f}, cosine {cosines.mean():.3f}")
    print(f"20 dB lower     largest change of a feature {np.abs(quiet - clips).max():.4f}")


if __name__ == "__main__":
    main()
