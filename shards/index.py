"""``index.parquet`` (the byte ranges of each clip's members) and ``dataset.json`` (the manifest)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from shards.atomic import write_atomically
from shards.checksum import HASH_LETTERS, file_sha256
from shards.documents import Document, check_document, parse_object
from shards.errors import shorten
from shards.names import (
    FILE_PATTERN,
    FILE_RULE,
    ID_PATTERN,
    ID_RULE,
    MAX_ID_BYTES,
    MAX_NAME_BYTES,
    is_file_name,
    is_id,
)
from shards.schema import MAX_FRAMES, MAX_SIZE, SCHEMA_VERSION, Codec, ShardError, Text
from shards.sources import DataSources
from shards.storage import LocalStorage, MissingFileError, Storage, open_storage
from shards.table import (
    MAX_ROWS,
    ROWS_AT_ONCE,
    PackedRows,
    Row,
    Rows,
    Rule,
    check_rows,
    convert_rows,
    group_tables,
    parse_table,
    write_tables,
)

INDEX_NAME = "index.parquet"
DATASET_NAME = "dataset.json"
LEDGER_NAME = "ledger.parquet"
MAX_SHARD_BYTES = 2**46
MAX_MEMBER_BYTES = 2**32
SHARD_SUFFIX = ".tar"
SHA256 = re.compile("[0-9a-f]{64}")

MEMBERS = ("frames", "boxes", "mels", "affine", "json")  # of every clip
SPEECH = "speech"  # an optional member
HASHES = ("sha256", "source_sha256")


def _make_member_fields(member: str) -> list[pa.Field]:
    """The three columns of a member: the offset and size of its bytes in the shard, and their CRC-32."""
    kinds = {"offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()}
    return [pa.field(f"{member}_{column}", kind) for column, kind in kinds.items()]


INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("speaker", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("shard", pa.string()),
        *chain.from_iterable(map(_make_member_fields, MEMBERS)),
        pa.field("sha256", pa.string()),  # of the members' bytes, in their order in the tar
        pa.field("source_sha256", pa.string()),
    ]
)
SPEECH_FIELDS = _make_member_fields(SPEECH)  # null where a clip lacks the member
SPEECH_INDEX_SCHEMA = pa.schema([*INDEX_SCHEMA, *SPEECH_FIELDS])  # of a dataset with speech features
_ID = Rule(required=True, names=(ID_PATTERN, MAX_ID_BYTES), expected=ID_RULE)
INDEX_RULES = MappingProxyType(
    {
        "clip_id": _ID,
        "split": _ID,
        "speaker": Rule(required=True),
        "frames": Rule(required=True, low=1, high=MAX_FRAMES),
        "shard": Rule(required=True, names=(FILE_PATTERN, MAX_NAME_BYTES), expected=FILE_RULE),
        **{
            f"{member}_{column}": Rule(required=member in MEMBERS, low=0, high=high)
            for member in (*MEMBERS, SPEECH)
            for column, high in (("offset", MAX_SHARD_BYTES), ("size", MAX_MEMBER_BYTES), ("crc32", None))
        },
        "sha256": Rule(required=True, pattern=r"\A[0-9a-f]{64}\z", expected="64 hex digits"),
        "source_sha256": Rule(required=True, pattern=r"\A[0-9a-f]{0,64}\z", expected="hex digits"),
    }
)


def _check_shard_name(name: str) -> str:
    if not is_file_name(name) or not name.endswith(SHARD_SUFFIX):
        raise ValueError(f"{shorten(name)}, expected {FILE_RULE} that ends in {SHARD_SUFFIX}")
    return name


def _check_id(name: str) -> str:
    if not is_id(name):
        raise ValueError(f"{shorten(name)}, expected {ID_RULE}")
    return name


def _check_sha256(text: str) -> str:
    if not SHA256.fullmatch(text):
        raise ValueError(f"{shorten(text)}, expected 64 hex digits")
    return text


Count = Annotated[int, Field(ge=0, le=2**50)]
Sha256 = Annotated[str, AfterValidator(_check_sha256)]
Split = Annotated[str, AfterValidator(_check_id)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class ShardFields(Document):
    """A shard in ``dataset.json``, and in the receipt of a part: what ``ShardEntry`` is made of."""

    name: Annotated[str, AfterValidator(_check_shard_name)]
    split: Split
    bytes: Annotated[int, Field(ge=0, le=MAX_SHARD_BYTES)]
    sha256: Sha256
    clips: Annotated[int, Field(ge=0, le=MAX_ROWS)]
    frames: Count


class SplitFields(Document):
    """Counts of a split."""

    shards: Count = 0
    clips: Count
    frames: Count


class AlignFields(Document):
    """What readers use of ``params.align``."""

    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = None
    below_nose: Number | None = None
    below_chin: Number | None = None
    beside_face: Number | None = None


class MelsFields(Document):
    """What readers use of ``params.mels``."""

    n_fft: Annotated[int, Field(ge=1, le=2**16)] | None = None
    win_length: Annotated[int, Field(ge=1, le=2**16)] | None = None
    n_mels: Annotated[int, Field(ge=1, le=2**12)] | None = None
    top_db: Annotated[float, Field(gt=0, le=1000)] | None = None


class SpeechFields(Document):
    """What readers use of ``params.speech``."""

    encoder: Text | None = None


class ParamsFields(Document):
    """The params of all stages, by section."""

    align: AlignFields | None = None
    mels: MelsFields | None = None
    speech: SpeechFields | None = None


class ManifestFields(Document):
    """``dataset.json``: see docs/shards.md."""

    schema_version: Literal[1]
    digest: Sha256
    shards: Annotated[list[ShardFields], Field(fail_fast=True, max_length=MAX_ROWS)]
    dataset: Text | None = None
    sources: DataSources = Field(default_factory=list)
    tables: dict[Text, Sha256] = Field(default_factory=dict, max_length=100)
    codec: Codec | None = None
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = None
    n_mels: Annotated[int, Field(ge=1, le=2**12)] | None = None
    splits: dict[Split, SplitFields] = Field(default_factory=dict, max_length=10_000)
    files_found: Count | None = None
    clips_kept: Count | None = None
    dropped: dict[Text, Count] = Field(default_factory=dict, max_length=10_000)
    params: ParamsFields | None = None
    tools: dict[Text, Text] = Field(default_factory=dict, max_length=1000)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tar of a dataset."""

    name: str
    split: str
    bytes: int
    sha256: str
    clips: int
    frames: int


def make_shard_rows(shard: str, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """The index rows of a shard, from the rows that ``write_tar`` returns."""
    full_rows = [{**row, "shard": shard} for row in rows]
    return PackedRows.from_rows(full_rows, select_index_schema(full_rows))


def select_index_schema(rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    """The columns of an index of these rows: with those of speech features if one of them has some."""
    names = [field.name for field in SPEECH_FIELDS]
    has_speech = any(row.get(name) is not None for row in rows for name in names)
    return SPEECH_INDEX_SCHEMA if has_speech else INDEX_SCHEMA


def write_index(path: Path, shards: Iterable[Rows]) -> None:
    """Write one row per clip. ``shards`` are sorted by name; a thousand of them become a row group.

    Raises ShardError when some of them have speech features and others have none.
    """
    remaining = iter(shards)
    first = next(remaining, None)
    schema = INDEX_SCHEMA if first is None else first.table.schema
    try:
        write_tables(path, group_tables(chain([] if first is None else [first], remaining)), schema)
    except pa.ArrowInvalid as err:
        raise ShardError(f"{path}: some shards have speech features and others have none") from err


def list_members(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The members of the clip of an index row, in the order in which they are hashed."""
    return (*MEMBERS, SPEECH) if row.get(f"{SPEECH}_offset") is not None else MEMBERS


class Clips(Mapping[str, Row]):
    """The index by clip id, in the shards' order. Stored in columns: a row becomes a dict when it is read."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.unify_dictionaries()
        keys = _to_bytes_array(table["clip_id"])
        self._row_numbers = np.argsort(keys, kind="stable")
        self._sorted_keys = keys[self._row_numbers]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        for batch in self.table["clip_id"].chunks:
            yield from batch.to_pylist()

    def __getitem__(self, clip_id: str) -> Row:
        row = self._find_row(clip_id)
        if row is None:
            raise KeyError(clip_id)
        return Rows(self.table)[row]

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._find_row(clip_id) is not None

    def items(self) -> ItemsView[str, Row]:
        """All ids and rows; faster than reading them by clip id."""
        return _Items(self)

    def values(self) -> ValuesView[Row]:
        """All rows; faster than reading them by clip id."""
        return _Values(self)

    def column(self, name: str, clip_ids: Sequence[str]) -> list[Any]:
        """One column's values for some clips. Raises KeyError for an id that is not in the index."""
        values: list[Any] = self.table[name].take(self._find_rows(clip_ids)).to_pylist()
        return values

    def locate_shards(self, clip_ids: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
        """The names of the shards that contain some clips, sorted, and the number of each clip's shard."""
        names, shard_of_row = self.number_shards()
        used, shard_of = np.unique(shard_of_row[self._find_rows(clip_ids)], return_inverse=True)
        used_names = [names[shard] for shard in used]
        order = np.argsort(used_names)
        return [used_names[shard] for shard in order], np.argsort(order)[shard_of]

    def number_shards(self) -> tuple[list[str], NDArray[np.int64]]:
        """The names of all shards, and the number of each row's shard."""
        chunks = self.table["shard"].chunks  # of one dictionary
        names = chunks[0].dictionary.to_pylist() if chunks else []
        codes = [chunk.indices.to_numpy() for chunk in chunks]
        return names, np.concatenate([*codes, []]).astype(np.int64)

    def group_by_shard(self) -> dict[str, NDArray[np.int64]]:
        """The numbers of each shard's rows, in order."""
        names, shard_of_row = self.number_shards()
        order = np.argsort(shard_of_row, kind="stable")
        parts = np.split(order, np.searchsorted(shard_of_row[order], np.arange(1, len(names))))
        return dict(zip(names, parts[: len(names)], strict=True))

    def take_rows(self, row_numbers: NDArray[np.int64]) -> list[Row]:
        """The rows with these numbers."""
        rows: list[Row] = self.table.take(pa.array(row_numbers)).to_pylist()
        return rows

    def ids_in_split(self, split: str) -> list[str]:
        """Ids of a split's clips, in the shards' order."""
        if not is_id(split):  # an argument, which Arrow may not take
            return []
        ids: list[str] = self.table["clip_id"].filter(pc.equal(self.table["split"], split)).to_pylist()
        return ids

    def list_without_speech(self, clip_ids: Sequence[str]) -> list[str]:
        """Those of some clips that have no speech features. Raises KeyError for an id that is not here."""
        column = SPEECH_FIELDS[0].name
        if column not in self.table.column_names:
            return list(clip_ids)
        offsets = self.column(column, clip_ids)
        return [clip_id for clip_id, offset in zip(clip_ids, offsets, strict=True) if offset is None]

    def find_duplicate(self) -> str | None:
        """An id that is in two rows, if there is one."""
        repeated = np.flatnonzero(self._sorted_keys[1:] == self._sorted_keys[:-1])
        return self._sorted_keys[repeated[0]].decode() if len(repeated) else None

    def _find_rows(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """The row numbers of some clips, searched a chunk at a time to save memory."""
        firsts = range(0, len(clip_ids), ROWS_AT_ONCE)
        chunks = [self._find_chunk(clip_ids[first : first + ROWS_AT_ONCE]) for first in firsts]
        return np.concatenate([np.zeros(0, np.int64), *chunks])

    def _find_chunk(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        keys = _to_bytes_array(pa.chunked_array([pa.array(clip_ids, pa.string())]))
        places = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
        if not np.array_equal(self._sorted_keys[places], keys):
            raise KeyError(keys[self._sorted_keys[places] != keys][0].decode())
        return np.asarray(self._row_numbers[places], np.int64)

    def _find_row(self, clip_id: str) -> int | None:
        key = clip_id.encode(errors="surrogatepass")  # an argument may be no UTF-8
        place = int(np.searchsorted(self._sorted_keys, key))
        if place < len(self._sorted_keys) and self._sorted_keys[place] == key:
            return int(self._row_numbers[place])
        return None


class _Items(ItemsView[str, Row]):
    _mapping: Clips

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        return ((row["clip_id"], row) for row in Rows(self._mapping.table))


class _Values(ValuesView[Row]):
    _mapping: Clips

    def __iter__(self) -> Iterator[Row]:
        return iter(Rows(self._mapping.table))


def _to_bytes_array(strings: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Strings as a fixed-width array, which is sorted and searched without Python objects."""
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


def read_index(location: Path | Storage, manifest: Mapping[str, Any], *, hashes: bool = True) -> Clips:
    """Read a dataset's index. Raises ShardError if it is not an index, has nulls, or lists a clip twice.

    ``hashes=False`` leaves out the sha256 columns, half the memory of a large index.
    """
    storage = open_storage(location)
    path = f"{storage.address}/{INDEX_NAME}"
    schema = INDEX_SCHEMA if hashes else pa.schema([f for f in INDEX_SCHEMA if f.name not in HASHES])
    data = read_table(storage, manifest, INDEX_NAME)
    repetitive = ("shard", "split", "speaker")
    table = parse_table(
        data, schema, path, "index", INDEX_RULES, optional=[SPEECH_FIELDS], repetitive=repetitive
    )
    del data  # 100 MB for a million clips
    clips = Clips(table)
    if (duplicate := clips.find_duplicate()) is not None:
        raise ShardError(f"{path}: holds {duplicate} twice")
    return clips


def check_index_rows(rows: Iterable[Mapping[str, Any]], shard: str, path: str) -> Rows:
    """The index rows of a shard, from JSON that someone else may have written. Raises ShardError."""
    full_rows = [{**row, "shard": shard} for row in rows]
    table = convert_rows(full_rows, select_index_schema(full_rows), path)
    return check_rows(table, INDEX_RULES, path)


def read_table_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the index and the ledger by name, as far as the manifest has them: older ones have none."""
    tables: Mapping[str, str] = manifest.get("tables", {})
    return {name: tables[name] for name in (INDEX_NAME, LEDGER_NAME) if name in tables}


def get_published_name(name: str, sha256: str) -> str:
    """The name of a table in a bucket. It depends on the contents, so no table is ever replaced."""
    stem, _, suffix = name.partition(".")
    return f"{stem}-{sha256[:HASH_LETTERS]}.{suffix}"


def read_table(storage: Storage, manifest: Mapping[str, Any], name: str) -> bytes:
    """Read the index or the ledger that belongs to a manifest, even if the dataset has been rebuilt since.

    A table in a bucket has a hash in its name, in a folder or a copy of a folder it has none. In a local
    folder the contents are not compared with the hash; ``verify`` does that.
    """
    sha256 = read_table_hashes(manifest).get(name)
    if sha256 is not None:
        with contextlib.suppress(MissingFileError):
            return storage.read_all(get_published_name(name, sha256), sha256=sha256)
    try:
        return storage.read_all(name, sha256=None if isinstance(storage, LocalStorage) else sha256)
    except MissingFileError as err:
        raise ShardError(f"{storage.address}: no {name} here, so this is not a complete dataset") from err


def compute_digest(shards: Iterable[ShardEntry]) -> str:
    """The digest that names a dataset. Equal clips with equal bytes give equal digests."""
    lines = sorted(f"{shard.split} {shard.sha256}" for shard in shards)
    return hashlib.sha256("\n".join([f"redub {SCHEMA_VERSION}", *lines]).encode()).hexdigest()


def write_manifest(path: Path, shards: Iterable[ShardEntry], **fields: Any) -> None:
    """Write ``dataset.json``, last of all: a folder without it is not a dataset."""
    entries = sorted(shards, key=lambda shard: shard.name)
    tables = [path.with_name(name) for name in (INDEX_NAME, LEDGER_NAME)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "digest": compute_digest(entries),
        "tables": {table.name: file_sha256(table) for table in tables if table.is_file()},
        **fields,
        "shards": [asdict(entry) for entry in entries],
    }
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def read_manifest(location: Path | Storage) -> dict[str, Any]:
    """Read ``dataset.json``. Raises ShardError unless it is what ManifestFields allows."""
    storage = open_storage(location)
    path = f"{storage.address}/{DATASET_NAME}"
    try:
        data = storage.read_all(DATASET_NAME)
    except MissingFileError as err:
        raise ShardError(
            f"{storage.address}: no {DATASET_NAME} here, so this is not a complete dataset"
        ) from err
    manifest = parse_object(data, path)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ShardError(
            f"{path}: schema version {shorten(manifest.get('schema_version'))}, "
            f"this redub reads {SCHEMA_VERSION}"
        )
    check_document(manifest, ManifestFields, path)
    entries = parse_shard_entries(manifest)
    if len({entry.name for entry in entries}) < len(entries):
        raise ShardError(f"{path}: lists a shard twice")
    return manifest


def get_params_section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The params of a stage that a manifest states; empty where it states none, or null."""
    return (manifest.get("params") or {}).get(name) or {}


def parse_shard_entries(manifest: Mapping[str, Any]) -> list[ShardEntry]:
    """The shards that a manifest lists."""
    return [make_shard_entry(fields) for fields in manifest["shards"]]


def make_shard_entry(fields: Mapping[str, Any]) -> ShardEntry:
    """A shard from fields that ShardFields allows; others are left out."""
    return ShardEntry(**{item.name: fields[item.name] for item in dataclass_fields(ShardEntry)})


def parse_shard_entry(data: str, path: str) -> ShardEntry:
    """A shard from JSON that someone else may have written. Raises ShardError."""
    return make_shard_entry(parse_object(data, path, ShardFields))
