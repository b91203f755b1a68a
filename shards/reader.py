"""Read single clips by the index: one read or range request, checked by CRCs. Files may be a stranger's."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.codec import CODECS, Codec, unpack_frames
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    Clips,
    ShardEntry,
    read_manifest,
    read_index,
    read_table,
    parse_shard_entries,
)
from shards.ledger import SCHEMA as LEDGER_SCHEMA
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
from shards.storage import TRIES, Storage, open_storage
from shards.table import ROWS_AT_ONCE, Rows, parse_rows

MAX_SIZE = 1024  # px of a crop's side; a json from a stranger may ask for more memory than there is
MAX_FRAMES = 1_000_000
MAX_APART_BYTES = 2**16  # between a clip's members: tar headers and padding


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset: its manifest, its shards and its clips."""

    storage: Storage
    manifest: Mapping[str, Any]
    shards: Mapping[str, ShardEntry]
    clips: Clips

    @property
    def folder(self) -> Path:
        """Where it lies on this machine; of a dataset elsewhere no more than its name."""
        return Path(self.storage.address)

    def ledger(self) -> Rows:
        """The ledger that belongs to it."""
        data = read_table(self.storage, self.manifest, LEDGER_NAME)
        return parse_rows(data, LEDGER_SCHEMA, f"{self.storage.address}/{LEDGER_NAME}", "ledger")


def open_dataset(where: Path | Storage, *, hashes: bool = True) -> Dataset:
    """Read the manifest and the index. Raises ShardError when they do not fit together.

    ``hashes=False`` spares the memory of the clips' sha256s, where nobody asks for them.
    """
    place = open_storage(where)
    manifest = read_manifest(place)
    shards = {entry.name: entry for entry in parse_shard_entries(manifest, f"{place.address}/{DATASET_NAME}")}
    clips = read_index(place, manifest, hashes=hashes)
    _check_places(clips, shards, f"{place.address}/{INDEX_NAME}")
    return Dataset(place, manifest, shards, clips)


@functools.lru_cache(maxsize=1)
def open_cached_dataset(address: str, digest: str) -> Dataset:
    """The dataset with this digest at an address; a process that asks again does not open it again.

    Raises ShardError when it is another by now.
    """
    dataset = open_dataset(open_storage(address))
    if (found := dataset.manifest.get("digest")) != digest:
        raise ShardError(f"{dataset.storage.address}: became the dataset {str(found)[:12]}, was {digest[:12]}")
    return dataset


def _check_places(clips: Clips, shards: Mapping[str, ShardEntry], path: str) -> None:
    """Raise ShardError unless each clip's bytes lie together in a shard of the manifest."""
    names, place = clips.shard_names()
    rooms = np.array([shards[name].bytes if name in shards else -1 for name in names], np.int64)
    for first in range(0, len(place), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        _check_some(clips.table[some], rooms[place[some]], path)


def _check_some(table: pa.Table, room: NDArray[np.int64], path: str) -> None:
    """The same for some clips, by the bytes of each one's shard: -1 where the manifest does not list it."""

    def refuse(wrong: NDArray[np.bool_], told: str) -> None:
        if wrong.any():
            raise ShardError(f"{path}: {told.format(**Rows(table)[int(np.argmax(wrong))])}")

    refuse(room < 0, f"{{clip_id}} lies in {{shard!r}}, which {DATASET_NAME} does not list")
    outside = table["frames"].to_numpy() < 1
    first, end, total = room, np.zeros_like(room), np.zeros_like(room)
    for name in MEMBERS:
        offset, size = (table[f"{name}_{column}"].to_numpy() for column in ("offset", "size"))
        outside = outside | (offset < 0) | (size < 0) | (size > room) | (offset > room - size)
        first, end, total = np.minimum(first, offset), np.maximum(end, offset + size), total + size
    refuse(outside, "{clip_id}'s bytes do not lie in {shard}")
    refuse(end - first > total + MAX_APART_BYTES, "{clip_id}'s members do not lie together in {shard}")


def read_members(dataset: Dataset, clip_id: str, names: Sequence[str] = MEMBERS) -> dict[str, bytes]:
    """Some of a clip's members (frames, boxes, mels, affine, json), or all of them, checked by CRC."""
    row = dataset.clips.get(clip_id)
    if row is None:
        where = dataset.storage.address
        raise ShardError(f"{where}: holds no clip {clip_id!r}; `pipeline explain` may know why")
    starts = {name: row[f"{name}_offset"] for name in names}
    ends = {name: start + row[f"{name}_size"] for name, start in starts.items()}
    first = min(starts.values())
    for _ in range(TRIES):
        data = dataset.storage.read(row["shard"], first, max(ends.values()))  # they lie together: one request
        members = {name: data[start - first : ends[name] - first] for name, start in starts.items()}
        wrong = find_altered_member(row, members)
        if wrong is None:
            return members
    path = f"{dataset.storage.address}/{row['shard']}"
    raise ShardError(f"{path}: {clip_id}'s {wrong} are not the bytes that the index names")


def find_altered_member(row: Mapping[str, Any], members: Mapping[str, bytes]) -> str | None:
    """The name of a member that has not the CRC of its row, if there is one."""
    return next((name for name, data in members.items() if zlib.crc32(data) != row[f"{name}_crc32"]), None)


def read_frame_layout(name: str, info: Mapping[str, Any]) -> tuple[Codec, list[int]]:
    """How a clip's frames are coded, and the offsets that cut them. Raises ShardError."""
    codec, size, offsets = info.get("codec"), info.get("size"), info.get("frame_offsets")
    if codec not in CODECS:
        raise ShardError(f"{name}: codec {codec!r}, known are {', '.join(CODECS)}")
    if not isinstance(size, int) or not 0 < size <= MAX_SIZE:
        raise ShardError(f"{name}: size {size!r}, expected 1 to {MAX_SIZE} px")
    if not isinstance(offsets, list) or not 2 <= len(offsets) <= MAX_FRAMES:
        raise ShardError(f"{name}: frame_offsets are no list of 2 to {MAX_FRAMES} numbers")
    return cast(Codec, codec), offsets


def decode_members(clip_id: str, members: Mapping[str, bytes]) -> ClipSample:
    """Members to arrays. Raises ShardError on what does not fit the schema."""
    info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
    codec, offsets = read_frame_layout(clip_id, info)
    return ClipSample(
        key=clip_id,
        frames=unpack_frames(members["frames"], offsets, codec, (info["size"], info["size"]), clip_id),
        boxes=npy_to_array(members["boxes"], f"{clip_id}.{BOXES_MEMBER}"),
        mels=npy_to_array(members["mels"], f"{clip_id}.{MELS_MEMBER}"),
        affine=npy_to_array(members["affine"], f"{clip_id}.{AFFINE_MEMBER}"),
        info=info,
    )


def read_clip(dataset: Dataset, clip_id: str) -> ClipSample:
    """One clip, decoded and checked."""
    return decode_members(clip_id, read_members(dataset, clip_id))
