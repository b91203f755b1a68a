"""Datasets that lie elsewhere, brought to this machine once."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from shards.atomic import written_whole
from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    digest_of,
    read_dataset,
    read_table,
    shard_entries,
)
from shards.places import is_remote, place_of
from shards.schema import ShardError


def at_hand(address: str, cache: Path | None = None) -> Path:
    """The local folder of the dataset at ``address``: itself, or a copy that is made once per machine.

    Copies lie in ``cache`` (by default the user's) under the dataset's digest; the manifest, which makes a
    folder a dataset, is written last. Each shard is checked by size and sha256. Processes that want the same
    dataset wait for the one that fetches it. Raises ShardError when it cannot be read or is not what its
    manifest says.
    """
    if not is_remote(address):
        return Path(address)
    cache = user_cache_path("redub") / "datasets" if cache is None else cache
    place = place_of(address)
    manifest = read_dataset(place)
    entries = shard_entries(manifest, f"{place.address}/{DATASET_NAME}")
    digest = digest_of(entries)
    if manifest.get("digest") != digest:
        told = manifest.get("digest")
        raise ShardError(f"{place.address}/{DATASET_NAME}: digest {told!r}, its shards make {digest!r}")
    folder = cache / digest
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (folder / DATASET_NAME).is_file():
            return folder
        for entry in entries:
            if not (folder / entry.name).is_file():
                place.bring(entry.name, folder / entry.name, size=entry.bytes, sha256=entry.sha256)
        for name in (INDEX_NAME, LEDGER_NAME):
            with written_whole(folder / name) as partial:
                partial.write_bytes(read_table(place, manifest, name))
        with written_whole(folder / DATASET_NAME) as partial:
            partial.write_text(json.dumps(manifest))
    return folder
