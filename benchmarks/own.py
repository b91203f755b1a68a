"""How fast and how far a trained model should be fine-tuned on some seconds of one person.

    python benchmarks/own.py --shards data/crema-d/shards --start-from runs/grid --clips 5 --to runs/own
    python benchmarks/own.py --shards data/strangers/shards --start-from runs/grid --speaker s31 --clips 3 \\
        --rates 2e-4 5e-4 1e-3 --samples 1200 3600 --to runs/own-s31

Trains on the first ``--clips`` clips of one speaker with the preset `own` at a constant learning rate, and
scores the model as it was before and at each of ``--samples``. Unseen clips (at most ``--unseen``) are drawn
with their own speech, which PSNR and colours compare with the true frames. The clips that were trained on
are drawn with the speech of unseen ones, as an edit of the person's own video would be, which obedience is
about: as many pairs as there are clips of the more numerous kind. A frozen mouth is scored beside them. With
``--sheets`` rows of pictures are written: every tenth frame of an unseen clip, the true one above the drawn
one. ``--set optim.after_warmup=cosine`` with one number of samples is what `pipeline edit --adapt` does.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ablation import ClipSet, TruthMouths, average_pairs, score_clips, score_frozen, write_json
from PIL import Image

from model import loop
from model.batch import build_network_input
from model.checkpoint import TrainState
from model.execution import Execution, Ranks, select_device
from model.recipe import Recipe, build_recipe, nest_changes
from model.start import Start, find_start
from pipeline.plain_yaml import parse_yaml
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from shards.reader import Dataset, open_dataset
from shards.resident import Resident, load_resident
from stages.media import weights
from stages.media.networks import find_network
from stages.sample.generate import generate_clips
from stages.sample.pairs import Pair, read_pair

COLUMNS = (
    "audio_obedience", "audio_obedience_net", "psnr_box_db", "border_colour", "identity_distance",
    "opening_correlation",
)  # fmt: skip
SHEET_STEP = 10  # frames


def choose_clips(dataset: Dataset, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The clips of the speaker to train on, and the unseen ones."""
    ids = sorted(dataset.clips)
    speakers = dataset.clips.column("speaker", ids)
    ids = [clip_id for clip_id, speaker in zip(ids, speakers, strict=True) if args.speaker in (None, speaker)]
    if len(ids) <= args.clips:
        raise SystemExit(f"{args.shards}: {len(ids)} clips of the speaker, expected more than {args.clips}")
    return ids[: args.clips], ids[args.clips :][: args.unseen]


def make_pairs(seen: list[str], unseen: list[str]) -> list[Pair]:
    """Unseen clips with their own speech; clips that were trained on with the speech of unseen ones."""
    own = [Pair(clip_id, clip_id) for clip_id in unseen]
    swapped = [
        Pair(seen[place % len(seen)], unseen[place % len(unseen)])
        for place in range(max(len(seen), len(unseen)))
    ]
    return own + swapped


def train_further(
    state: TrainState, data: Resident, recipe: Recipe, run: Path, samples: int, execution: Execution
) -> None:
    """Train a state until it has had so many samples."""
    recipe = replace(recipe, steps=-(-samples // recipe.batch))
    ranks = Ranks(0, 1, data.device)
    outcome = loop.train(
        state, data, None, recipe=recipe, execution=execution, ranks=ranks, run=run, digest="own"
    )
    if outcome != "done":
        raise SystemExit(f"{run}: {outcome}")


def measure(
    network: torch.nn.Module,
    start: Start,
    clip_set: ClipSet,
    truth: TruthMouths,
    name: str,
    args: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Scores by column of the pairs, drawn by a network."""
    params = SampleParams(steps=args.steps, guidance=args.guidance)
    execution = Execution(compile=False, precision=args.precision)
    generator = FrameGenerator(network, start.recipe, params, select_device(args.device), execution)  # type: ignore[arg-type]
    scores = average_pairs(score_clips(generator, clip_set, truth, args))
    if args.sheets:
        draw_sheet(generator, clip_set, args.to / f"{name}.png")
    return scores


def draw_sheet(generator: FrameGenerator, clip_set: ClipSet, path: Path) -> None:
    """Write every tenth frame of the first pair: true above drawn."""
    _, drawn = next(iter(generate_clips(generator, clip_set.dataset, clip_set.pairs[:1], slots=1)))
    true = read_pair(clip_set.dataset, clip_set.pairs[0])[0].frames[: len(drawn)]
    rows = [np.concatenate(list(frames[::SHEET_STEP]), axis=1) for frames in (true, drawn)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def format_mean(mean: dict[str, float]) -> str:
    interval = "" if mean.get("low") is None else " [{low:.2f}, {high:.2f}]"
    return ("{value:.2f}" + interval).format_map(mean)


def print_row(name: str, samples: int, seconds: float, scores: dict[str, dict[str, float]]) -> None:
    cells = [format_mean(scores[column]) if column in scores else "-" for column in COLUMNS]
    print(f"| {name} | {samples} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--start-from", type=find_network, required=True, metavar="NAME|DIR|FILE")
    parser.add_argument("--to", type=Path, required=True, help="folder for the runs and their results")
    parser.add_argument("--speaker", help="whose clips; default: all clips")
    parser.add_argument("--clips", type=int, default=5, help="to train on")
    parser.add_argument("--unseen", type=int, default=3, help="clips to test on, at most")
    parser.add_argument("--rates", type=float, nargs="*", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--samples", type=int, nargs="+", default=[1200, 3600])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument("--steps", type=int, default=2, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--sheets", action="store_true", help="write rows of pictures")
    parser.add_argument("--landmarker", type=Path, help="MediaPipe's face_landmarker.task")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--before", action=argparse.BooleanOptionalAction, default=True,
                        help="score the start itself and the frozen mouth")  # fmt: skip
    args = parser.parse_args()
    args.finders, args.alignments = 1, None
    return args


def main() -> None:
    args = parse_arguments()
    dataset = open_dataset(args.shards, hashes=False)
    start = find_start(args.start_from)
    seen, unseen = choose_clips(dataset, args)
    clip_set = ClipSet("", dataset, make_pairs(seen, unseen))
    changes = {name: parse_yaml(value) for name, _, value in (each.partition("=") for each in args.set)}
    recipe = build_recipe(
        "own", {"optim": {"after_warmup": "constant"}}, nest_changes(changes), start=start.recipe
    )
    device = select_device(args.device)
    execution = Execution(compile=args.compile, precision=args.precision)
    network_input = build_network_input(recipe.network, recipe.frames)
    data = load_resident(dataset, seen, network_input, device=device, workers=1)
    print(f"{len(data)} frames of {', '.join(seen)}; unseen: {', '.join(unseen)}")
    print(f"| learning rate | samples | training, s | {' | '.join(COLUMNS)} |")
    print(f"{'| --- ' * (3 + len(COLUMNS))}|", flush=True)
    results: dict[str, object] = {}
    with TruthMouths(args.landmarker or weights.find(weights.LANDMARKER)) as truth:
        if args.before:
            frozen = average_pairs(score_frozen(clip_set))
            print_row("frozen mouth", 0, 0, frozen)
            before = measure(start.load_network(), start, clip_set, truth, "before", args)
            print_row("before", 0, 0, before)
            results |= {"frozen mouth": frozen, "before": before}
        for rate in args.rates:
            own = replace(recipe, optim=replace(recipe.optim, learning_rate=rate))
            state = loop.create_state(own, device, start=start.load_network())
            seconds = 0.0
            for samples in sorted(args.samples):
                began = time.perf_counter()
                train_further(state, data, own, args.to / f"{rate:g}", samples, execution)
                seconds += time.perf_counter() - began
                name = f"{rate:g}-{samples}"
                scores = measure(state.ema, start, clip_set, truth, name, args)
                print_row(f"{rate:g}", samples, seconds, scores)
                results[name] = scores
                write_json(args.to / "result.json", results)


if __name__ == "__main__":
    main()
