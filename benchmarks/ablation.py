"""Which repairs buy obedience to the sound, and which hold the drift: equal minutes each, one table.

    python benchmarks/ablation.py --shards data/grid/shards --minutes 10 --to runs/ablation
    python benchmarks/ablation.py --shards data/made/shards --minutes 1 --to runs/a --preset demo --only ours

Every row is a `pipeline train` of its own, stopped by SIGTERM after the same minutes, so a slower network
sees fewer frames. Then the clips of the test split are drawn free-running: to their own speech, for drift
(masked PSNR at the first frames and at the last), and to each other's, for audio obedience. A run that is
there goes on from where it is: more minutes may be added later.
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
from stages.sample.run import drawn
from stages.train import RUN_FILE

# name -> what is set back to the paper's way in our preset
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
PAPER = "paper"  # its own preset
EDGE = 10  # frames at either end that drift is told from


def train(shards: str, run: Path, preset: str, changes: dict[str, Any], minutes: float, device: str) -> None:
    """Train for so long, or go on for so long."""
    settings = {"steps": 10**8, "optim.after_warmup": "constant", **changes}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = ["-m", "pipeline.main", "train", "--shards", shards, "--run", str(run), "--preset", preset]
    begun = stamp_of(run)
    process = subprocess.Popen([sys.executable, *command, "--device", device, *words])
    while process.poll() is None and stamp_of(run) == begun:
        time.sleep(0.1)  # imports and decoding are not training
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    if process.wait():
        raise SystemExit(f"{run}: training ended with status {process.returncode}")


def stamp_of(run: Path) -> int:
    """When the run last began to train, in ns."""
    path = run / RUN_FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def measured(
    run: Path, dataset: Dataset, split: str, params: SampleParams, device: str, clips: int | None
) -> dict[str, Any]:
    """Drift and obedience of a run on clips of a split."""
    network, saved = load_network(run, which="newest")
    generator = FrameGenerator(network, saved.recipe, params, select_device(device), Execution())
    own = make_pairs(dataset, split, "own", seed=params.seed)[:clips]
    start, end = [], []
    for pair, frames in drawn(generator, dataset, own, slots=len(own), told=lambda _: None):
        clip = read_clip(dataset, pair.clip_id)
        errors = squared_errors(frames, clip.frames, clip.boxes)
        start.append(compute_psnr(errors[:EDGE]))
        end.append(compute_psnr(errors[-EDGE:]))
    swapped = make_pairs(dataset, split, "swapped", seed=params.seed)[:clips]
    scores = []
    with faces.FaceFinder(weights.find(weights.LANDMARKER), max_faces=1) as find:
        wanted = {clip_id for pair in swapped for clip_id in (pair.clip_id, pair.audio_clip_id)}
        truth = {clip_id: find_mouths(read_clip(dataset, clip_id).frames, find) for clip_id in sorted(wanted)}
        for pair, frames in drawn(generator, dataset, swapped, slots=len(swapped), told=lambda _: None):
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
    parser.add_argument("--to", type=Path, required=True, help="folder of the runs and of ablation.json")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--preset", default="multi-speaker")
    parser.add_argument("--only", help="rows, with commas between them")
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, help="of the split; all without")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="in all rows")
    asked = parser.parse_args()
    in_all = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in asked.set)}
    names = asked.only.split(",") if asked.only else [*ROWS, PAPER]
    dataset = open_dataset(Path(asked.shards))
    params = SampleParams(steps=asked.steps, guidance=asked.guidance)
    table: dict[str, Any] = {}
    for name in names:
        run = asked.to / name.replace(" ", "-").replace(",", "")
        preset = "paper-multi-speaker" if name == PAPER else asked.preset
        changes = {} if name == PAPER else ROWS[name]
        train(asked.shards, run, preset, in_all | changes, asked.minutes, asked.device)
        table[name] = measured(run, dataset, asked.split, params, asked.device, asked.clips)
        row = table[name]
        drift = f"{row['psnr_start']:5.1f} -> {row['psnr_end']:5.1f} dB"
        told = f"masked PSNR {drift}  obedience {row['obedience_told']}"
        print(f"{name:<22} step {row['step']:>8}  {told}", flush=True)
        (asked.to / "ablation.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
