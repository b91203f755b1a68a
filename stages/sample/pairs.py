"""Which clip is generated with whose speech, and the files of stage 7. Imports no torch."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from shards.atomic import write_atomically
from shards.codec import decode_frame, encode_frame
from shards.documents import Document
from shards.errors import shorten
from shards.files import open_file
from shards.reader import Dataset, read_clip
from shards.rng import derive_key
from shards.schema import MAX_CLIP_BYTES, MAX_FRAMES, ClipSample, Frames, ShardError, Text
from shards.table import Rule, read_rows
from shards.tar_members import iterate_members
from stages.engine.json_file import read_json_file
from stages.engine.outcome import StageError

Audio = Literal["own", "swapped"]  # whose speech a clip is generated with

TABLE, RUN_INFO, CROPS, VIDEOS = "samples.parquet", "samples.json", "crops", "videos"
FIRST_SCHEMA = pa.schema(
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
ADDED_FIELDS = (  # which older tables lack
    (pa.field("audio_split", pa.string()),),
    (pa.field("reason", pa.string()),),  # why the clip, or its video, could not be generated; null if it was
)
SCHEMA = pa.schema([*FIRST_SCHEMA, *(field for group in ADDED_FIELDS for field in group)])
MAX_DISTANCE = 100  # between the two clips of a swapped pair, in the ring of shuffled clips
MAX_OTHERS = 8  # speeches of other splits, for a split with one clip
MAX_FRAME_BYTES = 2**24
MAX_NAMES = 8  # in a message
RULES = MappingProxyType(
    {
        # CLIP or CLIP~SPEECH, ids of clips: a path is made of it
        "name": Rule(required=True, pattern=r"\A[^/\\.\pC\p{Zl}\p{Zp}]+\z", expected="a plain file name"),
        **dict.fromkeys(("clip_id", "audio_clip_id", "split"), Rule(required=True)),
        "frames": Rule(required=True, low=1, high=MAX_FRAMES),
    }
)


class SampleParamsFields(Document):
    """What is read of the sampler's params."""

    seed: Annotated[int, Field(ge=0)]


class SampleFields(Document):
    """What is read of ``samples.json``."""

    dataset: Text
    audio: Audio
    params: SampleParamsFields


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip and the clip whose speech it is generated with."""

    clip_id: str
    audio_clip_id: str

    @property
    def name(self) -> str:
        """Stem of its file names."""
        own = self.clip_id == self.audio_clip_id
        return self.clip_id if own else f"{self.clip_id}~{self.audio_clip_id}"


def make_pairs(
    dataset: Dataset,
    split: str,
    audio: Audio,
    *,
    seed: int,
    speaker: str | None = None,
) -> list[Pair]:
    """Pair each clip of a split with its own speech, or with that of another clip.

    Swapped pairs use every clip and every speech once, in an order that depends on the seed. When the ledger
    has the sentences, clips with the same sentence are not paired as far as possible. A split's only clip is
    paired with speech of other splits. ``speaker``: only the clips of this one. Raises StageError when there
    is no such clip, or no other clip to swap with.
    """
    address = dataset.storage.address
    ids = sorted(
        clip_id
        for clip_id in dataset.clips.ids_in_split(split)
        if speaker in (None, dataset.clips[clip_id]["speaker"])
    )
    if not ids and speaker is not None:
        raise StageError(
            f"{address}: no clip of the speaker {shorten(speaker)} is in the split {shorten(split)}"
        )
    if not ids:
        splits = sorted(dataset.clips.table["split"].unique().to_pylist())
        names = ", ".join(splits[:MAX_NAMES])
        raise StageError(
            f"{address}: no clip is in the split {shorten(split)}; it has {names} "
            "(clips.test_share of the params decides how many are in test)"
        )
    if audio == "swapped" and len(ids) < 2:
        return _pair_with_others(dataset, ids[0], seed)
    return pair_clips(dataset, ids, audio, seed=seed)


def _pair_with_others(dataset: Dataset, clip_id: str, seed: int) -> list[Pair]:
    """A split's only clip with the speech of clips of other splits. Raises StageError if there are none."""
    others = sorted(set(dataset.clips) - {clip_id}, key=lambda other: derive_key(seed, *other.encode()))
    if not others:
        raise StageError(f"{dataset.storage.address}: has one clip, so there is no speech to swap with")
    return [Pair(clip_id, other) for other in others[:MAX_OTHERS]]


def pair_clips(dataset: Dataset, clip_ids: Sequence[str], audio: Audio, *, seed: int) -> list[Pair]:
    """``make_pairs`` of these clips, whatever their split. Swapped pairs need two clips or more."""
    ids = sorted(clip_ids)
    if audio == "own":
        return [Pair(clip_id, clip_id) for clip_id in ids]
    assert len(ids) > 1, "one clip has no other to swap with"
    ledger = dataset.ledger().select_columns("clip_id", "sentence")
    sentences = {row["clip_id"]: row["sentence"] for row in ledger if row["sentence"]}
    ring = sorted(ids, key=lambda clip_id: derive_key(seed, *clip_id.encode()))

    def count_same_sentences(distance: int) -> int:
        """How many pairs of clips this far apart in the ring have the same sentence."""
        others = ring[distance:] + ring[:distance]
        pairs = zip(ring, others, strict=True)
        return sum(a in sentences and sentences[a] == sentences.get(b) for a, b in pairs)

    best = min(range(1, min(len(ring), MAX_DISTANCE + 1)), key=count_same_sentences)
    others = dict(zip(ring, ring[best:] + ring[:best], strict=True))
    return [Pair(clip_id, others[clip_id]) for clip_id in ids]


def describe_splits(dataset: Dataset, pair: Pair) -> dict[str, str]:
    """The splits of the frames and of the speech."""
    clips = {"split": pair.clip_id, "audio_split": pair.audio_clip_id}
    return {name: dataset.clips[clip_id]["split"] for name, clip_id in clips.items()}


def list_other_splits(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The splits of the speech that are not those of the faces, of rows with ``split``, ``audio_split``."""
    return sorted({row["audio_split"] for row in rows if row["audio_split"] not in (None, row["split"])})


def explain_other_splits(splits: Sequence[str]) -> str:
    """What ``list_other_splits`` found, in words; "" if the speech is of the faces' split."""
    if not splits:
        return ""
    if list(splits) == ["train"]:
        return "the speech is of the training split"
    return f"the speech is of {', '.join(f'the split {shorten(split)}' for split in splits[:MAX_NAMES])}"


def count_pair_frames(dataset: Dataset, pair: Pair) -> int:
    """Frames of a pair: the shorter clip's number."""
    return min(int(dataset.clips[clip_id]["frames"]) for clip_id in (pair.clip_id, pair.audio_clip_id))


def read_pair(dataset: Dataset, pair: Pair) -> tuple[ClipSample, ClipSample]:
    """The clip and the clip whose speech is used; one clip is read once."""
    clip = read_clip(dataset, pair.clip_id)
    return clip, clip if pair.audio_clip_id == pair.clip_id else read_clip(dataset, pair.audio_clip_id)


def write_crops(path: Path, frames: Frames) -> None:
    """Write frames (T, S, S, 3) as a tar of lossless WebP images. Same frames, same bytes."""
    with write_atomically(path) as partial, tarfile.open(partial, "w:", format=tarfile.USTAR_FORMAT) as tar:
        for k, frame in enumerate(frames):
            data = encode_frame(frame, "webp")
            header = tarfile.TarInfo(f"{k:05d}.webp")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def read_crops(path: Path, size: int) -> Frames:
    """Read frames (T, size, size, 3) from a tar of WebP images, by name. Raises ShardError."""
    frames: dict[str, Frames] = {}
    max_frames = min(MAX_FRAMES, MAX_CLIP_BYTES // (3 * size**2))
    try:
        with open_file(path) as file:
            for member, read in iterate_members(file, os.fstat(file.fileno()).st_size):
                if read is None or member.size > MAX_FRAME_BYTES or len(frames) >= max_frames:
                    raise ShardError(f"{path}: {shorten(member.name)} is not a frame, or one too many")
                try:
                    frames[member.name] = decode_frame(read(), "webp", (size, size))
                except ShardError as err:
                    raise ShardError(f"{path}: {shorten(member.name)}: {err}") from err
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise ShardError(f"{path}: not a complete tar of frames ({reason})") from err
    if not frames:
        raise ShardError(f"{path}: holds no frames")
    return np.stack([frames[name] for name in sorted(frames)])


def read_samples(out: Path) -> list[dict[str, Any]]:
    """Rows of the table in a complete folder of samples. Raises ShardError."""
    table = read_rows(out / TABLE, FIRST_SCHEMA, "table of samples", RULES, inside=out, optional=ADDED_FIELDS)
    rows = [dict.fromkeys(SCHEMA.names) | row for row in table]
    if len({row["name"] for row in rows}) < len(rows):
        raise ShardError(f"{out / TABLE}: lists a clip twice")
    return rows


def read_sample_info(out: Path) -> dict[str, Any]:
    """What generated the clips of a folder of samples: ``samples.json``. Raises StageError."""
    return read_json_file(out / RUN_INFO, "pipeline sample", SampleFields)
