"""Does a speech of minutes move the mouth as well as its sentences do one by one?

    python benchmarks/long_speech.py --shards data/grid/shards --raw data/grid/raw --run runs/x --speaker s1

Pairs of the split, each with another clip's speech, are generated one by one and then as one clip: their
frames joined, with the mels and speech features of their joined speech. Both are scored pair by pair. A
joined clip has cuts that no edit would have, so this is the harder case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ablation import TruthMouths

from model.checkpoint import load_network
from model.execution import Execution, select_device
from model.recipe import ModelError
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from shards.index import get_params_section
from shards.reader import Dataset, open_dataset
from shards.schema import VIDEO_FPS, ClipSample, Frames, ShardError
from stages.engine.outcome import Drop
from stages.engine.sandbox import LimitParams
from stages.evaluate.listening import PairMouths, average_scores, score_pair
from stages.evaluate.measure import cut_clip
from stages.media import weights
from stages.media.audio import SAMPLES_PER_FRAME
from stages.media.clip_sound import FULL_SCALE, read_clip_sound
from stages.media.networks import find_network
from stages.media.pauses import flatten_pauses
from stages.media.reference import Reference
from stages.mels import compute_mel_rows, find_reference, read_mels_params
from stages.metrics.obedience import Mean, bootstrap_mean
from stages.sample.pairs import Pair, count_pair_frames, make_pairs, read_pair
from stages.speech import SpeechParams, compute_speech_rows, find_model, load_encoder

COLUMNS = (
    "audio_obedience", "audio_obedience_net", "obedience_speech", "obedience_source", "opening_correlation",
)  # fmt: skip
MAX_SEEDS = 20  # each gives every clip of the split another partner


class Speech(NamedTuple):
    """What a network hears: two rows for each frame."""

    mels: np.ndarray
    features: np.ndarray | None  # of an encoder, where the dataset has them


def join_speech(
    dataset: Dataset, raw: Path, pairs: Sequence[Pair], clips: Sequence[tuple[ClipSample, ClipSample]]
) -> Speech:
    """The mels and features of the pairs' speech, one after another in one recording."""
    sounds = []
    for pair, (_, speech) in zip(pairs, clips, strict=True):
        sound = read_clip_sound(raw, speech.info, LimitParams())
        sounds.append(sound[: SAMPLES_PER_FRAME * count_pair_frames(dataset, pair)])
    whole = np.concatenate(sounds).astype(np.float32) / np.float32(FULL_SCALE)
    whole = whole[:-1]  # without the last sample there are two rows a frame
    encoder = get_params_section(dataset.manifest, "speech").get("encoder")
    features = None
    if encoder is not None:
        model = find_model(SpeechParams(encoder=encoder))
        assert model is not None, "an encoder has weights"
        features = compute_speech_rows(whole, load_encoder(model))
    return Speech(compute_mel_rows(whole, read_mels_params(dataset)), features)


def generate(
    generator: FrameGenerator,
    key: str,
    parts: Sequence[ClipSample],
    speech: Speech,
    reference: Reference | None,
) -> Frames:
    if generator.flat_pauses:
        speech = Speech(*flatten_pauses(*speech, reference))
    frames = (CropFrame(*both) for part in parts for both in zip(part.frames, part.boxes, strict=True))
    request = ClipRequest(key, frames, speech.mels, speech=speech.features)
    return np.stack([frame.pixels for frame in generator.rollout([request], slots=1)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--raw", type=Path, required=True, help="the corpus's raw files, for their sound")
    parser.add_argument("--run", type=find_network, required=True)
    parser.add_argument("--which", default="newest", choices=["newest", "best"])
    parser.add_argument("--speaker", required=True, help="whose clips: a clip has one identity frame")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seconds", type=float, default=120, help="length of the joined clip, at least")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--common-noise", type=float, default=SampleParams().common_noise)
    parser.add_argument("--landmarker", type=Path, help="MediaPipe's face_landmarker.task")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    dataset = open_dataset(args.shards, hashes=False)
    pairs = choose_pairs(dataset, args)
    clips = [read_pair(dataset, pair) for pair in pairs]
    lengths = [count_pair_frames(dataset, pair) for pair in pairs]
    network, saved = load_network(args.run, which=args.which)
    params = SampleParams(steps=args.steps, guidance=args.guidance, common_noise=args.common_noise)
    device = select_device(args.device)
    generator = FrameGenerator(network, saved.recipe, params, device, Execution())
    sources = [cut_clip(clip, n) for (clip, _), n in zip(clips, lengths, strict=True)]
    reference = find_reference(dataset)
    whole = generate(generator, "joined", sources, join_speech(dataset, args.raw, pairs, clips), reference)
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    scores: dict[str, list[dict[str, float]]] = {"one by one": [], "joined": []}
    with TruthMouths(args.landmarker or weights.find(weights.LANDMARKER)) as truth:
        for pair, (clip, speech), source, part in zip(pairs, clips, sources, parts, strict=True):
            alone = generate(generator, pair.name, [source], Speech(speech.mels, speech.speech), reference)
            for name, frames in (("one by one", alone), ("joined", part)):
                mouths = PairMouths(truth.find(frames), truth.get(speech), truth.get(clip))
                scores[name].append(score_pair(frames, clip, speech, mouths, reference=reference))
    print(f"{len(pairs)} pairs, {sum(lengths) / VIDEO_FPS:.0f} s, step {saved.step}")
    print(f"| | {' | '.join(COLUMNS)} |\n{'| --- ' * (1 + len(COLUMNS))}|")
    for name, each in scores.items():
        print(format_row(name, average_scores(each)))
    differences = [
        {column: joined[column] - alone[column] for column in COLUMNS if column in joined and column in alone}
        for alone, joined in zip(scores["one by one"], scores["joined"], strict=True)
    ]
    for place, some in (
        ("all", differences),
        ("the last quarter", differences[-max(1, len(differences) // 4) :]),
    ):
        print(format_row(f"joined less one by one, {place}", {
            column: bootstrap_mean(values)
            for column in COLUMNS
            if (values := [each[column] for each in some if column in each])
        }))  # fmt: skip


def choose_pairs(dataset: Dataset, args: argparse.Namespace) -> list[Pair]:
    """Different pairs of the split until they are long enough, or there are no more."""
    pairs: dict[Pair, None] = {}
    for seed in range(MAX_SEEDS):
        for pair in make_pairs(dataset, args.split, "swapped", seed=seed, speaker=args.speaker):
            if sum(count_pair_frames(dataset, each) for each in pairs) >= VIDEO_FPS * args.seconds:
                return list(pairs)
            pairs[pair] = None
    return list(pairs)


def format_interval(mean: Mean) -> str:
    return "" if mean.low is None else f" [{mean.low:.3f}, {mean.high:.3f}]"


def format_row(name: str, means: Mapping[str, Mean]) -> str:
    cells = (
        f"{means[column].value:.3f}" + format_interval(means[column]) if column in means else "not measured"
        for column in COLUMNS
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except (ModelError, ShardError, Drop, OSError) as err:
        sys.exit(f"long_speech: {err}")
