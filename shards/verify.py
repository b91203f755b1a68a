"""Check a dataset. Quick: names, sizes, hashes and byte ranges. Full: every frame is decoded too.

A quick check of a remote dataset reads only the tables, and requests the size and the checksum of each shard.
A full one downloads the shards, one after another.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.checksum import file_sha256
from shards.errors import shorten, shorten_message
from shards.files import open_file
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    ShardEntry,
    compute_digest,
    get_params_section,
    list_members,
    read_table_hashes,
)
from shards.ledger import OK, count_by_code, has_spans
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ClipSample, ShardError
from shards.spans import check_spans, count_files
from shards.storage import LocalStorage, Storage
from shards.table import Row, Rows
from shards.tar_members import iterate_members
from shards.writer import compute_members_digest

NO_ENCODER = "none"  # params.speech.encoder of a dataset without speech features
MEL_MARGIN_DB = 0.01  # for the rounding of float32


def verify(where: Path | Storage, *, full: bool) -> Iterator[str]:
    """Problems of a dataset, one line each."""
    return map(shorten_message, _find_problems(where, full=full))


def _find_problems(where: Path | Storage, *, full: bool) -> Iterator[str]:
    try:
        dataset = open_dataset(where)
        yield from _check_tables(dataset)
        rows_by_shard = dataset.clips.group_by_shard()
        no_rows = np.zeros(0, np.int64)
        for entry in dataset.shards.values():
            rows = dataset.clips.take_rows(rows_by_shard.get(entry.name, no_rows))
            if isinstance(dataset.storage, LocalStorage):
                yield from _check_local_shard(dataset, dataset.storage, entry, rows, full=full)
            elif full:
                yield from _check_downloaded_shard(dataset, entry, rows)
            else:
                yield from _check_remote_shard(dataset.storage, entry)
    except ShardError as err:
        yield str(err)


def _check_tables(dataset: Dataset) -> Iterator[str]:
    """Check that the manifest, the index and the ledger agree."""
    yield from _check_digest(dataset)
    yield from _check_splits(dataset)
    yield from _check_speech(dataset)
    try:
        ledger = dataset.ledger()
    except ShardError as err:
        yield str(err)
        return
    yield from _check_table_hashes(dataset)
    yield from _check_clips(dataset, ledger)
    yield from _check_ledger_counts(dataset, ledger)
    if has_spans(ledger):
        yield from (f"{dataset.storage.address}/{LEDGER_NAME}: {line}" for line in check_spans(ledger))


def _check_digest(dataset: Dataset) -> Iterator[str]:
    digest = compute_digest(dataset.shards.values())
    if dataset.manifest.get("digest") != digest:
        path = f"{dataset.storage.address}/{DATASET_NAME}"
        yield f"{path}: digest {dataset.manifest.get('digest')!r}, its shards make {digest!r}"


def _check_splits(dataset: Dataset) -> Iterator[str]:
    """The manifest's clips and frames per split against the index."""
    counts: dict[str, dict[str, int]] = {}
    for row in dataset.clips.values():
        split = counts.setdefault(row["split"], {"clips": 0, "frames": 0})
        split["clips"] += 1
        split["frames"] += row["frames"]
    splits = dataset.manifest.get("splits", {})
    for name in sorted(set(counts) | set(splits)):
        in_manifest = splits.get(name, {})
        in_index = counts.get(name, {"clips": 0, "frames": 0})
        if any(in_manifest.get(key) != in_index[key] for key in in_index):
            path = f"{dataset.storage.address}/{DATASET_NAME}"
            yield f"{path}: split {name} has {in_manifest}, {INDEX_NAME} lists {in_index}"


def _check_speech(dataset: Dataset) -> Iterator[str]:
    """Speech features are of all clips or of none, as the manifest says."""
    encoder = get_params_section(dataset.manifest, "speech").get("encoder") or NO_ENCODER
    ids = list(dataset.clips)
    without = dataset.clips.list_without_speech(ids)
    wrong = sorted(set(ids) - set(without)) if encoder == NO_ENCODER else without
    if wrong:
        what = "have speech features" if encoder == NO_ENCODER else "have no speech features"
        path = f"{dataset.storage.address}/{DATASET_NAME}"
        yield f"{path}: params.speech.encoder is {encoder!r}, {len(wrong)} clips {what}, the first {wrong[0]}"


def _check_table_hashes(dataset: Dataset) -> Iterator[str]:
    """The sha256 of a local dataset's tables; remote ones are checked whenever they are read."""
    if not isinstance(dataset.storage, LocalStorage):
        return
    for name, expected in read_table_hashes(dataset.manifest).items():
        path = dataset.storage.path / name
        try:
            sha256 = file_sha256(path)
        except OSError as err:
            yield f"{path}: cannot be read ({err.strerror})"
            continue
        if sha256 != expected:
            yield f"{path}: sha256 {sha256}, expected {expected}"


def _check_clips(dataset: Dataset, ledger: Rows) -> Iterator[str]:
    """The index must list the clips that the ledger marks as ok, and no others."""
    usable = {row["clip_id"] for row in ledger if row["status"] == OK}
    for clip_id in sorted(usable ^ set(dataset.clips)):
        if clip_id in usable:
            yield f"{clip_id}: the ledger marks it as ok, {INDEX_NAME} lacks it"
        else:
            yield f"{clip_id}: the ledger does not keep it, {INDEX_NAME} lists it"


def _check_ledger_counts(dataset: Dataset, ledger: Rows) -> Iterator[str]:
    """The manifest's number of files and of dropped rows against the ledger."""
    path = f"{dataset.storage.address}/{DATASET_NAME}"
    n_files = dataset.manifest.get("files_found")
    if (n_in_ledger := count_files(ledger)) != n_files:
        what = "files" if has_spans(ledger) else "rows"
        yield f"{path}: {n_files} files found, the ledger has {n_in_ledger} {what}"
    dropped = {code: count for code, count in count_by_code(ledger).items() if code != OK}
    if dropped != dataset.manifest.get("dropped"):
        yield f"{path}: dropped {dataset.manifest.get('dropped')}, the ledger says {dropped}"


def _check_remote_shard(storage: Storage, entry: ShardEntry) -> Iterator[str]:
    """A shard's size and checksum as its storage knows them."""
    if storage.has_file(entry.name, entry.bytes, entry.sha256):
        return
    path = f"{storage.address}/{entry.name}"
    size = storage.size(entry.name)
    if size is None:
        yield f"{path}: not there"
    elif size != entry.bytes:
        yield f"{path}: {size} bytes, expected {entry.bytes}"
    else:
        yield f"{path}: has another sha256 than {entry.sha256}"


def _check_downloaded_shard(dataset: Dataset, entry: ShardEntry, rows: Sequence[Row]) -> Iterator[str]:
    """A shard of a remote dataset, downloaded to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="redub.") as folder:
        path = Path(folder, entry.name)
        try:
            dataset.storage.download(entry.name, path, size=entry.bytes, sha256=entry.sha256)
        except ShardError as err:
            yield str(err)
            return
        yield from _check_local_shard(dataset, LocalStorage(Path(folder)), entry, rows, full=True)


def _check_local_shard(
    dataset: Dataset, storage: LocalStorage, entry: ShardEntry, rows: Sequence[Row], *, full: bool
) -> Iterator[str]:
    """A shard in a folder of this machine. Every byte is hashed."""
    path = storage.path / entry.name
    if problem := _check_file(storage, entry):
        yield problem
        return
    yield from _check_members(path, rows)
    if full:
        yield from _check_contents(replace(dataset, storage=storage), rows)


def _check_file(storage: LocalStorage, entry: ShardEntry) -> str:
    """The shard's size and sha256 against the manifest: a problem, or an empty string."""
    path = storage.path / entry.name
    try:
        with open_file(path, inside=storage.path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != entry.bytes:
            return f"{path}: {size} bytes, expected {entry.bytes}"
        sha256 = file_sha256(path)
    except OSError as err:
        return f"{path}: cannot be read ({err.strerror})"
    if sha256 != entry.sha256:
        return f"{path}: sha256 {sha256}, expected {entry.sha256}; build or download it again"
    return ""


def _check_members(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """The index's byte ranges against the tar's headers, and its CRCs against the bytes."""
    in_tar: dict[tuple[str, str], tuple[int, int]] = {}
    try:
        with open_file(path) as file:
            for member, _ in iterate_members(file, os.fstat(file.fileno()).st_size):
                clip_id, _, name = member.name.partition(".")
                in_tar[clip_id, name.partition(".")[0]] = (member.offset_data, member.size)
    except (OSError, ValueError) as err:
        yield f"{path}: not a complete tar ({err})"
        return
    in_index = {
        (row["clip_id"], name): (row[f"{name}_offset"], row[f"{name}_size"])
        for row in rows
        for name in list_members(row)
    }
    for clip_id, name in sorted(set(in_tar) ^ set(in_index)):
        table = "the tar" if (clip_id, name) in in_tar else INDEX_NAME
        yield f"{path}: {clip_id}'s {name} is only in {table}"
    for (clip_id, name), byte_range in in_index.items():
        if in_tar.get((clip_id, name), byte_range) != byte_range:
            yield f"{path}: {clip_id}'s {name} is at {in_tar[clip_id, name]}, the index says {byte_range}"
    with open_file(path) as file:
        for row in rows:
            members = {}
            for name in list_members(row):
                file.seek(row[f"{name}_offset"])
                members[name] = file.read(row[f"{name}_size"])
            for name, data in members.items():
                if zlib.crc32(data) != row[f"{name}_crc32"]:
                    yield f"{path}: {row['clip_id']}'s {name} have another CRC than the index names"
            if (sha256 := compute_members_digest(members.values())) != row["sha256"]:
                stated = row["sha256"][:12]
                yield f"{path}: {row['clip_id']} has sha256 {sha256[:12]}, the index says {stated}"


def _check_contents(dataset: Dataset, rows: Sequence[Row]) -> Iterator[str]:
    """Decode every clip, and compare its json with the index."""
    for row in rows:
        clip_id = row["clip_id"]
        try:
            sample = read_clip(dataset, clip_id)
            _check_against_manifest(sample, dataset.manifest)
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
                yield (
                    f"{clip_id}: its json says {name} {shorten(sample.info.get(name))}, "
                    f"the index {shorten(value)}"
                )


def _check_against_manifest(sample: ClipSample, manifest: Mapping[str, Any]) -> None:
    """Raise ShardError unless a clip is as the manifest says that all are: codec, sizes, range of mels."""
    top_db = get_params_section(manifest, "mels").get("top_db")
    for name, actual, expected in (
        ("codec", sample.info["codec"], manifest.get("codec")),
        ("size", sample.info["size"], manifest.get("size")),
        ("n_mels", sample.mels.shape[1], manifest.get("n_mels")),
    ):
        if expected is not None and actual != expected:
            raise ShardError(f"{sample.key}: {name} {actual!r}, {DATASET_NAME} says {expected!r}")
    n_seconds = len(sample.info.get("source_seconds") or sample.frames)
    if n_seconds != len(sample.frames):
        raise ShardError(f"{sample.key}: {n_seconds} source_seconds for {len(sample.frames)} frames")
    last = max(sample.info.get("interpolated_frames") or [0])
    if last >= len(sample.frames):
        raise ShardError(f"{sample.key}: interpolated frame {last} of {len(sample.frames)} frames")
    lowest, highest = float(sample.mels.min()), float(sample.mels.max())
    if top_db is not None and not -top_db - MEL_MARGIN_DB <= lowest <= highest <= MEL_MARGIN_DB:
        raise ShardError(
            f"{sample.key}: mels are {lowest:.2f} to {highest:.2f} dB, expected -{top_db:g} to 0 "
            "(params.mels.top_db)"
        )
