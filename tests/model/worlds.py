"""Small worlds to train in: faces of noise, a network of a few channels, a folder for the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import loop
from model.audio import AudioParams
from model.checkpoint import TrainState
from model.execution import Execution, Ranks
from model.recipe import OptimParams, Recipe, WatchParams
from model.unet import UNetParams
from shards.frames import FrameSource, NetworkInput
from shards.reader import open_dataset
from shards.resident import Resident, load_resident
from stages import train
from stages.train import TrainRequest
from tests import datasets

SIZE, N_MELS = 16, 8
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
FIT = NetworkInput(SIZE, N_MELS, -80.0)

TINY = Recipe(
    network=UNetParams(
        size=SIZE,
        mask_channel=True,
        channels=32,
        multiples=(1, 1),
        blocks=1,
        attention_sizes=(),
        head_channels=32,
        patch=2,
        audio=AudioParams(n_mels=N_MELS),
    ),
    optim=OptimParams(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
    watch=WatchParams(log_every=4, evaluate_every=6, save_every=6, held_out_frames=8, pictures=2),
    batch=8,
    steps=12,
    held_out_share=0.2,
)


def dataset(
    folder: Path,
    lengths: Sequence[int] = (9, 12, 7, 11),
    *,
    seed: int = 0,
    test: Sequence[str] = (),
    otherwise: Sequence[str] = (),
    per_shard: int = 0,
) -> Path:
    """A finished dataset of noise: one clip for each length, some in the test split, some of other noise."""
    clips = []
    for number, length in enumerate(lengths):
        key = f"s1_clip{number}"
        rng = np.random.default_rng([seed, number, key in otherwise])
        clips.append(
            datasets.pack(
                key,
                rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
                box=(4, 8, 12, 15),
                mels=rng.uniform(-80, 0, (2 * length, N_MELS)).astype(np.float32),
                split="test" if key in test else "train",
            )
        )
    params = {"align": {"size": SIZE}, "mels": {"n_mels": N_MELS, "top_db": 80.0}}
    return datasets.write(folder, clips, per_shard=per_shard, params=params)


def resident(folder: Path, clip_ids: Sequence[str] | None = None, *, pad: int = 2) -> Resident:
    """The dataset in memory."""
    opened = open_dataset(folder)
    return load_resident(
        opened,
        list(opened.clips) if clip_ids is None else clip_ids,
        FIT,
        mel_pad=pad,
        device=CPU,
        frames_on=CPU,
        workers=2,
    )


def trained(
    data: FrameSource, run: Path, recipe: Recipe = TINY, *, state: TrainState | None = None, steps: int = 0
) -> TrainState:
    """The state after training to ``steps``, or as far as the recipe says."""
    state = state or loop.new_state(recipe, CPU)
    recipe = replace(recipe, steps=steps or recipe.steps)
    loop.train(state, data, None, recipe=recipe, machine=Execution(), ranks=ALONE, run=run, digest="d")
    return state


def run(shards: Path, folder: Path, recipe: Recipe = TINY, **machine: Any) -> str:
    """Train as the command does, in this process; returns why it ended."""
    request = TrainRequest(str(shards), folder, "tiny", device="cpu", machine=Execution(**machine))
    return train.run(request, recipe)


def described(recipe: Recipe) -> dict[str, Any]:
    """Changes that make a recipe of any preset."""
    changes: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return changes


def command(shards: Path | str, folder: Path, recipe: Recipe, *words: str, ranks: int = 1) -> list[str]:
    """The command that trains by this recipe, on one process or more."""
    params = folder.parent / f"{folder.name}.yaml"
    params.write_text(json.dumps({"train": {"preset": "multi-speaker", "changes": described(recipe)}}))
    # after -- or torchrun takes --run for an option of its own
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "--"]
    options = ["--shards", str(shards), "--run", str(folder), "--params", str(params), "--device", "cpu"]
    return [sys.executable, "-m", *(several if ranks > 1 else []), "pipeline.main", "train", *options, *words]


def finished(command: list[str], code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """What a command said, which must end with ``code``."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD | env
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
