"""Read single clips by the index: a few preads, each checked by its CRC. Files may be a stranger's."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shards.codec import CODECS, Codec, unpack_frames
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    MEMBERS,
    ShardEntry,
    read_dataset,
    read_index,
    shard_entries,
)
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    ClipSample,
    ShardError,
    json_to_info,
    npy_to_array,
)

MAX_SIZE = 1024  # px of a crop's side; a json from a stranger may ask for more memory than there is
MAX_FRAMES = 1_000_000


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset: its manifest, its shards and its clips."""

    folder: Path
    manifest: Mapping[str, Any]
    shards: Mapping[str, ShardEntry]
    clips: Mapping[str, Mapping[str, Any]]  # rows of index.parquet by clip id, in the shards' order


def open_dataset(folder: Path) -> Dataset:
    """Read the manifest and the index. Raises ShardError when they do not fit together."""
    manifest = read_dataset(folder)
    shards = {entry.name: entry for entry in shard_entries(manifest, folder / DATASET_NAME)}
    clips: dict[str, Mapping[str, Any]] = {}
    for row in read_index(folder / INDEX_NAME):
        if row["shard"] not in shards:
            raise ShardError(f"{folder / INDEX_NAME}: {row['clip_id']} lies in {row['shard']!r}, "
                             f"which {DATASET_NAME} does not list")  # fmt: skip
        if any(row[column] is None for column in row):
            raise ShardError(f"{folder / INDEX_NAME}: the row of {row['clip_id']!r} has gaps")
        ends = [row[f"{name}_offset"] + row[f"{name}_size"] for name in MEMBERS]
        starts = [row[f"{name}_offset"] for name in MEMBERS]
        if min(starts) < 0 or max(ends) > shards[row["shard"]].bytes or row["frames"] < 1:
            raise ShardError(f"{folder / INDEX_NAME}: {row['clip_id']}'s bytes do not lie in {row['shard']}")
        if row["clip_id"] in clips:
            raise ShardError(f"{folder / INDEX_NAME}: holds {row['clip_id']} twice")
        clips[row["clip_id"]] = row
    return Dataset(folder, manifest, shards, clips)


def read_members(dataset: Dataset, clip_id: str, names: Sequence[str] = MEMBERS) -> dict[str, bytes]:
    """Some of a clip's members (frames, boxes, mels, affine, json), or all of them, checked by CRC."""
    row = dataset.clips.get(clip_id)
    if row is None:
        raise ShardError(f"{dataset.folder}: holds no clip {clip_id!r}; `pipeline explain` may know why")
    path = dataset.folder / row["shard"]
    members = {}
    try:
        with path.open("rb") as file:
            for name in names:
                file.seek(row[f"{name}_offset"])
                members[name] = file.read(row[f"{name}_size"])
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    for name, data in members.items():
        if len(data) != row[f"{name}_size"] or zlib.crc32(data) != row[f"{name}_crc32"]:
            raise ShardError(f"{path}: {clip_id}'s {name} are not the bytes that the index names")
    return members


def decode_members(clip_id: str, members: Mapping[str, bytes]) -> ClipSample:
    """Members to arrays. Raises ShardError on what does not fit the schema."""
    info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
    codec, size, offsets = info.get("codec"), info.get("size"), info.get("frame_offsets")
    if codec not in CODECS:
        raise ShardError(f"{clip_id}: codec {codec!r}, known are {', '.join(CODECS)}")
    if not isinstance(size, int) or not 0 < size <= MAX_SIZE:
        raise ShardError(f"{clip_id}: size {size!r}, expected 1 to {MAX_SIZE} px")
    if not isinstance(offsets, list) or not 2 <= len(offsets) <= MAX_FRAMES:
        raise ShardError(f"{clip_id}: frame_offsets are no list of 2 to {MAX_FRAMES} numbers")
    return ClipSample(
        key=clip_id,
        frames=unpack_frames(members["frames"], offsets, cast(Codec, codec), (size, size), clip_id),
        boxes=npy_to_array(members["boxes"], f"{clip_id}.{BOXES_MEMBER}"),
        mels=npy_to_array(members["mels"], f"{clip_id}.{MELS_MEMBER}"),
        affine=npy_to_array(members["affine"], f"{clip_id}.{AFFINE_MEMBER}"),
        info=info,
    )


def read_clip(dataset: Dataset, clip_id: str) -> ClipSample:
    """One clip, decoded and checked."""
    return decode_members(clip_id, read_members(dataset, clip_id))
