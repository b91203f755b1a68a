"""Sampling speed: ours and the paper's way, on the same network, on what is here; and quality by steps.

    python benchmarks/sample.py --json sample.json
    python benchmarks/sample.py --run runs/x --shards data/grid/shards       (and quality, on the test split)
    python benchmarks/sample.py --run runs/x --shards data/grid/shards --only quality
    python benchmarks/sample.py --small                                      (half a minute on a CPU)

Ours is ``sampler.rollout.FrameGenerator`` as users run it. The paper's way draws one clip, one frame at a time:
eager, fp32, ancestral, with audio and noise embedded anew at each step, and each frame handed on through a
PNG file. Its loader's MediaPipe and its eight intermediate pictures a frame are left out, in its favour.

Without --run the network has drawn nothing yet: its weights are random, which costs the same.
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

from model.audio import SILENCE_DB
from model.batch import boxes_to_masks, to_float, to_pixels
from model.checkpoint import load_network
from model.denoiser import embed_noise_level, estimate_y_0
from model.execution import Execution, select_device
from model.recipe import PRESETS, Recipe, build_recipe
from model.unet import UNet, count_parameters
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from sampler.steps import KnownPixels, levels, sample
from shards.reader import open_dataset, read_clip
from shards.schema import MELS_PER_FRAME
from stages.evaluate.metrics.mouth import correlation, openings
from stages.evaluate.metrics.pixels import compute_psnr, squared_errors
from stages.evaluate.mouths import find_mouths
from stages.media import weights
from stages.media.faces import FaceFinder
from stages.sample.pairs import make_pairs
from stages.sample.run import generate_clips

MOUTH = (0.20, 0.48, 0.80, 0.92)  # x0 y0 x1 y1 of the mask box, as shares of the crop
SAMPLER = "dpm++2m"
PAPER_STEPS = 100
SEED = 0


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def crops(size: int, n_frames: int, seed: int) -> Iterator[CropFrame]:
    """Random frames, one array for all: making them must not cost anything."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    box = (np.array(MOUTH) * size).round().astype(np.int16)
    return (CropFrame(pixels, box) for _ in range(n_frames))


def takes(recipe: Recipe, lengths: Sequence[int]) -> Iterator[ClipRequest]:
    n_mels = recipe.network.audio.n_mels
    for number, n_frames in enumerate(lengths):
        mels = np.full((MELS_PER_FRAME * n_frames, n_mels), SILENCE_DB, np.float32)
        yield ClipRequest(f"clip{number}", crops(recipe.network.size, n_frames, number), mels)


def seconds_of(generator: FrameGenerator, recipe: Recipe, lengths: Sequence[int], slots: int) -> float:
    """Wall time of a rollout, ended by its last frame on the host."""
    synchronize(generator.device)
    started = time.perf_counter()
    n_frames = sum(1 for _ in generator.rollout(takes(recipe, lengths), slots=slots))
    assert n_frames == sum(lengths), "every frame is drawn once"
    return time.perf_counter() - started


def warm(generator: FrameGenerator, recipe: Recipe, slots: int) -> None:
    """Compile and capture, which is not counted."""
    seconds_of(generator, recipe, [2] * slots, slots)


def rate(
    generator: FrameGenerator, recipe: Recipe, *, slots: int, n_frames: int, repeats: int
) -> dict[str, float]:
    """Frames/s with full slots, the median of some runs, and what follows from it."""
    warm(generator, recipe, slots)
    runs = [
        slots * n_frames / seconds_of(generator, recipe, [n_frames] * slots, slots) for _ in range(repeats)
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


def uneven(
    generator: FrameGenerator, recipe: Recipe, *, slots: int, lengths: Sequence[int], best: float
) -> dict[str, float]:
    """Time for clips of uneven length against all their frames at the best rate, and against padding.

    The longest come first, as in `pipeline sample`.
    """
    warm(generator, recipe, slots)
    seconds = seconds_of(generator, recipe, sorted(lengths, reverse=True), slots)
    padded = sum(max(lengths[k : k + slots]) * slots for k in range(0, len(lengths), slots))
    return {
        "clips": len(lengths),
        "frames": sum(lengths),
        "seconds": seconds,
        "over_ideal": seconds * best / sum(lengths),
        "padding_over_ideal": padded / sum(lengths),
    }


# --- the paper's way ------------------------------------------------------------------------------


@torch.no_grad()
def papers_way(network: UNet, recipe: Recipe, device: torch.device, *, steps: int, n_frames: int) -> float:
    """Frames/s of one clip, frame by frame through PNG files."""
    network = network.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    gammas = levels(recipe.noise, steps)
    audio = recipe.network.audio
    mels = torch.full((1, audio.rows, audio.n_mels), SILENCE_DB, device=device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    def frame(source: CropFrame, folder: Path, k: int) -> None:
        y_0 = to_float(torch.from_numpy(source.pixels).to(device).permute(2, 0, 1)[None])
        mask = boxes_to_masks(torch.from_numpy(source.box).to(device)[None], recipe.network.size)
        before, first = (cv2.imread(str(folder / f"{name}.png")) for name in (k - 1, 0))
        beside = [
            to_float(torch.from_numpy(image).to(device).permute(2, 0, 1)[None]) for image in (before, first)
        ]
        if recipe.network.mask_channel:
            beside.append(mask)

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            said = network(
                torch.cat([y, *beside], dim=1), embed_noise_level(gamma, recipe.noise.embedding), mels
            )
            return estimate_y_0(y, said, gamma, recipe.noise.target).clamp(-1, 1)

        image = sample(
            "ancestral",
            denoise,
            torch.randn_like(y_0),
            gammas,
            noise=lambda _: torch.randn_like(y_0),
            known=KnownPixels(mask, y_0),
        )
        cv2.imwrite(str(folder / f"{k}.png"), to_pixels(image)[0].permute(1, 2, 0).cpu().numpy())

    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for k, source in enumerate(crops(recipe.network.size, n_frames + 2, 0)):
                if k == 0:
                    cv2.imwrite(str(folder / "0.png"), source.pixels)
                    continue
                if k == 2:  # the first one warmed up
                    synchronize(device)
                    started = time.perf_counter()
                frame(source, folder, k)
            synchronize(device)
            return n_frames / (time.perf_counter() - started)
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")


# --- quality --------------------------------------------------------------------------------------


def quality(
    network: UNet, recipe: Recipe, shards: Path, device: torch.device, *, steps: Sequence[int], clips: int
) -> dict[int, dict[str, float]]:
    """By steps: masked PSNR of a few test clips drawn to their own speech, and whether the mouth keeps time.

    Free-running from the first frame on, each frame after the one drawn before it.
    """
    dataset = open_dataset(shards)
    pairs = make_pairs(dataset, "test", "own", seed=SEED)[:clips]
    told: dict[int, dict[str, float]] = {}
    with FaceFinder(weights.find(weights.LANDMARKER), max_faces=1) as find:
        truths = {pair.clip_id: read_clip(dataset, pair.clip_id) for pair in pairs}
        opened = {clip_id: openings(find_mouths(clip.frames, find)) for clip_id, clip in truths.items()}
        for n in steps:
            generator = FrameGenerator(
                network, recipe, SampleParams(sampler=SAMPLER, steps=n), device, Execution()
            )
            psnr, keeping_time = [], []
            for pair, frames in generate_clips(generator, dataset, pairs, slots=len(pairs)):
                truth = truths[pair.clip_id]
                psnr.append(compute_psnr(squared_errors(frames, truth.frames, truth.boxes)))
                keeping_time.append(correlation(openings(find_mouths(frames, find)), opened[pair.clip_id]))
            told[n] = {
                "masked_psnr_db": float(np.mean(psnr)),
                "opening_correlation": float(np.nanmean(keeping_time)),
            }
            print(f"  {n} steps: {told[n]}", flush=True)
    return told


# --- the table ------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, float]]) -> str:
    names = list(rows[0])
    lines = [names, *([f"{row[name]:.4g}" for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in lines
    )


def speed(
    generator: Callable[[int], FrameGenerator],
    network: UNet,
    recipe: Recipe,
    device: torch.device,
    asked: argparse.Namespace,
    seen: Mapping[int, Mapping[str, float]],
) -> dict[str, Any]:
    """Every table of speed; quality stands beside the steps that it was seen with."""
    many, paper_steps, paper_frames = (4, 4, 2) if asked.small else (64, PAPER_STEPS, 3)
    few = asked.steps[min(1, len(asked.steps) - 1)]
    print(f"\nby slots, {few} steps")
    by_slots = [
        rate(generator(few), recipe, slots=slots, n_frames=asked.frames, repeats=asked.repeats)
        for slots in asked.slots
    ]
    print(table(by_slots))
    print(f"\nby steps, one clip and {many}")
    by_steps = [
        rate(generator(steps), recipe, slots=slots, n_frames=asked.frames, repeats=asked.repeats)
        | dict(seen.get(steps, {}))
        for slots in (1, many)
        for steps in asked.steps
    ]
    print(table(by_steps))
    best = max(by_slots, key=lambda row: row["frames_per_second"])
    lengths = np.random.default_rng(SEED).integers(asked.frames // 2, 2 * asked.frames, many).tolist()
    slots = min(int(best["slots"]), max(1, many // 4))
    full = rate(generator(few), recipe, slots=slots, n_frames=asked.frames, repeats=asked.repeats)
    ragged = uneven(generator(few), recipe, slots=slots, lengths=lengths, best=full["frames_per_second"])
    print(f"\n{many} clips of uneven length in {slots} slots, {few} steps\n{table([ragged])}")
    theirs = papers_way(network, recipe, device, steps=paper_steps, n_frames=paper_frames)
    same = rate(generator(paper_steps), recipe, slots=many, n_frames=2, repeats=1)["frames_per_second"]
    paper = {"steps": paper_steps, "paper": theirs, "ours": same, "ours_over_paper": same / theirs}
    print(f"\nthe paper's way, frames/s at {paper_steps} steps; ours with {many} clips\n{table([paper])}")
    return {"by_slots": by_slots, "by_steps": by_steps, "uneven": ragged, "paper": paper}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="multi-speaker", choices=[*PRESETS])
    parser.add_argument("--run", type=Path, help="a trained run instead of a preset")
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
    asked = parser.parse_args()
    device = select_device(asked.device)
    if asked.small:
        asked.preset, asked.slots, asked.steps, asked.frames = "demo", [1, 4], [2, 4], 2
    if asked.run:
        network, saved = load_network(asked.run)
        recipe = saved.recipe
    else:
        recipe = build_recipe(asked.preset)
        torch.manual_seed(SEED)
        network = UNet(recipe.network).eval()

    def generator(steps: int) -> FrameGenerator:
        return FrameGenerator(
            network, recipe, SampleParams(sampler=SAMPLER, steps=steps), device, Execution()
        )

    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    drawn_by = f"{asked.run or asked.preset}, {count_parameters(network):,} parameters"
    print(f"{name}, PyTorch {torch.__version__}, {drawn_by}")
    seen: dict[int, dict[str, float]] = {}
    if asked.run and asked.shards and asked.only != "speed":
        print(f"\nquality, {asked.clips} clips of the test split")
        seen = quality(network, recipe, asked.shards, device, steps=asked.steps, clips=asked.clips)
    story: dict[str, Any] = {"device": name, "quality": seen}
    if asked.only != "quality":
        story |= speed(generator, network, recipe, device, asked, seen)
    if asked.json:
        asked.json.write_text(json.dumps(story, indent=1) + "\n")


if __name__ == "__main__":
    main()
