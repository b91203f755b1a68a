"""Small datasets and runs for tests: clips of noise, a network of few channels, the train command."""

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
from torch import nn

from model import loop
from model.audio import AudioEncoder, AudioParams
from model.checkpoint import TrainState
from model.execution import Execution, Ranks
from model.recipe import OptimParams, Recipe, WatchParams
from model.unet import UNet, UNetParams
from shards.frames import FrameSource, NetworkInput
from shards.reader import open_dataset
from shards.resident import Resident, load_resident
from stages.train import run as train
from stages.train.run import TrainRequest
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


def build_encoder(params: AudioParams, embedding: int = 24) -> AudioEncoder:
    """An encoder as after some training: the branches that start at zero contribute."""
    torch.manual_seed(0)
    encoder = AudioEncoder(params, embedding)
    for parameter in encoder.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return encoder


def perturb_network(deviation: float) -> UNet:
    """A TINY network as after some training: its last layers, too, are not zero."""
    network = loop.create_state(TINY, CPU).ema
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))
    return network


def make_dataset(
    folder: Path,
    lengths: Sequence[int] = (9, 12, 7, 11),
    *,
    seed: int = 0,
    test: Sequence[str] = (),
    other_noise: Sequence[str] = (),
    speakers: Sequence[str] = (),
    per_shard: int = 0,
    speech_size: int = 0,
    box: Sequence[int] = (4, 8, 12, 15),
    **align: float,
) -> Path:
    """A dataset of noise: one clip for each length; ``test`` and ``other_noise`` are ids of clips.

    ``speakers`` are those of the clips, s1 of all by default. ``align``: params of that name in the manifest.
    """
    clips = []
    for number, length in enumerate(lengths):
        key = f"s1_clip{number}"
        rng = np.random.default_rng([seed, number, key in other_noise])
        clips.append(
            datasets.pack(
                key,
                rng.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8),
                box=box,
                mels=rng.uniform(-80, 0, (2 * length, N_MELS)).astype(np.float32),
                speech=rng.normal(1, 3, (2 * length, speech_size)).astype(np.float16)
                if speech_size
                else None,
                split="test" if key in test else "train",
                speaker=speakers[number] if speakers else "s1",
            )
        )
    params = {"align": {"size": SIZE, **align}, "mels": {"n_mels": N_MELS, "top_db": 80.0}}
    return datasets.write(folder, clips, per_shard=per_shard, params=params)


def load_dataset(
    folder: Path, clip_ids: Sequence[str] | None = None, *, pad: int = 2, speech_size: int = 0
) -> Resident:
    """The dataset in memory."""
    dataset = open_dataset(folder)
    return load_resident(
        dataset,
        list(dataset.clips) if clip_ids is None else clip_ids,
        replace(FIT, speech_size=speech_size, mel_pad=pad, speech_pad=pad),
        device=CPU,
        workers=2,
    )


def train_on(
    data: FrameSource, run: Path, recipe: Recipe = TINY, *, state: TrainState | None = None, steps: int = 0
) -> TrainState:
    """Train to ``steps``, or as far as the recipe says; return the state."""
    state = state or loop.create_state(recipe, CPU)
    recipe = replace(recipe, steps=steps or recipe.steps)
    loop.train(state, data, None, recipe=recipe, execution=Execution(), ranks=ALONE, run=run, digest="d")
    return state


def run_training(
    shards: Path, folder: Path, recipe: Recipe = TINY, *, set_aside: bool = False, **execution: Any
) -> str:
    """Train as the command does, in this process; return why it ended."""
    options = Execution(**execution)
    request = TrainRequest(str(shards), folder, "tiny", device="cpu", execution=options, set_aside=set_aside)
    return train.run(request, recipe)


def recipe_to_changes(recipe: Recipe) -> dict[str, Any]:
    """Changes that turn any preset into this recipe."""
    changes: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return changes


def make_command(
    shards: Path | str, folder: Path, recipe: Recipe, *options: str, ranks: int = 1
) -> list[str]:
    """The command line that trains with this recipe, on one process or more."""
    params = folder.parent / f"{folder.name}.yaml"
    params.write_text(
        json.dumps({"train": {"preset": "multi-speaker", "changes": recipe_to_changes(recipe)}})
    )
    # without the -- torchrun reads --run as an option of its own
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "--"]
    arguments = ["--shards", str(shards), "--run", str(folder), "--params", str(params), "--device", "cpu"]
    arguments += ["--precision", "fp32"]  # or a run of endless steps would begin with a trial
    return [
        sys.executable,
        "-m",
        *(torchrun if ranks > 1 else []),
        "pipeline.main",
        "train",
        *arguments,
        *options,
    ]


def run_command(command: list[str], code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command, which must exit with ``code``; return its output."""
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD | env
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result
