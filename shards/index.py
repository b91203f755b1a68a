"""``index.parquet``: where each clip's members lie. ``dataset.json``: what the dataset is; written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.atomic import write_atomically
from shards.checksum import HASH_LETTERS, file_sha256
from shards.schema import SCHEMA_VERSION, ShardError
from shards.storage import LocalStorage, MissingFileError, Storage, open_storage
from shards.table import ROWS_AT_ONCE, PackedRows, Row, Rows, group_tables, parse_table, write_tables

INDEX_NAME = "index.parquet"
DATASET_NAME = "dataset.json"
LEDGER_NAME = "ledger.parquet"
MAX_ID_BYTES = 255  # what a tar's header holds of a name
SHA256 = re.compile("[0-9a-f]{64}")

# Columns of one member: where its bytes lie in the shard, and what they must sum to.
MEMBERS = ("frames", "boxes", "mels", "affine", "json")
HASHES = ("sha256", "source_sha256")
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


def make_shard_rows(shard: str, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """A shard's rows of the index, from those that ``write_tar`` gives."""
    return PackedRows.from_rows(({**row, "shard": shard} for row in rows), INDEX_SCHEMA)


def write_index(path: Path, shards: Iterable[Rows]) -> None:
    """Write one row per clip. Shards come in the order of their names; a thousand are a row group."""
    write_tables(path, group_tables(shards), INDEX_SCHEMA)


class Clips(Mapping[str, Row]):
    """The index by clip id, in the shards' order. Kept in columns: a row is made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.unify_dictionaries()
        keys = _fixed_width(table["clip_id"])
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        for batch in self.table["clip_id"].chunks:
            yield from batch.to_pylist()

    def __getitem__(self, clip_id: str) -> Row:
        row = self._row_of(clip_id)
        if row is None:
            raise KeyError(clip_id)
        return Rows(self.table)[row]

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._row_of(clip_id) is not None

    def items(self) -> ItemsView[str, Row]:
        return _Items(self)

    def values(self) -> ValuesView[Row]:
        return _Values(self)

    def rows(self) -> Iterator[Row]:
        """All rows; the fast way to see many."""
        return iter(Rows(self.table))

    def column(self, name: str, clip_ids: Sequence[str]) -> list[Any]:
        """One column's values for some clips. Raises KeyError for a clip that is not here."""
        values: list[Any] = self.table[name].take(self._rows_of(clip_ids)).to_pylist()
        return values

    def locate_shards(self, clip_ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
        """The shards that some clips lie in, by name, and which of them each clip lies in."""
        names, place = self.shard_names()
        used, which = np.unique(place[self._rows_of(clip_ids)], return_inverse=True)
        listed = [names[shard] for shard in used]
        order = np.argsort(listed)
        return [listed[shard] for shard in order], np.argsort(order)[which]

    def shard_names(self) -> tuple[list[str], NDArray[np.int64]]:
        """All shards, and which of them each row names."""
        chunks = self.table["shard"].chunks  # of one dictionary
        names = chunks[0].dictionary.to_pylist() if chunks else []
        codes = [chunk.indices.to_numpy() for chunk in chunks]
        return names, np.concatenate([*codes, []]).astype(np.int64)

    def group_by_shard(self) -> dict[str, NDArray[np.int64]]:
        """Places in the table of each shard's clips, in order."""
        names, shard = self.shard_names()
        order = np.argsort(shard, kind="stable")
        parts = np.split(order, np.searchsorted(shard[order], np.arange(1, len(names))))
        return dict(zip(names, parts[: len(names)], strict=True))

    def take_rows(self, row_numbers: NDArray[np.int64]) -> list[Row]:
        """The rows with these numbers."""
        rows: list[Row] = self.table.take(pa.array(row_numbers)).to_pylist()
        return rows

    def ids_in_split(self, split: str) -> list[str]:
        """Ids of a split's clips, in the shards' order."""
        ids: list[str] = self.table["clip_id"].filter(pc.equal(self.table["split"], split)).to_pylist()
        return ids

    def find_duplicate(self) -> str | None:
        """An id that stands in two rows, if there is one."""
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        return self._keys[twice[0]].decode() if len(twice) else None

    def _rows_of(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """Where some clips lie in the table, sought a few at a time."""
        firsts = range(0, len(clip_ids), ROWS_AT_ONCE)
        found = [self._few_rows_of(clip_ids[first : first + ROWS_AT_ONCE]) for first in firsts]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _few_rows_of(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        keys = _fixed_width(pa.chunked_array([pa.array(clip_ids, pa.string())]))
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        if not np.array_equal(self._keys[places], keys):
            raise KeyError(keys[self._keys[places] != keys][0].decode())
        return np.asarray(self._rows[places], np.int64)

    def _row_of(self, clip_id: str) -> int | None:
        key = clip_id.encode()
        place = int(np.searchsorted(self._keys, key))
        found = place < len(self._keys) and self._keys[place] == key
        return int(self._rows[place]) if found else None


class _Items(ItemsView[str, Row]):
    _mapping: Clips

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        return ((row["clip_id"], row) for row in self._mapping.rows())


class _Values(ValuesView[Row]):
    _mapping: Clips

    def __iter__(self) -> Iterator[Row]:
        return self._mapping.rows()


def _fixed_width(strings: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Strings as an array of bytes, which sorts and searches without Python's objects."""
    if not len(strings):
        return np.zeros(0, "S1")
    flat = strings.cast(pa.binary()).combine_chunks()
    _, offsets, data = flat.buffers()
    ends = np.frombuffer(offsets, np.int32)[flat.offset : flat.offset + len(flat) + 1]
    lengths = np.diff(ends)
    width = max(1, int(lengths.max()))
    letters = np.zeros((len(flat), width), np.uint8)
    letters[np.arange(width) < lengths[:, None]] = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    return letters.view(f"S{width}")[:, 0]


def read_index(where: Path | Storage, manifest: Mapping[str, Any], *, hashes: bool = True) -> Clips:
    """The index of a dataset. Raises ShardError when the file is none, has gaps, or lists a clip twice.

    Without ``hashes`` its rows have no sha256: of a million clips they are half the memory.
    """
    place = open_storage(where)
    path = f"{place.address}/{INDEX_NAME}"
    schema = INDEX_SCHEMA if hashes else pa.schema([f for f in INDEX_SCHEMA if f.name not in HASHES])
    data = read_table(place, manifest, INDEX_NAME)
    table = parse_table(data, schema, path, "index", repetitive=("shard", "split", "speaker"))
    del data  # of a million clips 100 MB
    for name in table.column_names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null()))
            raise ShardError(f"{path}: the row of {table['clip_id'][row].as_py()!r} has no {name}")
    longest = pc.max(pc.binary_length(table["clip_id"])).as_py() or 0
    if longest > MAX_ID_BYTES:
        raise ShardError(f"{path}: a clip id of {longest} bytes, expected {MAX_ID_BYTES} at most")
    clips = Clips(table)
    if (twice := clips.find_duplicate()) is not None:
        raise ShardError(f"{path}: holds {twice} twice")
    return clips


def read_table_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the index and the ledger, by their names; older manifests tell none."""
    tables = manifest.get("tables", {})
    if not isinstance(tables, dict) or not all(SHA256.fullmatch(str(sha256)) for sha256 in tables.values()):
        raise ShardError(f"{DATASET_NAME}: tables {str(tables)[:80]!r}, expected a sha256 by name")
    return {name: tables[name] for name in (INDEX_NAME, LEDGER_NAME) if name in tables}


def get_published_name(name: str, sha256: str) -> str:
    """What a table is called in a bucket: by its contents, as shards are, so that none is ever replaced."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{sha256[:HASH_LETTERS]}.{suffix}"


def read_table(place: Storage, manifest: Mapping[str, Any], name: str) -> bytes:
    """The index or the ledger that belongs to a manifest, also when the dataset was rebuilt since.

    A published table has the name of its contents; in a folder, or a copy of one, it has its own. In a folder
    of this machine its contents are left to ``verify``.
    """
    sha256 = read_table_hashes(manifest).get(name)
    if sha256 is not None:
        with contextlib.suppress(MissingFileError):
            return place.read_all(get_published_name(name, sha256), sha256=sha256)
    try:
        return place.read_all(name, sha256=None if isinstance(place, LocalStorage) else sha256)
    except MissingFileError as err:
        raise ShardError(f"{place.address}: no {name} here, so this is no whole dataset") from err


def compute_digest(shards: Iterable[ShardEntry]) -> str:
    """The dataset's name for itself: the same clips with the same bytes have the same digest."""
    lines = sorted(f"{shard.split} {shard.sha256}" for shard in shards)
    return hashlib.sha256("\n".join([f"redub {SCHEMA_VERSION}", *lines]).encode()).hexdigest()


def write_manifest(path: Path, shards: Iterable[ShardEntry], **described: Any) -> None:
    """Write the manifest. A folder without it is not a dataset, so it comes last, after its tables."""
    listed = sorted(shards, key=lambda shard: shard.name)
    tables = [path.with_name(name) for name in (INDEX_NAME, LEDGER_NAME)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "digest": compute_digest(listed),
        "tables": {table.name: file_sha256(table) for table in tables if table.is_file()},
        **described,
        "shards": [asdict(shard) for shard in listed],
    }
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def read_manifest(where: Path | Storage) -> dict[str, Any]:
    """The manifest of a dataset. Raises ShardError with what is wrong."""
    place = open_storage(where)
    path = f"{place.address}/{DATASET_NAME}"
    try:
        manifest = json.loads(place.read_all(DATASET_NAME))
    except MissingFileError as err:
        raise ShardError(f"{place.address}: no {DATASET_NAME} here, so this is no whole dataset") from err
    except (ValueError, RecursionError) as err:
        raise ShardError(f"{path}: not JSON ({err})") from err
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version") if isinstance(manifest, dict) else None
        raise ShardError(f"{path}: schema version {found!r}, this redub reads {SCHEMA_VERSION}")
    return manifest


def parse_shard_entries(manifest: Mapping[str, Any], path: Path | str) -> list[ShardEntry]:
    """The shards a manifest lists. A name that would leave the folder is refused."""
    try:
        entries = [ShardEntry(**entry) for entry in manifest["shards"]]
    except (KeyError, TypeError) as err:
        raise ShardError(f"{path}: its list of shards cannot be read ({err})") from err
    for entry in entries:
        if Path(entry.name).name != entry.name or entry.name in ("", ".", ".."):
            raise ShardError(f"{path}: shard name {entry.name!r} is not a plain file name")
    return entries
