"""How well speech alone tells the opening of a mouth: about what a network that draws the mouth can obey.

    python benchmarks/opening.py --shards data/grid/shards
    python benchmarks/opening.py --shards data/people/shards --strangers data/strangers/shards

A small convolutional network is fitted on the clips of the train split to predict the opening, in standard
deviations of its speaker, from mels, speech features or both. The mean prediction of ``--seeds`` networks is
scored on the clips of the test split, and on those of strangers, all together and each one's alone: its
correlation with the clip's own opening, the lag at which that is greatest over all clips, and, as if it were
of a drawn mouth, its obedience to other speech in the pairs of ``benchmarks/ablation.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ablation import TruthMouths
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shards.reader import Dataset, open_dataset, read_clip
from shards.resident import TRAIN_SPLIT
from shards.schema import MELS_PER_FRAME
from stages.evaluate.listening import average_scores, score_openings
from stages.media import weights
from stages.metrics.mouth import correlate_at_lag, openings
from stages.sample.pairs import Pair, pair_clips

Array = NDArray[np.float32]
TEST_SPLIT = "test"
INPUTS = {"mels": ("mels",), "speech": ("speech",), "both": ("mels", "speech")}
PAIR_SEED = 0  # that of benchmarks/ablation.py
MAX_LAG = 6  # frames
# The predictor, and how it is fitted.
CHANNELS = 64
KERNELS = (9, 5)  # rows of 20 ms: 0.28 s are heard
DROPOUT = 0.3
EPOCHS = 30
BATCH = 16
LEARNING_RATE = 2e-3  # the highest of one cycle
WEIGHT_DECAY = 1e-2
MIN_DEVIATION = 1e-3  # of an input that hardly changes


@dataclass(frozen=True, slots=True)
class Clip:
    """What is seen and heard in a clip of T frames."""

    speaker: str
    split: str
    opening: Array  # (T,)
    sounds: Mapping[str, Array]  # "mels" and "speech" -> (C, 2T)

    def join(self, inputs: str) -> Array:
        """The rows of one of INPUTS, (C, 2T)."""
        return np.concatenate([self.sounds[name] for name in INPUTS[inputs]])


class Predictor(nn.Module):
    """Rows of sound (B, C, 2T) -> openings (B, T)."""

    def __init__(self, clips: Sequence[Clip], inputs: str) -> None:
        super().__init__()
        rows = torch.from_numpy(np.concatenate([clip.join(inputs) for clip in clips], axis=1))
        self.register_buffer("mean", rows.mean(dim=1, keepdim=True))
        self.register_buffer("deviation", rows.std(dim=1, keepdim=True) + MIN_DEVIATION)
        wide, narrow = KERNELS
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Conv1d(len(rows), CHANNELS, 1), nn.GELU(),
            nn.Conv1d(CHANNELS, CHANNELS, wide, padding=wide // 2), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Conv1d(CHANNELS, CHANNELS, narrow, padding=narrow // 2), nn.GELU(),
            nn.Conv1d(CHANNELS, 1, MELS_PER_FRAME, stride=MELS_PER_FRAME),
        )  # fmt: skip

    def forward(self, rows: Tensor) -> Tensor:
        predicted: Tensor = self.layers((rows - self.mean) / self.deviation).squeeze(1)
        return predicted


def read_clips(dataset: Dataset, truth: TruthMouths) -> dict[str, Clip]:
    """The clips of a dataset in whose every frame a mouth is found."""
    clips = {}
    for clip_id, row in dataset.clips.items():
        sample = read_clip(dataset, clip_id)
        opening = openings(truth.find(sample.frames)).astype(np.float32)
        sounds = {"mels": sample.mels.T}
        if sample.speech is not None:
            sounds["speech"] = sample.speech.T.astype(np.float32)
        if np.isfinite(opening).all():
            clips[clip_id] = Clip(row["speaker"], row["split"], opening, sounds)
    return clips


def fit_predictor(clips: Sequence[Clip], inputs: str, seed: int) -> Predictor:
    """Fit a predictor on clips, each cut to the shortest of its batch."""
    torch.manual_seed(seed)
    network = Predictor(clips, inputs)
    by_speaker: dict[str, list[Array]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.speaker, []).append(clip.opening)
    scales = {name: np.concatenate(each) for name, each in by_speaker.items()}
    pairs = [
        (
            torch.from_numpy(clip.join(inputs)),
            torch.from_numpy((clip.opening - scales[clip.speaker].mean()) / scales[clip.speaker].std()),
        )
        for clip in clips
    ]
    batch = min(BATCH, len(pairs))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * (len(pairs) // batch)
    )
    for _ in range(EPOCHS):
        for places in torch.randperm(len(pairs))[: len(pairs) // batch * batch].split(batch):
            chosen = [pairs[place] for place in places]
            n_frames = min(len(opening) for _, opening in chosen)
            rows = torch.stack([rows[:, : MELS_PER_FRAME * n_frames] for rows, _ in chosen])
            loss = F.mse_loss(network(rows), torch.stack([opening[:n_frames] for _, opening in chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def predict_openings(networks: Iterable[Predictor], clip: Clip, inputs: str) -> Array:
    """The mean of the networks' predictions for a clip, (T,)."""
    rows = torch.from_numpy(clip.join(inputs))[None]
    predicted: Array = torch.stack([network(rows) for network in networks]).mean(dim=0)[0].numpy()
    return predicted


def print_row(name: str, clips: Mapping[str, Clip], predicted: Mapping[str, Array], dataset: Dataset) -> None:
    """Score the predictions for some clips of a dataset."""

    def score(pair: Pair) -> dict[str, float]:
        return score_openings(
            predicted[pair.audio_clip_id],
            clips[pair.audio_clip_id].opening,
            clips[pair.clip_id].opening,
            is_silent=None,
            closures=None,
            own=pair.clip_id == pair.audio_clip_id,
        )

    own = average_scores([score(pair) for pair in pair_clips(dataset, list(clips), "own", seed=PAIR_SEED)])
    cells = [str(own["opening_correlation"]), "-", "-"]
    if len(clips) > 1:
        pairs = pair_clips(dataset, list(clips), "swapped", seed=PAIR_SEED)
        swapped = average_scores([score(pair) for pair in pairs])
        cells[1:] = [str(swapped[column]) for column in ("audio_obedience", "audio_obedience_net")]
    by_lag = {
        lag: np.mean([correlate_at_lag(clip.opening, predicted[key], lag) for key, clip in clips.items()])
        for lag in range(-MAX_LAG, MAX_LAG + 1)
    }
    best = max(by_lag, key=lambda lag: by_lag[lag])
    print(f"| {name} | {' | '.join(cells)} | {by_lag[best]:.2f} at {best:+d} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--strangers", type=Path, help="a dataset of people that --shards does not show")
    parser.add_argument("--inputs", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--landmarker", default="", help="the face model; otherwise it is looked for")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = open_dataset(args.shards)
    strangers = None if args.strangers is None else open_dataset(args.strangers)
    with TruthMouths(weights.find(weights.LANDMARKER, args.landmarker)) as truth:
        clips = read_clips(known, truth)
        others = {} if strangers is None else read_clips(strangers, truth)
    needed = {name for inputs in args.inputs for name in INPUTS[inputs]}
    for clip_id, clip in (clips | others).items():
        if lacking := needed - clip.sounds.keys():
            raise SystemExit(f"{clip_id} has no {', '.join(sorted(lacking))}, expected for --inputs")
    training = [clip for clip in clips.values() if clip.split == TRAIN_SPLIT]
    unseen = {clip_id: clip for clip_id, clip in clips.items() if clip.split == TEST_SPLIT}
    print("| whose clips, from what | r | obedience | net | r at the best lag, frames |")
    print("| --- | --- | --- | --- | --- |")
    for inputs in args.inputs:
        networks = [fit_predictor(training, inputs, seed) for seed in range(args.seeds)]
        both = unseen | others
        predicted = {clip_id: predict_openings(networks, clip, inputs) for clip_id, clip in both.items()}
        print_row(f"unseen, {inputs}", unseen, predicted, known)
        if strangers is None:
            continue
        print_row(f"strangers, {inputs}", others, predicted, strangers)
        for speaker in sorted({clip.speaker for clip in others.values()}):
            theirs = {clip_id: clip for clip_id, clip in others.items() if clip.speaker == speaker}
            print_row(f"{speaker}, {inputs}", theirs, predicted, strangers)


if __name__ == "__main__":
    main()
