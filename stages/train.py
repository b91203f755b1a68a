"""Stage 6: a network from shards. Finds the data and the run's folder; ``model.loop`` does the rest."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from model import checkpoint, loop
from model.audio import SILENCE_DB
from model.interrupts import memory_told
from model.machine import Machine, Ranks, joined
from model.recipe import Recipe
from model.unet import parameter_count
from shards.atomic import written_whole
from shards.loader import TRAIN_SPLIT, Resident, check_fits, load_resident, split_off
from shards.reader import Dataset, open_dataset
from shards.storage import at_hand
from stages.work import StageError

RUN_FILE = "run.json"
LOCK_NAME = ".lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for, besides the recipe."""

    shards: str  # a folder, or an address
    run: Path
    preset: str
    device: str = "auto"  # auto, cpu or cuda
    frames_on: str = "device"  # device or host: where the decoded frames lie
    workers: int = 1  # threads that decode
    machine: Machine = field(default_factory=Machine)


def run(request: TrainRequest, recipe: Recipe) -> str:
    """Train a run, or go on with it; returns in a word or two why it ended.

    Raises StageError, ShardError or ModelError, each in one line.
    """
    with joined(request.device) as ranks:
        lock = FileLock(request.run / LOCK_NAME)
        if ranks.is_first:
            request.run.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout as err:
                raise StageError(f"--run {request.run}: another process trains there") from err
        try:
            return _train(request, recipe, ranks)
        finally:
            lock.release()


def _train(request: TrainRequest, recipe: Recipe, ranks: Ranks) -> str:
    dataset = open_dataset(at_hand(request.shards))
    digest = str(dataset.manifest["digest"])
    if ranks.is_first:
        checkpoint.forget_halves(request.run)
    saved = checkpoint.listed(request.run)
    if saved:
        checkpoint.check_same(saved[-1], recipe, digest)
    data, held = _load(request, recipe, dataset, ranks)
    with memory_told("the network", ranks.device, advice="try fewer network.channels"):
        state = loop.new_state(recipe, ranks.device)
        if saved:
            checkpoint.load_into(state, saved[-1])
    if ranks.is_first:
        _describe(request, recipe, digest)
        log.info(
            "%s: %s parameters, %d frames of %d clips to train on, %d of %d clips held out, %s",
            request.preset, f"{parameter_count(state.network):,}", len(data), len(data.clip_ids),
            len(held) if held else 0, len(held.clip_ids) if held else 0,
            f"going on at step {state.step}" if saved else f"new, on {ranks.world} x {ranks.device.type}",
        )  # fmt: skip
    return loop.train(
        state, data, held, recipe=recipe, machine=request.machine, ranks=ranks, run=request.run, digest=digest
    )


def _load(
    request: TrainRequest, recipe: Recipe, dataset: Dataset, ranks: Ranks
) -> tuple[Resident, Resident | None]:
    """The training clips and those held out, decoded."""
    audio = recipe.network.audio
    check_fits(dataset, size=recipe.network.size, n_mels=audio.n_mels, silence_db=SILENCE_DB)
    ids = [clip_id for clip_id, row in dataset.clips.items() if row["split"] == TRAIN_SPLIT]
    if not ids:
        raise StageError(f"{request.shards}: no clip is in the split {TRAIN_SPLIT!r}")
    trained, held = split_off(ids, recipe.held_out_share, seed=recipe.seed)
    total = sum(int(dataset.clips[clip_id]["frames"]) for clip_id in ids)
    with tqdm(total=total, desc="loading", unit=" frames", unit_scale=True,
              disable=not (ranks.is_first and sys.stderr.isatty())) as bar:  # fmt: skip

        def resident(clip_ids: list[str]) -> Resident:
            return load_resident(
                dataset,
                clip_ids,
                size=recipe.network.size,
                n_mels=audio.n_mels,
                mel_pad=max(audio.rows_before, audio.rows_after),
                silence_db=SILENCE_DB,
                top=recipe.network.top,
                device=ranks.device,
                frames_on=torch.device("cpu") if request.frames_on == "host" else ranks.device,
                workers=request.workers,
                done=bar.update,
            )

        return resident(trained), resident(held) if held else None


def _describe(request: TrainRequest, recipe: Recipe, digest: str) -> None:
    """``run.json``: enough to start the same run again elsewhere."""
    story = {
        "preset": request.preset,
        "shards": request.shards,
        "digest": digest,
        "recipe": asdict(recipe),
        "versions": {name: version(name) for name in ("redub", "torch", "numpy")},
    }
    with written_whole(request.run / RUN_FILE) as partial:
        partial.write_text(json.dumps(story, indent=1) + "\n")
