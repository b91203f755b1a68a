"""Stage 6: a network from shards. Finds the data and the run's folder; ``model.loop`` does the rest."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from model import checkpoint, loop
from model.batch import required_input
from model.execution import Execution, Ranks, join_ranks
from model.recipe import Recipe
from model.signals import explain_out_of_memory
from model.unet import parameter_count
from shards.atomic import write_atomically
from shards.cache import open_shard_store
from shards.frames import FrameSource
from shards.publish import download_dataset, locate_dataset
from shards.reader import Dataset, open_dataset
from shards.resident import TRAIN_SPLIT, Resident, build_clip_table, load_resident, split_held_out
from shards.streaming import Cached, Decoder, Windowed, is_of_worker
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError

RUN_FILE = "run.json"
HELD_CLIPS = 64  # looked at of those held out, where the dataset is too large to have them all at hand

Hold = Literal["resident", "cached", "windowed"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for, besides the recipe."""

    shards: str  # a folder, or an address
    run: Path
    preset: str
    device: str = "auto"  # auto, cpu or cuda
    frames_on: str = "device"  # device or host: where the decoded frames lie
    workers: int = 1  # threads or processes that decode, of each rank
    hold: Hold = "resident"
    cache: Path | None = None  # where shards from elsewhere are kept; None: the user's cache
    cache_gb: float = 100.0
    machine: Execution = field(default_factory=Execution)


def run(request: TrainRequest, recipe: Recipe) -> str:
    """Train a run, or go on with it; returns in a word or two why it ended.

    Raises StageError, ShardError or ModelError, each in one line.
    """
    busy = f"--run {request.run}: another process trains there"
    with (
        join_ranks(request.device) as ranks,
        lock_folder(request.run, busy=busy) if ranks.is_first else contextlib.nullcontext(),
    ):
        return _train(request, recipe, ranks)


def _train(request: TrainRequest, recipe: Recipe, ranks: Ranks) -> str:
    if (request.hold == "windowed") != (recipe.window > 0):
        raise StageError(f"--hold {request.hold} does not go with a recipe whose window is {recipe.window}")
    found = download_dataset if request.hold == "resident" else locate_dataset
    dataset = open_dataset(found(request.shards), hashes=False)
    digest = str(dataset.manifest["digest"])
    saved = checkpoint.listed(request.run)
    if saved:
        checkpoint.check_same(saved[-1], recipe, digest)
    with _held(request, recipe, dataset, ranks) as (data, held):
        with explain_out_of_memory("the network", ranks.device, advice="try fewer network.channels"):
            state = loop.new_state(recipe, ranks.device)
            if saved:
                checkpoint.load_into(state, saved[-1])
        if ranks.is_first:
            _describe(request, recipe, digest)
            log.info(
                "%s: %s parameters, %d frames of %d clips to train on, %s, %d of %d clips held out, %s",
                request.preset, f"{parameter_count(state.network):,}", len(data), len(data.clips.ids),
                request.hold, len(held) if held else 0, len(held.clips.ids) if held else 0,
                f"going on at step {state.step}" if saved else f"new, on {ranks.world} x {ranks.device.type}",
            )  # fmt: skip
        try:
            return loop.train(
                state,
                data,
                held,
                recipe=recipe,
                machine=request.machine,
                ranks=ranks,
                run=request.run,
                digest=digest,
            )
        except RuntimeError as err:
            if is_of_worker(err):
                raise StageError(f"a process that decodes is gone ({str(err).splitlines()[0]})") from err
            raise


@contextlib.contextmanager
def _held(
    request: TrainRequest, recipe: Recipe, dataset: Dataset, ranks: Ranks
) -> Iterator[tuple[FrameSource, FrameSource | None]]:
    """The training clips and those held out, as they are asked to be held."""
    fit = required_input(recipe.network)
    fit.check_dataset(dataset.manifest, dataset.place.address)
    ids = dataset.clips.ids_in_split(TRAIN_SPLIT)
    if not ids:
        raise StageError(f"{request.shards}: no clip is in the split {TRAIN_SPLIT!r}")
    trained, held = split_held_out(ids, recipe.held_out_share, seed=recipe.seed)
    if request.hold == "resident":
        data = _resident(request, recipe, dataset, ranks, trained)
        yield data, _resident(request, recipe, dataset, ranks, held) if held else None
        return
    with open_shard_store(dataset, request.cache, int(request.cache_gb * 1e9)) as shelf:
        decoder = Decoder(dataset, build_clip_table(dataset, trained), shelf, fit)
        if request.hold == "windowed":
            some = held[:: -(-len(held) // HELD_CLIPS)] if held else []
            yield (
                Windowed(decoder, ranks.device, request.workers, shelf=shelf, window=recipe.window),
                _resident(request, recipe, dataset, ranks, some) if some else None,
            )
            return
        entries = [dataset.shards[name] for name in dataset.clips.locate_shards(ids)[0]]
        if ranks.is_first:
            log.info(
                "%d shards, %.2f GB, are to be on the disk", len(entries), sum(e.bytes for e in entries) / 1e9
            )
        shelf.hold(entries)
        others = Decoder(dataset, build_clip_table(dataset, held), shelf, fit) if held else None
        yield (
            Cached(decoder, ranks.device, request.workers),
            Cached(others, ranks.device, request.workers) if others else None,
        )


def _resident(
    request: TrainRequest, recipe: Recipe, dataset: Dataset, ranks: Ranks, clip_ids: list[str]
) -> Resident:
    """Clips decoded, all of them."""
    audio = recipe.network.audio
    total = sum(dataset.clips.column("frames", clip_ids))
    with tqdm(total=total, desc="loading", unit=" frames", unit_scale=True,
              disable=not (ranks.is_first and sys.stderr.isatty())) as bar:  # fmt: skip
        return load_resident(
            dataset,
            clip_ids,
            required_input(recipe.network),
            mel_pad=max(audio.rows_before, audio.rows_after),
            device=ranks.device,
            frames_on=torch.device("cpu") if request.frames_on == "host" else ranks.device,
            workers=request.workers,
            done=bar.update,
        )


def _describe(request: TrainRequest, recipe: Recipe, digest: str) -> None:
    """``run.json``: enough to start the same run again elsewhere."""
    story = {
        "preset": request.preset,
        "shards": request.shards,
        "digest": digest,
        "recipe": asdict(recipe),
        "versions": {name: version(name) for name in ("redub", "torch", "numpy")},
    }
    with write_atomically(request.run / RUN_FILE) as partial:
        partial.write_text(json.dumps(story, indent=1) + "\n")
