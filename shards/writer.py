"""Write a shard: a plain WebDataset tar whose bytes depend on its clips alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.checksum import HASH_LETTERS, file_sha256
from shards.index import ShardEntry
from shards.names import check_clip_id
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    SPEECH_MEMBER,
    ShardError,
    array_to_npy,
    check_arrays,
    describe_excess,
    get_frames_member,
    info_to_json,
)


@dataclass(frozen=True, slots=True)
class PackedClip:
    """A clip ready for the tar: its frames are encoded, everything else is as in ClipSample."""

    key: str
    blob: bytes  # T encoded frames, cut by info["frame_offsets"]
    boxes: NDArray[np.int16]
    mels: NDArray[np.float32]
    affine: NDArray[np.float32]
    info: Mapping[str, Any]
    speech: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        check_clip_id(self.key)
        if excess := describe_excess(self.info["frames"], self.info["size"]):
            raise ShardError(f"{self.key}: {excess}")
        size = (self.info["size"], self.info["size"])
        check_arrays(self.key, self.info["frames"], size, self.boxes, self.mels, self.affine, self.speech)

    def members(self) -> dict[str, bytes]:
        """The bytes of each member by name, e.g. ``frames.webp``."""
        members = {
            get_frames_member(self.info["codec"]): self.blob,
            BOXES_MEMBER: array_to_npy(self.boxes),
            MELS_MEMBER: array_to_npy(self.mels),
            AFFINE_MEMBER: array_to_npy(self.affine),
            JSON_MEMBER: info_to_json(self.info),
        }
        if self.speech is not None:
            members[SPEECH_MEMBER] = array_to_npy(self.speech)
        return members


def make_shard_name(split: str, number: int, sha256: str) -> str:
    """The file name of a shard. It depends on the contents: a rebuilt shard never overwrites one in use."""
    return f"{split}-{number:05d}-{sha256[:HASH_LETTERS]}.tar"


def write_tar(path: Path, clips: Iterable[PackedClip]) -> list[dict[str, Any]]:
    """Write clips in order; return their index rows, without the shard's name."""
    rows: list[dict[str, Any]] = []
    with tarfile.open(path, "w:", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            members = clip.members()
            row: dict[str, Any] = {
                "clip_id": clip.key,
                "split": clip.info["split"],
                "speaker": clip.info["speaker"],
                "frames": clip.info["frames"],
                "sha256": compute_members_digest(members.values()),
                "source_sha256": clip.info["source_sha256"],
            }
            for full in sorted(members):
                name = full.partition(".")[0]  # in the index: "frames" of "frames.webp"
                header = tarfile.TarInfo(f"{clip.key}.{full}")  # time 0, owner 0: bytes depend on clips alone
                header.size = len(members[full])
                row[f"{name}_offset"] = tar.offset + tarfile.BLOCKSIZE
                row[f"{name}_size"] = header.size
                row[f"{name}_crc32"] = zlib.crc32(members[full])
                tar.addfile(header, io.BytesIO(members[full]))
            rows.append(row)
    return rows


def describe_shard(path: Path, split: str, number: int, rows: Sequence[Mapping[str, Any]]) -> ShardEntry:
    """The manifest's entry of a tar at ``path``, with its name to be, from the rows of ``write_tar``."""
    sha256 = file_sha256(path)
    n_frames = sum(row["frames"] for row in rows)
    name = make_shard_name(split, number, sha256)
    return ShardEntry(name, split, path.stat().st_size, sha256, len(rows), n_frames)


def compute_members_digest(members: Iterable[bytes]) -> str:
    """sha256 of a clip's members, in the order of ``PackedClip.members``."""
    digest = hashlib.sha256()
    for data in members:
        digest.update(data)
    return digest.hexdigest()
