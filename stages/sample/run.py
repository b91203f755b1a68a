"""Stage 7: a split's clips, drawn anew to their own speech or to another clip's.

OUT/crops/<name>.tar     frames 00000.webp, ...: lossless, the source's own outside the mask
OUT/videos/<name>.mp4    source and result side by side, with the sound of the mels
OUT/samples.parquet      a row per clip, written last
OUT/samples.json         what drew them: run, step, params, dataset
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.batch import build_network_input
from model.checkpoint import load_network
from model.execution import Execution, Ranks, join_ranks
from sampler.params import SampleParams
from sampler.rollout import ClipRequest, CropFrame, FrameGenerator
from shards.atomic import write_atomically
from shards.checksum import file_sha256
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset
from shards.schema import MELS_PER_FRAME, VIDEO_FPS, ClipSample
from shards.table import write_rows
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.media.audio import SAMPLE_RATE
from stages.media.encode import AudioTrack, write_mp4
from stages.preview.sound import mels_params, sound_of
from stages.sample.pairs import (
    CROPS,
    SCHEMA,
    STORY,
    TABLE,
    VIDEOS,
    Pair,
    count_pair_frames,
    make_pairs,
    read_pair,
    write_crops,
)

ENLARGED = 2  # how much, in the videos
Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What the user asked for."""

    shards: str  # a folder, or an address
    run: Path
    out: Path
    split: str
    audio: Literal["own", "swapped"] = "own"
    clips: int | None = None  # the first so many, by name; all without
    slots: int = 16  # clips at once
    videos: bool = True
    device: str = "auto"
    machine: Execution = field(default_factory=Execution)


def run(request: SampleRequest, params: SampleParams) -> int:
    """Draw all clips that are not drawn yet; returns how many there are in all.

    Raises StageError, ShardError or ModelError, each in one line.
    """
    busy = f"--out {request.out}: another process samples there"
    with (
        join_ranks(request.device) as ranks,
        lock_folder(request.out, busy=busy) if ranks.is_first else contextlib.nullcontext(),
    ):
        return _sample(request, params, ranks)


def _sample(request: SampleRequest, params: SampleParams, ranks: Ranks) -> int:
    dataset = open_dataset(locate_dataset(request.shards))
    network, saved = load_network(request.run)
    recipe = saved.recipe
    build_network_input(recipe.network).check_dataset(dataset.manifest, dataset.storage.address)
    pairs = make_pairs(dataset, request.split, request.audio, seed=params.seed)[: request.clips]
    story = {
        "run": os.fspath(request.run),
        "step": saved.step,
        "run_digest": saved.digest,
        "dataset": dataset.manifest["digest"],
        "split": request.split,
        "audio": request.audio,
        "params": asdict(params),
    }
    if ranks.is_first:
        _check_same(request.out, story)
    ranks.barrier()
    # The longest first: then hardly a slot stands idle while the last clips end.
    missing = sorted(
        (pair for pair in ranks.split(pairs) if not _is_drawn(request, pair)),
        key=lambda pair: count_pair_frames(dataset, pair),
        reverse=True,
    )
    generator = FrameGenerator(network, recipe, params, ranks.device, request.machine)
    total = sum(count_pair_frames(dataset, pair) for pair in missing)
    with tqdm(total=total, desc="sampling", unit=" frames",
              disable=not (ranks.is_first and sys.stderr.isatty())) as bar:  # fmt: skip
        for pair, frames in drawn(generator, dataset, missing, slots=request.slots, told=bar.update):
            _write(request, dataset, pair, frames)
    ranks.barrier()
    if ranks.is_first:
        write_rows(request.out / TABLE, [_row(request.out, dataset, pair) for pair in pairs], SCHEMA)
    return len(pairs)


def drawn(
    generator: FrameGenerator, dataset: Dataset, pairs: list[Pair], *, slots: int, told: Any
) -> Iterator[tuple[Pair, Frames]]:
    """Each pair's frames (T, S, S, 3), as soon as its last one is there; ``told`` hears of each frame."""
    by_name = {pair.name: pair for pair in pairs}
    under_way: dict[str, list[Frames]] = {}
    for frame in generator.rollout((_take(dataset, pair) for pair in pairs), slots=slots):
        told(1)
        frames = under_way.setdefault(frame.key, [])
        frames.append(frame.pixels)
        if len(frames) == count_pair_frames(dataset, by_name[frame.key]):
            yield by_name[frame.key], np.stack(under_way.pop(frame.key))


def _take(dataset: Dataset, pair: Pair) -> ClipRequest:
    clip, speech = read_pair(dataset, pair)
    n_frames = count_pair_frames(dataset, pair)
    frames = (CropFrame(clip.frames[k], clip.boxes[k]) for k in range(n_frames))
    return ClipRequest(pair.name, frames, speech.mels[: MELS_PER_FRAME * n_frames])


def _write(request: SampleRequest, dataset: Dataset, pair: Pair, frames: Frames) -> None:
    """The video first: a clip counts as drawn once its crops are there."""
    if request.videos:
        clip, speech = read_pair(dataset, pair)
        sound = sound_of(speech.mels[: MELS_PER_FRAME * len(frames)], mels_params(dataset))
        write_mp4(
            request.out / VIDEOS / f"{pair.name}.mp4",
            side_by_side(clip, frames),
            fps=Fraction(VIDEO_FPS),
            audio=AudioTrack([sound[:, None]], rate=SAMPLE_RATE, channels=1),
        )
    write_crops(request.out / CROPS / f"{pair.name}.tar", frames)


def side_by_side(clip: ClipSample, frames: Frames) -> Iterator[Frames]:
    """Source and result, enlarged."""
    for source, result in zip(clip.frames, frames, strict=False):
        both = np.concatenate([source, result], axis=1)
        yield both.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def _is_drawn(request: SampleRequest, pair: Pair) -> bool:
    return (request.out / CROPS / f"{pair.name}.tar").is_file()


def _row(out: Path, dataset: Dataset, pair: Pair) -> dict[str, Any]:
    row = dataset.clips[pair.clip_id]
    return {
        "name": pair.name,
        "clip_id": pair.clip_id,
        "audio_clip_id": pair.audio_clip_id,
        "split": row["split"],
        "speaker": row["speaker"],
        "frames": count_pair_frames(dataset, pair),
        "crops_sha256": file_sha256(out / CROPS / f"{pair.name}.tar"),
    }


def _check_same(out: Path, story: dict[str, Any]) -> None:
    """Raise StageError when the folder holds clips that something else drew; else write down what draws."""
    path = out / STORY
    if path.is_file():
        try:
            before: dict[str, Any] = json.loads(path.read_text())
        except ValueError as err:
            raise StageError(f"{path}: not JSON ({err})") from err
        for name in story:
            if before.get(name) != story[name]:
                raise StageError(
                    f"{out} was sampled with {name} {before.get(name)!r}, not {story[name]!r}; "
                    f"give this one another --out"
                )
        return
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(story, indent=1) + "\n")
