"""Open a dataset and read single clips, each with one read or range request, checked by CRC.

Files are untrusted: nothing is unpickled, and sizes and offsets are checked before they are used.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.codec import unpack_frames
from shards.errors import shorten
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    SPEECH,
    SPEECH_FIELDS,
    Clips,
    ShardEntry,
    list_members,
    parse_shard_entries,
    read_index,
    read_manifest,
    read_table,
)
from shards.ledger import parse_ledger
from shards.names import check_clip_id
from shards.retry import RetryError
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    SPEECH_MEMBER,
    ClipSample,
    ShardError,
    json_to_info,
    npy_to_array,
)
from shards.storage import TRIES, Storage, open_storage
from shards.table import ROWS_AT_ONCE, Rows

P = ParamSpec("P")
T = TypeVar("T")

MAX_GAP_BYTES = 2**16  # between a clip's members: tar headers and padding


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset: its manifest, its shards and its clips."""

    storage: Storage
    manifest: Mapping[str, Any]
    shards: Mapping[str, ShardEntry]
    clips: Clips

    @property
    def folder(self) -> Path:
        """The folder of a local dataset. For a remote one this is only its address as a Path."""
        return Path(self.storage.address)

    def ledger(self) -> Rows:
        """Read the ledger that belongs to the manifest."""
        data = read_table(self.storage, self.manifest, LEDGER_NAME)
        return parse_ledger(data, f"{self.storage.address}/{LEDGER_NAME}")


def open_dataset(location: Path | Storage, *, hashes: bool = True) -> Dataset:
    """Read the manifest and the index. Raises ShardError if they contradict each other.

    ``hashes=False`` leaves out the sha256 of each clip, which takes half of the index's memory.
    """
    storage = open_storage(location)
    manifest = read_manifest(storage)
    shards = {entry.name: entry for entry in parse_shard_entries(manifest)}
    clips = read_index(storage, manifest, hashes=hashes)
    _check_byte_ranges(clips, shards, f"{storage.address}/{INDEX_NAME}")
    return Dataset(storage, manifest, shards, clips)


@functools.lru_cache(maxsize=1)
def open_cached_dataset(address: str, digest: str) -> Dataset:
    """The dataset at an address; a process opens the same one only once.

    Raises ShardError if its digest is no longer ``digest``.
    """
    dataset = open_dataset(open_storage(address))
    if (current := dataset.manifest.get("digest")) != digest:
        raise ShardError(
            f"{dataset.storage.address}: is now the dataset {str(current)[:12]}, expected {digest[:12]}"
        )
    return dataset


def _check_byte_ranges(clips: Clips, shards: Mapping[str, ShardEntry], path: str) -> None:
    """Raise ShardError unless the members of each clip are close together in a shard of the manifest."""
    names, shard_of_row = clips.number_shards()
    shard_bytes = np.array([shards[name].bytes if name in shards else -1 for name in names], np.int64)
    for first in range(0, len(shard_of_row), ROWS_AT_ONCE):
        chunk = slice(first, first + ROWS_AT_ONCE)
        _check_chunk(clips.table[chunk], shard_bytes[shard_of_row[chunk]], path)


def _check_chunk(table: pa.Table, shard_bytes: NDArray[np.int64], path: str) -> None:
    """Check some rows. ``shard_bytes``: the size of each row's shard, -1 if the manifest lacks it."""

    def refuse(is_wrong: NDArray[np.bool_], message: str) -> None:
        if is_wrong.any():
            raise ShardError(f"{path}: {message.format(**Rows(table)[int(np.argmax(is_wrong))])}")

    refuse(shard_bytes < 0, f"{{clip_id}} lies in {{shard!r}}, which {DATASET_NAME} does not list")
    outside = table["frames"].to_numpy() < 1
    first, end, total = shard_bytes, np.zeros_like(shard_bytes), np.zeros_like(shard_bytes)
    byte_ranges = [
        [table[f"{name}_{column}"].to_numpy() for column in ("offset", "size")] for name in MEMBERS
    ]
    if SPEECH_FIELDS[0].name in table.column_names:
        nulls = np.stack([table[field.name].is_null().to_numpy() for field in SPEECH_FIELDS])
        refuse(
            nulls.any(axis=0) != nulls.all(axis=0), "{clip_id} has a part of the columns of speech features"
        )
        # as far as the checks go, a clip without speech features has no bytes of them beside its frames
        offset, size = (table[f"{SPEECH}_{column}"] for column in ("offset", "size"))
        offset = pc.coalesce(offset, table["frames_offset"])
        byte_ranges.append([offset.to_numpy(), pc.fill_null(size, 0).to_numpy()])
    for offset, size in byte_ranges:
        outside = outside | (offset < 0) | (size < 0) | (size > shard_bytes) | (offset > shard_bytes - size)
        first, end, total = np.minimum(first, offset), np.maximum(end, offset + size), total + size
    refuse(outside, "{clip_id}'s bytes do not lie in {shard}")
    refuse(end - first > total + MAX_GAP_BYTES, "{clip_id}'s members do not lie together in {shard}")


def read_members(dataset: Dataset, clip_id: str, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """Read all or some members of a clip (frames, boxes, mels, affine, json, speech), checked by CRC.

    Raises ShardError, also for a member that the clip does not have.
    """
    row = dataset.clips.get(clip_id)
    if row is None:
        raise ShardError(
            f"{dataset.storage.address}: holds no clip {shorten(clip_id)}; `pipeline explain` may know why"
        )
    known = list_members(row)
    names = known if names is None else names
    if missing := [name for name in names if name not in known]:
        raise ShardError(f"{dataset.storage.address}: {clip_id} has no {', '.join(missing)}")
    starts = {name: row[f"{name}_offset"] for name in names}
    ends = {name: start + row[f"{name}_size"] for name, start in starts.items()}
    first = min(starts.values())
    for _ in range(TRIES):
        data = dataset.storage.read(row["shard"], first, max(ends.values()))  # close together: one request
        members = {name: data[start - first : ends[name] - first] for name, start in starts.items()}
        altered_member = find_altered_member(row, members)
        if altered_member is None:
            return members
    path = f"{dataset.storage.address}/{row['shard']}"
    raise ShardError(f"{path}: {clip_id}'s {altered_member} are not the bytes that the index names")


def find_altered_member(row: Mapping[str, Any], members: Mapping[str, bytes]) -> str | None:
    """The name of a member whose CRC is not the one in its index row, if there is one."""
    return next((name for name, data in members.items() if zlib.crc32(data) != row[f"{name}_crc32"]), None)


def decode_members(clip_id: str, members: Mapping[str, bytes]) -> ClipSample:
    """Decode a clip's members. Raises ShardError for anything that does not follow the schema."""
    check_clip_id(clip_id)
    info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
    size = (info["size"], info["size"])
    return ClipSample(
        key=clip_id,
        frames=unpack_frames(members["frames"], info["frame_offsets"], info["codec"], size, clip_id),
        boxes=npy_to_array(members["boxes"], f"{clip_id}.{BOXES_MEMBER}"),
        mels=npy_to_array(members["mels"], f"{clip_id}.{MELS_MEMBER}"),
        affine=npy_to_array(members["affine"], f"{clip_id}.{AFFINE_MEMBER}"),
        info=info,
        speech=npy_to_array(members[SPEECH], f"{clip_id}.{SPEECH_MEMBER}") if SPEECH in members else None,
    )


def read_clip(dataset: Dataset, clip_id: str) -> ClipSample:
    """Read, decode and check one clip. Raises ShardError, which names its shard."""
    members = read_members(dataset, clip_id)
    with _name_shard(dataset, clip_id):
        clip = decode_members(clip_id, members)
        check_index_row(clip.info, dataset.clips[clip_id], clip_id)
    return clip


def read_unless_damaged(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | ShardError:
    """What ``read`` returns, or the error of a clip that is damaged. Raises RetryError, of the storage."""
    try:
        return read(*args, **kwargs)
    except RetryError:
        raise
    except ShardError as err:
        return err


def read_info(dataset: Dataset, clip_id: str) -> dict[str, Any]:
    """Read a clip's json alone, and no frames. Raises ShardError, which names its shard."""
    members = read_members(dataset, clip_id, ["json"])
    with _name_shard(dataset, clip_id):
        info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
        check_index_row(info, dataset.clips[clip_id], clip_id)
    return info


@contextlib.contextmanager
def _name_shard(dataset: Dataset, clip_id: str) -> Iterator[None]:
    """Name the shard of a clip in errors about it."""
    try:
        yield
    except ShardError as err:
        raise ShardError(f"{dataset.storage.address}/{dataset.clips[clip_id]['shard']}: {err}") from err


def check_index_row(info: Mapping[str, Any], row: Mapping[str, Any], clip_id: str) -> None:
    """Raise ShardError unless a clip's json has the number of frames of its index row."""
    if info["frames"] != row["frames"]:
        raise ShardError(f"{clip_id}: its json has {info['frames']} frames, the index {row['frames']}")
