"""Read single clips by the index: one read or range request, checked by CRCs. Files may be a stranger's."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shards.codec import CODECS, Codec, unpack_frames
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    ShardEntry,
    read_dataset,
    read_index,
    read_table,
    shard_entries,
)
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.places import TRIES, Place, place_of
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
from shards.table import Row, parse_rows

MAX_SIZE = 1024  # px of a crop's side; a json from a stranger may ask for more memory than there is
MAX_FRAMES = 1_000_000
MAX_APART_BYTES = 2**16  # between a clip's members: tar headers and padding


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset: its manifest, its shards and its clips."""

    place: Place
    manifest: Mapping[str, Any]
    shards: Mapping[str, ShardEntry]
    clips: Mapping[str, Mapping[str, Any]]  # rows of index.parquet by clip id, in the shards' order

    @property
    def folder(self) -> Path:
        """Where it lies on this machine; of a dataset elsewhere no more than its name."""
        return Path(self.place.address)

    def ledger(self) -> list[Row]:
        """The ledger that belongs to it."""
        data = read_table(self.place, self.manifest, LEDGER_NAME)
        return parse_rows(data, LEDGER_SCHEMA, f"{self.place.address}/{LEDGER_NAME}", "ledger")


def open_dataset(where: Path | Place) -> Dataset:
    """Read the manifest and the index. Raises ShardError when they do not fit together."""
    place = place_of(where)
    manifest = read_dataset(place)
    shards = {entry.name: entry for entry in shard_entries(manifest, f"{place.address}/{DATASET_NAME}")}
    index = f"{place.address}/{INDEX_NAME}"
    clips: dict[str, Mapping[str, Any]] = {}
    for row in read_index(place, manifest):
        if row["shard"] not in shards:
            raise ShardError(
                f"{index}: {row['clip_id']} lies in {row['shard']!r}, which {DATASET_NAME} does not list"
            )
        if any(row[column] is None for column in row):
            raise ShardError(f"{index}: the row of {row['clip_id']!r} has gaps")
        ends = [row[f"{name}_offset"] + row[f"{name}_size"] for name in MEMBERS]
        starts = [row[f"{name}_offset"] for name in MEMBERS]
        if min(starts) < 0 or max(ends) > shards[row["shard"]].bytes or row["frames"] < 1:
            raise ShardError(f"{index}: {row['clip_id']}'s bytes do not lie in {row['shard']}")
        if max(ends) - min(starts) > sum(row[f"{name}_size"] for name in MEMBERS) + MAX_APART_BYTES:
            raise ShardError(f"{index}: {row['clip_id']}'s members do not lie together in {row['shard']}")
        if row["clip_id"] in clips:
            raise ShardError(f"{index}: holds {row['clip_id']} twice")
        clips[row["clip_id"]] = row
    return Dataset(place, manifest, shards, clips)


def read_members(dataset: Dataset, clip_id: str) -> dict[str, bytes]:
    """A clip's members by the index's names (frames, boxes, mels, affine, json), checked by CRC."""
    row = dataset.clips.get(clip_id)
    if row is None:
        where = dataset.place.address
        raise ShardError(f"{where}: holds no clip {clip_id!r}; `pipeline explain` may know why")
    starts = {name: row[f"{name}_offset"] for name in MEMBERS}
    ends = {name: start + row[f"{name}_size"] for name, start in starts.items()}
    first = min(starts.values())
    wrong: list[str] = []
    for _ in range(TRIES):
        data = dataset.place.read(row["shard"], first, max(ends.values()))  # they lie together: one request
        members = {name: data[start - first : ends[name] - first] for name, start in starts.items()}
        wrong = [name for name, found in members.items() if zlib.crc32(found) != row[f"{name}_crc32"]]
        if not wrong:
            return members
    path = f"{dataset.place.address}/{row['shard']}"
    raise ShardError(f"{path}: {clip_id}'s {wrong[0]} are not the bytes that the index names")


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
