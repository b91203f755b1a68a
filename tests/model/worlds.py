"""Small worlds to train in: faces of noise, a network of a few channels, a folder for the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model import loop
from model.audio import AudioParams
from model.checkpoint import TrainState
from model.machine import Machine, Ranks
from model.recipe import OptimParams, Recipe, WatchParams
from model.unet import UNetParams
from shards.loader import Resident, load_resident
from shards.reader import open_dataset
from tests import datasets

SIZE, N_MELS = 16, 4
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)

TINY = Recipe(
    network=UNetParams(
        size=SIZE,
        mask_channel=True,
        channels=32,
        multiples=(1, 1),
        blocks=1,
        attention_sizes=(),
        head_channels=32,
        audio=AudioParams(n_mels=N_MELS),
    ),
    optim=OptimParams(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
    watch=WatchParams(log_every=4, evaluate_every=6, save_every=6, held_out_frames=8, pictures=2),
    batch=8,
    steps=12,
    held_out_share=0.2,
)


def dataset(folder: Path, lengths: Sequence[int] = (9, 12, 7, 11), *, seed: int = 0) -> Path:
    """A finished dataset of noise: one clip for each length."""
    rng = np.random.default_rng(seed)
    clips = [
        datasets.pack(
            f"s1_clip{number}",
            rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
            box=(4, 8, 12, 15),
            mels=rng.uniform(-80, 0, (2 * length, N_MELS)).astype(np.float32),
        )
        for number, length in enumerate(lengths)
    ]
    params = {"align": {"size": SIZE}, "mels": {"n_mels": N_MELS, "top_db": 80.0}}
    return datasets.write(folder, clips, params=params)


def resident(folder: Path, clip_ids: Sequence[str] | None = None, *, pad: int = 2) -> Resident:
    """The dataset in memory."""
    opened = open_dataset(folder)
    return load_resident(
        opened,
        list(opened.clips) if clip_ids is None else clip_ids,
        size=SIZE,
        n_mels=N_MELS,
        mel_pad=pad,
        silence_db=-80.0,
        device=CPU,
        frames_on=CPU,
        workers=2,
    )


def trained(
    data: Resident, run: Path, recipe: Recipe = TINY, *, state: TrainState | None = None, steps: int = 0
) -> TrainState:
    """The state after training to ``steps``, or as far as the recipe says."""
    state = state or loop.new_state(recipe, CPU)
    recipe = replace(recipe, steps=steps or recipe.steps)
    loop.train(state, data, None, recipe=recipe, machine=Machine(), ranks=ALONE, run=run, digest="d")
    return state
