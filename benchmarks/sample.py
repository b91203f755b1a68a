"""Measure sampling speed, ours and that of the paper's method, on the same network; and quality by steps.

    python benchmarks/sample.py --json sample.json
    python benchmarks/sample.py --run runs/x --shards data/grid/shards       (and quality, on the test split)
    python benchmarks/sample.py --run runs/x --shards data/grid/shards --only quality
    python benchmarks/sample.py --small                                      (half a minute on a CPU)

Ours is ``sampler.rollout.FrameGenerator`` as users run it. The paper's method generates one clip, one frame
at a time: eager, fp32, ancestral, with audio and noise level embedded again at each step, and each frame
written to a PNG file and read again as the previous frame of the next. Its loader's MediaPipe and its eight
intermediate images per frame are omitted, in its favour.

Without --run the network is untrained: its weights are random, which costs the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from train import MOUTH, synchronize

from model.audio import SILENCE_DB
from model.batch import boxes_to_masks, to_float, to_pixels
from model.checkpoint import load_network
from model.denoiser import embed_noise_level, estimate_y_0
from model.execution import Execution, select_device
from model.recipe import PRESETS, Recipe, build_recipe
from model.unet import UNet, count_parameters
from sampler.params import SampleParams, SamplerName
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from sampler.steps import KnownPixels, noise_levels, sample
from shards.schema import MELS_PER_FRAME

SAMPLER: SamplerName = "dpm++2m"
PAPER_STEPS = 100
SEED = 0


def make_crops(size: int, n_frames: int, seed: int) -> Iterator[CropFrame]:
    """Random frames that share one array, so that making them costs nothing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    box = (np.array(MOUTH) * size).round().astype(np.int16)
    return (CropFrame(pixels, box) for _ in range(n_frames))


def make_requests(recipe: Recipe, lengths: Sequence[int]) -> Iterator[ClipRequest]:
    n_mels = recipe.network.audio.n_mels
    for number, n_frames in enumerate(lengths):
        mels = np.full((MELS_PER_FRAME * n_frames, n_mels), SILENCE_DB, np.float32)
        yield ClipRequest(f"clip{number}", make_crops(recipe.network.size, n_frames, number), mels)


def time_rollout(generator: FrameGenerator, recipe: Recipe, lengths: Sequence[int], slots: int) -> float:
    """Wall time of a rollout in seconds, until its last frame is on the host."""
    synchronize(generator.device)
    start = time.perf_counter()
    n_frames = sum(1 for _ in generator.rollout(make_requests(recipe, lengths), slots=slots))
    assert n_frames == sum(lengths), "every frame is generated once"
    return time.perf_counter() - start


def warm_up(generator: FrameGenerator, recipe: Recipe, slots: int) -> None:
    """Compile and capture CUDA graphs, so that it is not measured."""
    time_rollout(generator, recipe, [2] * slots, slots)


def measure_rate(
    generator: FrameGenerator, recipe: Recipe, *, slots: int, n_frames: int, repeats: int
) -> dict[str, float]:
    """Frames/s with all slots in use, the median of ``repeats`` runs, and figures derived from it."""
    warm_up(generator, recipe, slots)
    return measure_warm_rate(generator, recipe, slots=slots, n_frames=n_frames, repeats=repeats)


def measure_warm_rate(
    generator: FrameGenerator, recipe: Recipe, *, slots: int, n_frames: int, repeats: int
) -> dict[str, float]:
    """``measure_rate`` of a generator that has run with as many slots before."""
    runs = [
        slots * n_frames / time_rollout(generator, recipe, [n_frames] * slots, slots) for _ in range(repeats)
    ]
    frames_per_second = statistics.median(runs)
    frame_steps = frames_per_second * generator.params.steps
    return {
        "slots": slots,
        "steps": generator.params.steps,
        "frames_per_second": frames_per_second,
        "slowest": min(runs),
        "fastest": max(runs),
        "frame_steps_per_second": frame_steps,
        "ms_per_step": 1000 * slots / frame_steps,
    }


def measure_uneven(
    generator: FrameGenerator, recipe: Recipe, *, slots: int, lengths: Sequence[int], best: float
) -> dict[str, float]:
    """Time for clips of uneven length, relative to all their frames at the best rate, and that of padding.

    The longest clips come first, as in `pipeline sample`.
    """
    warm_up(generator, recipe, slots)
    seconds = time_rollout(generator, recipe, sorted(lengths, reverse=True), slots)
    padded = sum(max(lengths[k : k + slots]) * slots for k in range(0, len(lengths), slots))
    return {
        "clips": len(lengths),
        "frames": sum(lengths),
        "seconds": seconds,
        "over_ideal": seconds * best / sum(lengths),
        "padding_over_ideal": padded / sum(lengths),
    }


# --- the paper's method ---------------------------------------------------------------------------


@torch.no_grad()
def measure_paper(network: UNet, recipe: Recipe, device: torch.device, *, steps: int, n_frames: int) -> float:
    """Frames/s of one clip, frame by frame through PNG files."""
    network = network.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    gammas = noise_levels(recipe.noise, steps)
    audio = recipe.network.audio
    mels = torch.full((1, audio.rows, audio.n_mels), SILENCE_DB, device=device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    def generate_frame(source: CropFrame, folder: Path, k: int) -> None:
        y_0 = to_float(torch.from_numpy(source.pixels).to(device).permute(2, 0, 1)[None])
        mask = boxes_to_masks(torch.from_numpy(source.box).to(device)[None], recipe.network.size)
        previous, first = (cv2.imread(str(folder / f"{name}.png")) for name in (k - 1, 0))
        conditioning = [
            to_float(torch.from_numpy(image).to(device).permute(2, 0, 1)[None]) for image in (previous, first)
        ]
        if recipe.network.mask_channel:
            conditioning.append(mask)

        def denoise(y: Tensor, gamma: float) -> Tensor:
            level = torch.full((1,), gamma, dtype=torch.float32, device=device)
            embedded = embed_noise_level(level, recipe.noise.embedding)
            prediction = network(torch.cat([y, *conditioning], dim=1), embedded, mels)
            return estimate_y_0(y, prediction, level, recipe.noise.target).clamp(-1, 1)

        image = sample(
            "ancestral",
            denoise,
            torch.randn_like(y_0),
            gammas,
            noise=lambda _: torch.randn_like(y_0),
            known_pixels=KnownPixels(mask, y_0),
        )
        cv2.imwrite(str(folder / f"{k}.png"), to_pixels(image)[0].permute(1, 2, 0).cpu().numpy())

    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for k, source in enumerate(make_crops(recipe.network.size, n_frames + 2, 0)):
                if k == 0:
                    cv2.imwrite(str(folder / "0.png"), source.pixels)
                    continue
                if k == 2:  # frame 1 is the warm-up
                    synchronize(device)
                    start = time.perf_counter()
                generate_frame(source, folder, k)
            synchronize(device)
            return n_frames / (time.perf_counter() - start)
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")


# --- quality --------------------------------------------------------------------------------------


def measure_quality(
    network: UNet, recipe: Recipe, shards: Path, device: torch.device, *, steps: Sequence[int], clips: int
) -> dict[int, dict[str, float]]:
    """By number of steps: masked PSNR and correlation of the mouth opening with the ground truth.

    A few test clips are generated with their own speech, each frame from the generated one before it.
    """
    # only here: benchmarks/gpu.py runs in an environment without what these need
    from shards.reader import open_dataset, read_clip
    from stages.media import weights
    from stages.media.faces import FaceFinder
    from stages.metrics.mouth import correlation, openings
    from stages.metrics.mouth_finder import find_mouths
    from stages.metrics.pixels import compute_psnr, squared_errors
    from stages.sample.generate import generate_clips
    from stages.sample.pairs import make_pairs

    dataset = open_dataset(shards)
    pairs = make_pairs(dataset, "test", "own", seed=SEED)[:clips]
    scores: dict[int, dict[str, float]] = {}
    with FaceFinder(weights.find(weights.LANDMARKER), max_faces=1) as find:
        truths = {pair.clip_id: read_clip(dataset, pair.clip_id) for pair in pairs}
        true_openings = {
            clip_id: openings(find_mouths(clip.frames, find)) for clip_id, clip in truths.items()
        }
        for n in steps:
            generator = FrameGenerator(
                network, recipe, SampleParams(sampler=SAMPLER, steps=n, guidance=1.0), device, Execution()
            )
            psnr, correlations = [], []
            for pair, frames in generate_clips(generator, dataset, pairs, slots=len(pairs)):
                truth = truths[pair.clip_id]
                psnr.append(compute_psnr(squared_errors(frames, truth.frames, truth.boxes)))
                opening = openings(find_mouths(frames, find))
                correlations.append(correlation(opening, true_openings[pair.clip_id]))
            scores[n] = {
                "masked_psnr_db": float(np.mean(psnr)),
                "opening_correlation": float(np.nanmean(correlations)),
            }
            print(f"  {n} steps: {scores[n]}", flush=True)
    return scores


# --- tables ---------------------------------------------------------------------------------------


def format_table(rows: Sequence[dict[str, float]]) -> str:
    names = list(rows[0])
    lines = [names, *([f"{row[name]:.4g}" for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def measure_speed(
    make_generator: Callable[[int], FrameGenerator],
    network: UNet,
    recipe: Recipe,
    device: torch.device,
    args: argparse.Namespace,
    quality: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    """Measure and print all tables of speed; the one by steps has the quality too."""
    n_clips, paper_steps, paper_frames = (4, 4, 2) if args.small else (64, PAPER_STEPS, 3)
    few = args.steps[min(1, len(args.steps) - 1)]
    print(f"\nby slots, {few} steps")
    by_slots = [
        measure_rate(make_generator(few), recipe, slots=slots, n_frames=args.frames, repeats=args.repeats)
        for slots in args.slots
    ]
    print(format_table(by_slots))
    print(f"\nby steps, one clip and {n_clips}")
    by_steps = [
        measure_rate(make_generator(steps), recipe, slots=slots, n_frames=args.frames, repeats=args.repeats)
        | dict(quality.get(steps, {}))
        for slots in (1, n_clips)
        for steps in args.steps
    ]
    print(format_table(by_steps))
    best = max(by_slots, key=lambda row: row["frames_per_second"])
    lengths = np.random.default_rng(SEED).integers(args.frames // 2, 2 * args.frames, n_clips).tolist()
    slots = min(int(best["slots"]), max(1, n_clips // 4))
    full = measure_rate(make_generator(few), recipe, slots=slots, n_frames=args.frames, repeats=args.repeats)
    ragged = measure_uneven(
        make_generator(few), recipe, slots=slots, lengths=lengths, best=full["frames_per_second"]
    )
    print(f"\n{n_clips} clips of uneven length in {slots} slots, {few} steps\n{format_table([ragged])}")
    paper_rate = measure_paper(network, recipe, device, steps=paper_steps, n_frames=paper_frames)
    ours = measure_rate(make_generator(paper_steps), recipe, slots=n_clips, n_frames=2, repeats=1)
    our_rate = ours["frames_per_second"]
    paper = {
        "steps": paper_steps, "paper": paper_rate, "ours": our_rate, "ours_over_paper": our_rate / paper_rate,
    }  # fmt: skip
    print(f"\nthe paper's method, frames/s at {paper_steps} steps; ours with {n_clips} clips")
    print(format_table([paper]))
    return {"by_slots": by_slots, "by_steps": by_steps, "uneven": ragged, "paper": paper}


def main() -> None:
    from stages.media.networks import find_network

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="multi-speaker", choices=[*PRESETS])
    parser.add_argument("--run", type=find_network, help="a trained network instead of a preset")
    parser.add_argument("--shards", type=Path, help="with --run: quality on the test split")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--frames", type=int, default=20, help="of each clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=4, help="of the test split, for quality")
    parser.add_argument("--only", choices=["speed", "quality"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    device = select_device(args.device)
    if args.small:
        args.preset, args.slots, args.steps, args.frames = "demo", [1, 4], [2, 4], 2
    if args.run:
        network, checkpoint = load_network(args.run)
        recipe = checkpoint.recipe
    else:
        recipe = build_recipe(args.preset)
        torch.manual_seed(SEED)
        network = UNet(recipe.network).eval()

    def make_generator(steps: int) -> FrameGenerator:
        return FrameGenerator(
            network, recipe, SampleParams(sampler=SAMPLER, steps=steps, guidance=1.0), device, Execution()
        )

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    network_name = f"{args.run or args.preset}, {count_parameters(network):,} parameters"
    print(f"{name}, PyTorch {torch.__version__}, {network_name}")
    quality: dict[int, dict[str, float]] = {}
    if args.run and args.shards and args.only != "speed":
        print(f"\nquality, {args.clips} clips of the test split")
        quality = measure_quality(network, recipe, args.shards, device, steps=args.steps, clips=args.clips)
    results: dict[str, Any] = {"device": name, "quality": quality}
    if args.only != "quality":
        results |= measure_speed(make_generator, network, recipe, device, args, quality)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
