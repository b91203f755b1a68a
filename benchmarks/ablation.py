"""Which of our changes to the paper's recipe improve audio obedience and drift, after equal minutes each.

    python benchmarks/ablation.py --shards data/grid/shards --minutes 10 --to runs/ablation
    python benchmarks/ablation.py --shards data/made/shards --minutes 1 --to runs/a --preset demo --only ours

Every row is a `pipeline train` of its own, stopped by SIGTERM after the same minutes, so a slower network is
trained on fewer frames. Then the clips of the test split are generated autoregressively: with their own
speech, for drift (masked PSNR of the first frames and of the last), and with each other's, for audio
obedience. An existing run is resumed, so minutes can be added later.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import load_network
from model.execution import Execution, select_device
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from shards.reader import Dataset, open_dataset, read_clip
from stages.evaluate.metrics.obedience import bootstrap_mean
from stages.evaluate.metrics.pixels import compute_psnr, squared_errors
from stages.evaluate.mouths import find_mouths
from stages.evaluate.scores import score_obedience
from stages.media import faces, weights
from stages.sample.pairs import make_pairs
from stages.sample.run import generate_clips
from stages.train import RUN_FILE

# name -> what is changed in our preset, mostly back to the paper's choice
ROWS: dict[str, dict[str, Any]] = {
    "ours": {},
    "gamma embedding": {"noise.embedding": "gamma"},
    "epsilon target": {"noise.target": "epsilon"},
    "kaiming init": {"network.zero_init": False},
    "raw dB": {"network.audio.normalised": False},
    "four mel rows": {"network.audio.rows_after": 1},
    "conv audio, 17 rows": {
        "network.audio.encoder": "conv", "network.audio.rows_before": 8, "network.audio.rows_after": 8,
    },
    "no mask channel": {"network.mask_channel": False},
    "loss over all pixels": {"loss.over_mask": False},
    "no lip weight": {"loss.lip_weight": 0},
    "min-SNR 5": {"noise.min_snr": 5},
    "first frame leaks": {"frames.before_first": "target"},
    "identity is frame 0": {"frames.identity": "first"},
    "previous always shown": {"frames.previous_hidden": 0},
    "previous clean": {"frames.previous_noise": 0, "frames.previous_warp": 0, "frames.previous_blur": 0},
    "audio never dropped": {"frames.audio_dropped": 0},
}  # fmt: skip
PAPER = "paper"  # a row with the paper's preset
EDGE_FRAMES = 10  # at either end of a clip, between which drift is measured


def train(shards: str, run: Path, preset: str, changes: dict[str, Any], minutes: float, device: str) -> None:
    """Train a new or an existing run for ``minutes``."""
    settings = {"steps": 10**8, "optim.after_warmup": "constant", **changes}
    options = [arg for name, value in settings.items() for arg in ("--set", f"{name}={json.dumps(value)}")]
    command = ["-m", "pipeline.main", "train", "--shards", shards, "--run", str(run), "--preset", preset]
    start = get_start_time(run)
    process = subprocess.Popen([sys.executable, *command, "--device", device, *options])
    while process.poll() is None and get_start_time(run) == start:
        time.sleep(0.1)  # imports and decoding are not training
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    if process.wait():
        raise SystemExit(f"{run}: training ended with status {process.returncode}")


def get_start_time(run: Path) -> int:
    """When the run last started to train, in ns; 0 if never."""
    path = run / RUN_FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def measure_run(
    run: Path, dataset: Dataset, split: str, params: SampleParams, device: str, clips: int | None
) -> dict[str, Any]:
    """Drift and audio obedience of a run on clips of a split."""
    network, saved = load_network(run, which="newest")
    generator = FrameGenerator(network, saved.recipe, params, select_device(device), Execution())
    own = make_pairs(dataset, split, "own", seed=params.seed)[:clips]
    start, end = [], []
    for pair, frames in generate_clips(generator, dataset, own, slots=len(own)):
        clip = read_clip(dataset, pair.clip_id)
        errors = squared_errors(frames, clip.frames, clip.boxes)
        start.append(compute_psnr(errors[:EDGE_FRAMES]))
        end.append(compute_psnr(errors[-EDGE_FRAMES:]))
    swapped = make_pairs(dataset, split, "swapped", seed=params.seed)[:clips]
    scores = []
    with faces.FaceFinder(weights.find(weights.LANDMARKER), max_faces=1) as find:
        clip_ids = {clip_id for pair in swapped for clip_id in (pair.clip_id, pair.audio_clip_id)}
        truth = {
            clip_id: find_mouths(read_clip(dataset, clip_id).frames, find) for clip_id in sorted(clip_ids)
        }
        for pair, frames in generate_clips(generator, dataset, swapped, slots=len(swapped)):
            mouths = find_mouths(frames, find)
            scores.append(score_obedience(mouths, truth[pair.audio_clip_id], truth[pair.clip_id]))
    return {
        "step": saved.step,
        "psnr_start": float(np.mean(start)),
        "psnr_end": float(np.mean(end)),
        "obedience": asdict(bootstrap_mean(scores)),
        "obedience_told": str(bootstrap_mean(scores)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--to", type=Path, required=True, help="folder for the runs and ablation.json")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--preset", default="multi-speaker")
    parser.add_argument("--only", help="rows, separated by commas")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, help="number of clips of the split; default: all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for all rows")
    args = parser.parse_args()
    common = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in args.set)}
    names = args.only.split(",") if args.only else [*ROWS, PAPER]
    dataset = open_dataset(Path(args.shards))
    params = SampleParams(steps=args.steps, guidance=args.guidance)
    table: dict[str, Any] = {}
    for name in names:
        run = args.to / name.replace(" ", "-").replace(",", "")
        preset = "paper-multi-speaker" if name == PAPER else args.preset
        changes = {} if name == PAPER else ROWS[name]
        train(args.shards, run, preset, common | changes, args.minutes, args.device)
        table[name] = measure_run(run, dataset, args.split, params, args.device, args.clips)
        row = table[name]
        drift = f"{row['psnr_start']:5.1f} -> {row['psnr_end']:5.1f} dB"
        text = f"masked PSNR {drift}  obedience {row['obedience_told']}"
        print(f"{name:<22} step {row['step']:>8}  {text}", flush=True)
        (args.to / "ablation.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
