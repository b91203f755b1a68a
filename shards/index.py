"""``index.parquet``: where each clip's members lie. ``dataset.json``: what the dataset is; written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.atomic import written_whole
from shards.checksum import HASH_LETTERS, file_sha256
from shards.places import AbsentError, Folder, Place, place_of
from shards.schema import SCHEMA_VERSION, ShardError
from shards.table import Row, parse_rows, write_rows

INDEX_NAME = "index.parquet"
DATASET_NAME = "dataset.json"
LEDGER_NAME = "ledger.parquet"
SHA256 = re.compile("[0-9a-f]{64}")

# Columns of one member: where its bytes lie in the shard, and what they must sum to.
MEMBERS = ("frames", "boxes", "mels", "affine", "json")
INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("shard", pa.string()),
        *(
            pa.field(f"{member}_{column}", kind)
            for member in MEMBERS
            for column, kind in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()))
        ),
        pa.field("sha256", pa.string()),  # of the members' bytes, in their order in the tar
        pa.field("source_sha256", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tar of the dataset."""

    name: str
    split: str
    bytes: int
    sha256: str
    clips: int
    frames: int


def write_index(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one row per clip, sorted by shard and place in it."""
    listed = sorted(rows, key=lambda row: (row["shard"], row["frames_offset"]))
    write_rows(path, [dict(row) for row in listed], INDEX_SCHEMA)


def read_index(where: Path | Place, manifest: Mapping[str, Any]) -> list[Row]:
    """The index of a dataset as dicts. Raises ShardError when the file is not an index."""
    place = place_of(where)
    data = read_table(place, manifest, INDEX_NAME)
    return parse_rows(data, INDEX_SCHEMA, f"{place.address}/{INDEX_NAME}", "index")


def tables_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the index and the ledger, by their names; older manifests tell none."""
    tables = manifest.get("tables", {})
    if not isinstance(tables, dict) or not all(SHA256.fullmatch(str(sha256)) for sha256 in tables.values()):
        raise ShardError(f"{DATASET_NAME}: tables {str(tables)[:80]!r}, expected a sha256 by name")
    return {name: tables[name] for name in (INDEX_NAME, LEDGER_NAME) if name in tables}


def published_name(name: str, sha256: str) -> str:
    """What a table is called in a bucket: by its contents, as shards are, so that none is ever replaced."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{sha256[:HASH_LETTERS]}.{suffix}"


def read_table(place: Place, manifest: Mapping[str, Any], name: str) -> bytes:
    """The index or the ledger that belongs to a manifest, also when the dataset was rebuilt since.

    A published table has the name of its contents; in a folder, or a copy of one, it has its own. In a folder
    of this machine its contents are left to ``verify``.
    """
    sha256 = tables_of(manifest).get(name)
    if sha256 is not None:
        with contextlib.suppress(AbsentError):
            return place.whole(published_name(name, sha256), sha256=sha256)
    try:
        return place.whole(name, sha256=None if isinstance(place, Folder) else sha256)
    except AbsentError as err:
        raise ShardError(f"{place.address}: no {name} here, so this is no whole dataset") from err


def digest_of(shards: Iterable[ShardEntry]) -> str:
    """The dataset's name for itself: the same clips with the same bytes have the same digest."""
    lines = sorted(f"{shard.split} {shard.sha256}" for shard in shards)
    return hashlib.sha256("\n".join([f"redub {SCHEMA_VERSION}", *lines]).encode()).hexdigest()


def write_dataset(path: Path, shards: Iterable[ShardEntry], **described: Any) -> None:
    """Write the manifest. A folder without it is not a dataset, so it comes last, after its tables."""
    listed = sorted(shards, key=lambda shard: shard.name)
    tables = [path.with_name(name) for name in (INDEX_NAME, LEDGER_NAME)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "digest": digest_of(listed),
        "tables": {table.name: file_sha256(table) for table in tables if table.is_file()},
        **described,
        "shards": [asdict(shard) for shard in listed],
    }
    with written_whole(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def read_dataset(where: Path | Place) -> dict[str, Any]:
    """The manifest of a dataset. Raises ShardError with what is wrong."""
    place = place_of(where)
    path = f"{place.address}/{DATASET_NAME}"
    try:
        manifest = json.loads(place.whole(DATASET_NAME))
    except AbsentError as err:
        raise ShardError(f"{place.address}: no {DATASET_NAME} here, so this is no whole dataset") from err
    except (ValueError, RecursionError) as err:
        raise ShardError(f"{path}: not JSON ({err})") from err
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version") if isinstance(manifest, dict) else None
        raise ShardError(f"{path}: schema version {found!r}, this redub reads {SCHEMA_VERSION}")
    return manifest


def shard_entries(manifest: Mapping[str, Any], path: Path | str) -> list[ShardEntry]:
    """The shards a manifest lists. A name that would leave the folder is refused."""
    try:
        entries = [ShardEntry(**entry) for entry in manifest["shards"]]
    except (KeyError, TypeError) as err:
        raise ShardError(f"{path}: its list of shards cannot be read ({err})") from err
    for entry in entries:
        if Path(entry.name).name != entry.name or entry.name in ("", ".", ".."):
            raise ShardError(f"{path}: shard name {entry.name!r} is not a plain file name")
    return entries
