"""Is a dataset whole and right? Quick: names, sizes, hashes and ranges. Full: every frame decoded.

Of a dataset that lies elsewhere a quick look reads the tables alone, and asks for the size and the checksum
of each shard; a full one brings the shards here, one after another.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.checksum import file_sha256
from shards.index import DATASET_NAME, INDEX_NAME, MEMBERS, ShardEntry, compute_digest, read_table_hashes
from shards.ledger import OK, count_by_code
from shards.reader import Dataset, decode_members, open_dataset, read_members
from shards.schema import ShardError
from shards.storage import LocalStorage, Storage
from shards.table import Row


def verify(where: Path | Storage, *, full: bool) -> Iterator[str]:
    """Problems, one sentence each; none when all is well."""
    try:
        dataset = open_dataset(where)
        yield from _check_manifest(dataset)
        places = dataset.clips.by_shard()
        nowhere = np.zeros(0, np.int64)
        for entry in dataset.shards.values():
            rows = dataset.clips.at(places.get(entry.name, nowhere))
            if isinstance(dataset.storage, LocalStorage):
                yield from _check_shard(dataset, dataset.storage, entry, rows, full=full)
            elif full:
                yield from _check_brought(dataset, entry, rows)
            else:
                yield from _check_told(dataset.storage, entry)
    except ShardError as err:
        yield str(err)


def _check_told(place: Storage, entry: ShardEntry) -> Iterator[str]:
    """What the place says of a shard."""
    if place.has_file(entry.name, entry.bytes, entry.sha256):
        return
    size = place.size(entry.name)
    if size is None:
        yield f"{place.address}/{entry.name}: not there"
    elif size != entry.bytes:
        yield f"{place.address}/{entry.name}: {size} bytes, expected {entry.bytes}"
    else:
        yield f"{place.address}/{entry.name}: has another sha256 than {entry.sha256}"


def _check_brought(dataset: Dataset, entry: ShardEntry, rows: Sequence[Row]) -> Iterator[str]:
    """A shard from elsewhere, checked here."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, entry.name)
        try:
            dataset.storage.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)
        except ShardError as err:
            yield str(err)
            return
        yield from _check_shard(dataset, LocalStorage(Path(scratch)), entry, rows, full=True)


def _check_shard(
    dataset: Dataset, here: LocalStorage, entry: ShardEntry, rows: Sequence[Row], *, full: bool
) -> Iterator[str]:
    """A shard whose file lies in a folder of this machine. Every byte is hashed."""
    problem = _check_file(here.path / entry.name, entry)
    if problem:
        yield problem
        return
    yield from _check_members(here.path / entry.name, rows)
    if full:
        yield from _check_contents(replace(dataset, storage=here), rows)


def _check_manifest(dataset: Dataset) -> Iterator[str]:
    """The manifest, the index and the ledger must tell one story."""
    path = f"{dataset.storage.address}/{DATASET_NAME}"
    digest = compute_digest(dataset.shards.values())
    if dataset.manifest.get("digest") != digest:
        yield f"{path}: digest {dataset.manifest.get('digest')!r}, its shards make {digest!r}"
    counts: dict[str, dict[str, int]] = {}
    for row in dataset.clips.values():
        split = counts.setdefault(row["split"], {"clips": 0, "frames": 0})
        split["clips"] += 1
        split["frames"] += row["frames"]
    for name in sorted(set(counts) | set(dataset.manifest.get("splits", {}))):
        told = dataset.manifest["splits"].get(name, {})
        found = counts.get(name, {"clips": 0, "frames": 0})
        if any(told.get(key) != found[key] for key in found):
            yield f"{path}: split {name} is said to hold {told}, {INDEX_NAME} lists {found}"
    try:
        ledger = dataset.ledger()
    except ShardError as err:
        yield str(err)
        return
    if isinstance(dataset.storage, LocalStorage):  # elsewhere no table of another build is read at all
        for name, sha256 in read_table_hashes(dataset.manifest).items():
            found_sha256 = file_sha256(dataset.storage.path / name)
            if found_sha256 != sha256:
                yield f"{dataset.storage.path / name}: sha256 {found_sha256}, expected {sha256}"
    kept = {row["clip_id"] for row in ledger if row["status"] == OK}
    for clip_id in sorted(kept ^ set(dataset.clips)):
        where = "the ledger keeps it" if clip_id in kept else "the ledger does not keep it"
        yield f"{clip_id}: {where}, {INDEX_NAME} {'lacks' if clip_id in kept else 'lists'} it"
    if len(ledger) != dataset.manifest.get("files_found"):
        found_files = dataset.manifest.get("files_found")
        yield f"{path}: {found_files} files found, the ledger has {len(ledger)} rows"
    dropped = {code: count for code, count in count_by_code(ledger).items() if code != OK}
    if dropped != dataset.manifest.get("dropped"):
        yield f"{path}: dropped {dataset.manifest.get('dropped')}, the ledger says {dropped}"


def _check_file(path: Path, entry: ShardEntry) -> str:
    """The shard's size and sha256 against the manifest."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{path}: {size} bytes, expected {entry.bytes}"
        sha256 = file_sha256(path)
    except OSError as err:
        return f"{path}: cannot be read ({err.strerror})"
    if sha256 != entry.sha256:
        return f"{path}: sha256 {sha256}, expected {entry.sha256}"
    return ""


def _check_members(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """The index's byte ranges against the tar's own headers, and the CRCs against the bytes."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            clip_id, _, name = member.name.partition(".")
            found[clip_id, name.partition(".")[0]] = (member.offset_data, member.size)
    told = {
        (row["clip_id"], name): (row[f"{name}_offset"], row[f"{name}_size"])
        for row in rows
        for name in MEMBERS
    }
    for clip_id, name in sorted(set(found) ^ set(told)):
        where = "the tar" if (clip_id, name) in found else INDEX_NAME
        yield f"{path}: {clip_id}'s {name} is in {where} alone"
    for (clip_id, name), place in told.items():
        if found.get((clip_id, name), place) != place:
            yield f"{path}: {clip_id}'s {name} lies at {found[clip_id, name]}, the index says {place}"
    with path.open("rb") as file:
        for row in rows:
            for name in MEMBERS:
                file.seek(row[f"{name}_offset"])
                if zlib.crc32(file.read(row[f"{name}_size"])) != row[f"{name}_crc32"]:
                    yield f"{path}: {row['clip_id']}'s {name} have another CRC than the index names"


def _check_contents(dataset: Dataset, rows: Sequence[Row]) -> Iterator[str]:
    """Every clip decoded, and its json against the index."""
    for row in rows:
        clip_id = row["clip_id"]
        try:
            sample = decode_members(clip_id, read_members(dataset, clip_id))
        except ShardError as err:
            yield str(err)
            continue
        expected: dict[str, Any] = {
            "clip_id": clip_id,
            "split": row["split"],
            "speaker": row["speaker"],
            "frames": row["frames"],
            "source_sha256": row["source_sha256"],
        }
        for name, value in expected.items():
            if sample.info.get(name) != value:
                yield f"{clip_id}: its json says {name} {sample.info.get(name)!r}, the index {value!r}"
        if len(sample.frames) != row["frames"]:
            yield f"{clip_id}: {len(sample.frames)} frames decode, the index says {row['frames']}"
