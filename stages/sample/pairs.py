"""What stage 7 leaves, and whose frames are drawn to whose speech. No networks, so readers need no torch."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.codec import decode_frame, encode_frame
from shards.reader import Dataset, read_clip
from shards.rng import derive_key
from shards.schema import ClipSample, ShardError
from shards.table import read_rows
from stages.engine.outcome import StageError

TABLE, STORY, CROPS, VIDEOS = "samples.parquet", "samples.json", "crops", "videos"
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
MAX_DISTANCE = 100  # between the two of a swapped pair, in the ring that pairs are made of
MAX_FRAMES = 1_000_000
MAX_FRAME_BYTES = 2**24

Frames = NDArray[np.uint8]


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


def make_pairs(dataset: Dataset, split: str, audio: Literal["own", "swapped"], *, seed: int) -> list[Pair]:
    """Each clip of a split with its own speech, or with that of another clip that says something else.

    Swapped: every clip speaks and is spoken to once, by an order that hangs on the seed; where the ledger
    tells the sentences, two clips that say the same are kept apart as far as can be. Raises StageError when
    there is no other.
    """
    where = dataset.storage.address
    ids = sorted(dataset.clips.ids_in_split(split))
    if not ids:
        splits = sorted(dataset.clips.table["split"].unique().to_pylist())
        raise StageError(f"{where}: no clip is in the split {split!r}; it has {', '.join(splits)}")
    if audio == "own":
        return [Pair(clip_id, clip_id) for clip_id in ids]
    if len(ids) < 2:
        raise StageError(f"{where}: the split {split!r} has one clip, so no other speech to swap in")
    ledger = dataset.ledger().select_columns("clip_id", "sentence")
    said = {row["clip_id"]: row["sentence"] for row in ledger if row["sentence"]}
    ring = sorted(ids, key=lambda clip_id: derive_key(seed, *clip_id.encode()))

    def same_words(distance: int) -> int:
        """How many pairs this far apart in the ring say the same."""
        others = ring[distance:] + ring[:distance]
        return sum(a in said and said[a] == said.get(b) for a, b in zip(ring, others, strict=True))

    best = min(range(1, min(len(ring), MAX_DISTANCE + 1)), key=same_words)
    others = dict(zip(ring, ring[best:] + ring[:best], strict=True))
    return [Pair(clip_id, others[clip_id]) for clip_id in ids]


def count_pair_frames(dataset: Dataset, pair: Pair) -> int:
    """Frames of a pair: as long as both go on."""
    return min(int(dataset.clips[clip_id]["frames"]) for clip_id in (pair.clip_id, pair.audio_clip_id))


def read_pair(dataset: Dataset, pair: Pair) -> tuple[ClipSample, ClipSample]:
    """The clip whose frames they are, and the one whose speech: read once where they are the same."""
    clip = read_clip(dataset, pair.clip_id)
    return clip, clip if pair.audio_clip_id == pair.clip_id else read_clip(dataset, pair.audio_clip_id)


def write_crops(path: Path, frames: Frames) -> None:
    """Frames (T, S, S, 3) as a tar of lossless WebP. Same frames, same bytes."""
    with write_atomically(path) as partial, tarfile.open(partial, "w:", format=tarfile.USTAR_FORMAT) as tar:
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
    return list(read_rows(out / TABLE, SCHEMA, "table of samples"))
