"""Stage 7: a split's clips, drawn anew to their own speech or to another clip's.

OUT/crops/<name>.tar     frames 00000.webp, ...: lossless, the source's own outside the mask
OUT/videos/<name>.mp4    source and result side by side, with the sound of the mels
OUT/samples.parquet      a row per clip, written last
OUT/samples.json         what drew them: run, step, params, dataset
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from model.checkpoint import load_network
from model.examples import fit_of
from model.machine import Machine, Ranks, joined
from sampler.rollout import CropFrame, Painter, SampleParams, Take
from shards.atomic import clear_partials, written_whole
from shards.checksum import file_sha256
from shards.codec import decode_frame, encode_frame
from shards.order import key_of
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import MELS_PER_FRAME, VIDEO_FPS, ClipSample, ShardError
from shards.storage import at_hand
from shards.table import read_rows, write_rows
from stages.audio import SAMPLE_RATE
from stages.encode import Sound, write_mp4
from stages.preview import mels_params, sound_of
from stages.work import StageError

TABLE, STORY, CROPS, VIDEOS = "samples.parquet", "samples.json", "crops", "videos"
LOCK_NAME = ".lock"
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),  # of the files
        pa.field("clip_id", pa.string()),  # whose frames
        pa.field("audio_clip_id", pa.string()),  # whose speech
        pa.field("split", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("crops_sha256", pa.string()),
    ]
)
ENLARGED = 2  # how much, in the videos
MAX_FRAMES = 1_000_000
MAX_FRAME_BYTES = 2**24

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
    machine: Machine = field(default_factory=Machine)


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip's frames and the clip whose speech they are drawn to."""

    clip_id: str
    audio_clip_id: str

    @property
    def name(self) -> str:
        """Of its files."""
        own = self.clip_id == self.audio_clip_id
        return self.clip_id if own else f"{self.clip_id}~{self.audio_clip_id}"


def pairs_of(dataset: Dataset, split: str, audio: Literal["own", "swapped"], *, seed: int) -> list[Pair]:
    """Each clip of a split with its own speech, or with that of another clip that says something else.

    Swapped: every clip speaks and is spoken to once, by an order that hangs on the seed; where the ledger
    tells the sentences, two clips that say the same are kept apart. Raises StageError when there is no other.
    """
    ids = sorted(clip_id for clip_id, row in dataset.clips.items() if row["split"] == split)
    if not ids:
        splits = sorted({row["split"] for row in dataset.clips.values()})
        raise StageError(f"{dataset.folder}: no clip is in the split {split!r}; it has {', '.join(splits)}")
    if audio == "own":
        return [Pair(clip_id, clip_id) for clip_id in ids]
    if len(ids) < 2:
        raise StageError(f"{dataset.folder}: the split {split!r} has one clip, so no other speech to swap in")
    ledger = dataset.ledger()
    said = {row["clip_id"]: row["sentence"] for row in ledger if row["sentence"]}
    ring = sorted(ids, key=lambda clip_id: key_of(seed, *clip_id.encode()))

    def same_words(distance: int) -> int:
        """How many pairs this far apart in the ring say the same."""
        others = ring[distance:] + ring[:distance]
        return sum(a in said and said[a] == said.get(b) for a, b in zip(ring, others, strict=True))

    best = min(range(1, len(ring)), key=same_words)
    others = dict(zip(ring, ring[best:] + ring[:best], strict=True))
    return [Pair(clip_id, others[clip_id]) for clip_id in ids]


def run(request: SampleRequest, params: SampleParams) -> int:
    """Draw all clips that are not drawn yet; returns how many there are in all.

    Raises StageError, ShardError or ModelError, each in one line.
    """
    with joined(request.device) as ranks:
        lock = FileLock(request.out / LOCK_NAME)
        if ranks.is_first:
            request.out.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout as err:
                raise StageError(f"--out {request.out}: another process samples there") from err
        try:
            return _sample(request, params, ranks)
        finally:
            lock.release()


def _sample(request: SampleRequest, params: SampleParams, ranks: Ranks) -> int:
    dataset = open_dataset(at_hand(request.shards))
    network, saved = load_network(request.run)
    recipe = saved.recipe
    fit_of(recipe.network).check_dataset(dataset.manifest, dataset.place.address)
    pairs = pairs_of(dataset, request.split, request.audio, seed=params.seed)[: request.clips]
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
        clear_partials(request.out)
        _check_same(request.out, story)
    ranks.meet()
    missing = [pair for pair in ranks.own(pairs) if not _is_drawn(request, pair)]
    painter = Painter(network, recipe, params, ranks.device, request.machine)
    total = sum(_length(dataset, pair) for pair in missing)
    with tqdm(total=total, desc="sampling", unit=" frames",
              disable=not (ranks.is_first and sys.stderr.isatty())) as bar:  # fmt: skip
        for pair, frames in drawn(painter, dataset, missing, slots=request.slots, told=bar.update):
            _write(request, dataset, pair, frames)
    ranks.meet()
    if ranks.is_first:
        write_rows(request.out / TABLE, [_row(request.out, dataset, pair) for pair in pairs], SCHEMA)
    return len(pairs)


def drawn(
    painter: Painter, dataset: Dataset, pairs: list[Pair], *, slots: int, told: Any
) -> Iterator[tuple[Pair, Frames]]:
    """Each pair's frames (T, S, S, 3), as soon as its last one is there; ``told`` hears of each frame."""
    by_name = {pair.name: pair for pair in pairs}
    under_way: dict[str, list[Frames]] = {}
    for frame in painter.rollout((_take(dataset, pair) for pair in pairs), slots=slots):
        told(1)
        frames = under_way.setdefault(frame.key, [])
        frames.append(frame.pixels)
        if len(frames) == _length(dataset, by_name[frame.key]):
            yield by_name[frame.key], np.stack(under_way.pop(frame.key))


def _length(dataset: Dataset, pair: Pair) -> int:
    """Frames of a pair: as long as both go on."""
    return min(int(dataset.clips[clip_id]["frames"]) for clip_id in (pair.clip_id, pair.audio_clip_id))


def _take(dataset: Dataset, pair: Pair) -> Take:
    clip = read_clip(dataset, pair.clip_id)
    speech = clip if pair.audio_clip_id == pair.clip_id else read_clip(dataset, pair.audio_clip_id)
    n_frames = _length(dataset, pair)
    frames = (CropFrame(clip.frames[k], clip.boxes[k]) for k in range(n_frames))
    return Take(pair.name, frames, speech.mels[: MELS_PER_FRAME * n_frames])


def _write(request: SampleRequest, dataset: Dataset, pair: Pair, frames: Frames) -> None:
    """The video first: a clip counts as drawn once its crops are there."""
    if request.videos:
        speech = read_clip(dataset, pair.audio_clip_id)
        sound = sound_of(speech.mels[: MELS_PER_FRAME * len(frames)], mels_params(dataset))
        write_mp4(
            request.out / VIDEOS / f"{pair.name}.mp4",
            side_by_side(read_clip(dataset, pair.clip_id), frames),
            fps=Fraction(VIDEO_FPS),
            sound=Sound([sound[:, None]], rate=SAMPLE_RATE, channels=1),
        )
    write_crops(request.out / CROPS / f"{pair.name}.tar", frames)


def side_by_side(clip: ClipSample, frames: Frames) -> Iterator[Frames]:
    """Source and result, enlarged."""
    for source, result in zip(clip.frames, frames, strict=False):
        both = np.concatenate([source, result], axis=1)
        yield both.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def write_crops(path: Path, frames: Frames) -> None:
    """Frames (T, S, S, 3) as a tar of lossless WebP. Same frames, same bytes."""
    with written_whole(path) as partial, tarfile.open(partial, "w:", format=tarfile.USTAR_FORMAT) as tar:
        for k, frame in enumerate(frames):
            data = encode_frame(frame, "webp")
            header = tarfile.TarInfo(f"{k:05d}.webp")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def read_crops(path: Path, size: int) -> Frames:
    """Frames (T, size, size, 3) of a tar of WebP pictures, in the order of their names. Raises ShardError."""
    frames: dict[str, Frames] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() and member.size <= MAX_FRAME_BYTES else None
                if file is None or len(frames) >= MAX_FRAMES:
                    raise ShardError(f"{path}: {member.name} is not a frame")
                frames[member.name] = decode_frame(file.read(), "webp", (size, size))
    except (OSError, tarfile.TarError) as err:
        raise ShardError(f"{path}: not a whole tar of frames ({err})") from err
    if not frames:
        raise ShardError(f"{path}: holds no frames")
    return np.stack([frames[name] for name in sorted(frames)])


def read_samples(out: Path) -> list[dict[str, Any]]:
    """Rows of a finished folder of samples. Raises ShardError."""
    return read_rows(out / TABLE, SCHEMA, "table of samples")


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
        "frames": _length(dataset, pair),
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
    with written_whole(path) as partial:
        partial.write_text(json.dumps(story, indent=1) + "\n")
