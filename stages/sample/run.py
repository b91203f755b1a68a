"""Stage 7: generate the clips of a split, with their own speech or with another clip's.

OUT/crops/<name>.tar     frames 00000.webp, ...: lossless, the source's own pixels outside the mask
OUT/videos/<name>.mp4    source and result side by side, with audio synthesised from the mels
OUT/samples.parquet      one row per clip, written last
OUT/samples.json         what generated them: run, step, params, dataset
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from model.batch import build_network_input
from model.checkpoint import hash_weights, load_network
from model.execution import Execution, Ranks, join_ranks, leave_core
from sampler.params import SampleParams
from sampler.rollout import FrameGenerator
from shards.atomic import write_atomically
from shards.background import BackgroundWriter
from shards.checksum import file_sha256
from shards.cores import count_cores_per_rank
from shards.errors import shorten, shorten_message
from shards.files import is_inside
from shards.publish import locate_dataset
from shards.reader import Dataset, open_dataset, read_unless_damaged
from shards.schema import MELS_PER_FRAME, VIDEO_FPS, ClipSample, Frames, ShardError
from shards.table import write_rows
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.engine.progress import Progress, no_progress
from stages.media.audio import SAMPLE_RATE
from stages.media.encode import AudioTrack, write_mp4
from stages.mels import read_mels_params
from stages.preview.sound import synthesise_audio
from stages.sample.generate import choose_clips_ahead, generate_clips
from stages.sample.pairs import (
    CROPS,
    RUN_INFO,
    SCHEMA,
    TABLE,
    VIDEOS,
    Audio,
    Pair,
    count_pair_frames,
    describe_splits,
    list_other_splits,
    make_pairs,
    read_crops,
    read_pair,
    read_sample_info,
    write_crops,
)

MAX_WRITERS = 16  # threads
VIDEO_SCALE = 2  # of crops in the videos


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """The options of `pipeline sample` besides the sampler's."""

    shards: str  # a folder or an address
    run: Path
    out: Path
    split: str
    audio: Audio = "own"
    clips: int | None = None  # only the first so many, by name
    slots: int = 16  # clips generated at once
    videos: bool = True
    device: str = "auto"
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The result, for the command to print."""

    n_clips: int  # that the folder holds in all
    other_splits: list[str]  # of the speech, where they are not the faces'


def run(request: SampleRequest, params: SampleParams, progress: Progress = no_progress) -> SampleResult:
    """Generate all clips that are not generated yet; one that cannot be read is an error at the end.

    Raises StageError, ShardError or ModelError, each in one line.
    """
    busy = f"--out {request.out}: another process samples there"
    with (
        join_ranks(request.device) as ranks,
        lock_folder(request.out, busy=busy) if ranks.is_first else contextlib.nullcontext(),
    ):
        return _sample(request, params, ranks, progress if ranks.is_first else no_progress)


def _sample(request: SampleRequest, params: SampleParams, ranks: Ranks, progress: Progress) -> SampleResult:
    dataset = open_dataset(locate_dataset(request.shards))
    network, checkpoint = load_network(request.run)
    recipe = checkpoint.recipe
    network_input = build_network_input(recipe.network)
    network_input.check_dataset(dataset.manifest, dataset.storage.address)
    pairs = make_pairs(dataset, request.split, request.audio, seed=params.seed)[: request.clips]
    speech_ids = [pair.audio_clip_id for pair in pairs]
    network_input.check_members(dataset.clips, speech_ids, dataset.storage.address)
    run_info = {
        "run": os.fspath(request.run),
        "step": checkpoint.step,
        "run_digest": checkpoint.digest,
        "weights_sha256": hash_weights(checkpoint),
        "dataset": dataset.manifest["digest"],
        "split": request.split,
        "audio": request.audio,
        "params": asdict(params),
    }
    if ranks.is_first:
        _write_run_info(request.out, run_info)
    for folder in (request.out / CROPS, request.out / VIDEOS):
        if folder.exists() and not is_inside(folder, request.out):
            raise StageError(f"{folder}: leads out of {request.out} by a link; nothing is written there")
    ranks.barrier()
    # The longest first: then hardly a slot is empty while the last clips end.
    missing = sorted(
        (pair for pair in ranks.split(pairs) if not _crops_path(request.out, pair).is_file()),
        key=lambda pair: count_pair_frames(dataset, pair),
        reverse=True,
    )
    without_video = [
        pair
        for pair in (ranks.split(pairs) if request.videos else [])
        if _crops_path(request.out, pair).is_file() and not _video_path(request.out, pair).is_file()
    ]
    generator = FrameGenerator(network, recipe, params, ranks.device, request.execution)
    n_done, total = 0, sum(count_pair_frames(dataset, pair) for pair in missing)

    def count_frame() -> None:
        nonlocal n_done
        n_done += 1
        progress("sampling", n_done, total)

    def write(clip: tuple[Pair, Frames | None]) -> None:
        _write_clip(request, dataset, *clip)

    # Sound and video of a clip take a second of a core, as long as a GPU draws several clips.
    # Each holds its clip: few write where clips are long.
    n_writers = choose_clips_ahead(dataset, missing, min(MAX_WRITERS, count_cores_per_rank()))
    n_waiting = choose_clips_ahead(dataset, missing, request.slots)
    clips = generate_clips(
        generator, dataset, missing, slots=request.slots, on_frame=count_frame, skip_damaged=True
    )
    with (
        closing(clips),
        leave_core(ranks.device),
        BackgroundWriter(write, n_waiting=n_waiting, n_threads=n_writers) as writer,
    ):
        for pair in without_video:
            writer.put((pair, None))
        for clip in clips:
            writer.put(clip)
    ranks.barrier()
    if ranks.is_first:
        rows = [_make_row(request, dataset, pair) for pair in pairs]
        write_rows(request.out / TABLE, rows, SCHEMA)
        if failures := [row for row in rows if row["reason"] is not None]:
            raise StageError(
                f"{request.out}: {len(failures)} of {len(rows)} clips could not be generated, the others "
                f"were; {TABLE} names them, such as {failures[0]['name']}: {failures[0]['reason']}"
            )
    return SampleResult(len(pairs), list_other_splits(describe_splits(dataset, pair) for pair in pairs))


def _write_clip(request: SampleRequest, dataset: Dataset, pair: Pair, frames: Frames | None) -> None:
    """Write the video first: a clip counts as generated once its crops exist. None: its crops are there.

    A clip that cannot be read has no video, and its row says why.
    """
    if request.videos:
        mels = read_mels_params(dataset)
        clips = read_unless_damaged(_read_clips, request.out, dataset, pair, frames)
        if not isinstance(clips, ShardError):
            clip, speech, images = clips
            sound = synthesise_audio(speech.mels[: MELS_PER_FRAME * len(images)], mels)
            write_mp4(
                _video_path(request.out, pair),
                place_side_by_side(clip, images),
                fps=Fraction(VIDEO_FPS),
                audio=AudioTrack([sound[:, None]], rate=SAMPLE_RATE, channels=1),
            )
    if frames is not None:
        write_crops(_crops_path(request.out, pair), frames)


def _read_clips(
    out: Path, dataset: Dataset, pair: Pair, frames: Frames | None
) -> tuple[ClipSample, ClipSample, Frames]:
    """``read_pair``, and the generated frames: ``frames``, or those of the crops if None."""
    clip, speech = read_pair(dataset, pair)
    if frames is None:
        frames = read_crops(_crops_path(out, pair), clip.frames.shape[1])
    return clip, speech, frames


def place_side_by_side(clip: ClipSample, frames: Frames) -> Iterator[Frames]:
    """Source and result, enlarged."""
    for source, result in zip(clip.frames, frames, strict=False):
        both = np.concatenate([source, result], axis=1)
        yield both.repeat(VIDEO_SCALE, axis=0).repeat(VIDEO_SCALE, axis=1)


def _crops_path(out: Path, pair: Pair) -> Path:
    return out / CROPS / f"{pair.name}.tar"


def _video_path(out: Path, pair: Pair) -> Path:
    return out / VIDEOS / f"{pair.name}.mp4"


def _make_row(request: SampleRequest, dataset: Dataset, pair: Pair) -> dict[str, Any]:
    row = dataset.clips[pair.clip_id]
    crops = _crops_path(request.out, pair)
    is_generated = crops.is_file()
    is_complete = is_generated and (not request.videos or _video_path(request.out, pair).is_file())
    return {
        "name": pair.name,
        "clip_id": pair.clip_id,
        "audio_clip_id": pair.audio_clip_id,
        **describe_splits(dataset, pair),
        "speaker": row["speaker"],
        "frames": count_pair_frames(dataset, pair),
        "crops_sha256": file_sha256(crops) if is_generated else None,
        "reason": None if is_complete else _explain_failure(request.out, dataset, pair),
    }


def _explain_failure(out: Path, dataset: Dataset, pair: Pair) -> str:
    """Why a pair has no crops or no video: it is read again, as another process may have found out."""
    is_generated = _crops_path(out, pair).is_file()
    try:
        clip, _ = read_pair(dataset, pair)
        if is_generated:
            read_crops(_crops_path(out, pair), clip.frames.shape[1])
    except ShardError as err:
        return shorten_message(f"no video: {err}" if is_generated else str(err))
    return "it could not be read at first, now it can: run again"


def _write_run_info(out: Path, run_info: dict[str, Any]) -> None:
    """Write ``samples.json``. Raises StageError when the folder's clips were generated by something else."""
    path = out / RUN_INFO
    if path.exists():
        previous = read_sample_info(out)
        # what clips were generated with before these were parameters
        previous["params"].setdefault("common_noise", 0.0)
        previous["params"].setdefault("guided_share", 1.0)
        previous["params"].setdefault("flat_pauses", False)
        has_weights = "weights_sha256" in previous  # older folders lack it
        previous.setdefault("weights_sha256", run_info["weights_sha256"])
        # the same network may be at another path, or be named in another way
        names = [name for name in run_info if name != "run" or not has_weights]
        for name in names:
            before, now = previous.get(name), run_info[name]
            if before != now:
                if isinstance(before, dict) and isinstance(now, dict):  # only what differs: the rest is long
                    before = {key: value for key, value in before.items() if now.get(key) != value}
                    now = {key: now.get(key) for key in before}
                raise StageError(
                    f"{out} was sampled with {name} {shorten(before)}, not {shorten(now)}; use another --out"
                )
        return
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(run_info, indent=1) + "\n")
