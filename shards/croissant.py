"""A dataset described as Croissant 1.1, the JSON-LD vocabulary of MLCommons for datasets.

``croissant.json`` lies beside ``dataset.json`` and names files by their names in that folder. What is in it:

FileObject   each shard and both tables, with size and sha256
FileSet      one for each member of the clips, in all shards
RecordSet    ``clips`` and ``files``: the rows of the index and of the ledger; and one for each member, with
             the clip's id and the member's bytes

Bytes are sc:Text, which mlcroissant returns as bytes: the vocabulary has no type of theirs. mlcroissant 1.1.1
does not decode what lies in archives, so a json or an array is not described further than in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shards.checksum import HASH_LETTERS
from shards.index import (
    INDEX_NAME,
    INDEX_SCHEMA,
    LEDGER_NAME,
    SPEECH_INDEX_SCHEMA,
    ShardEntry,
    parse_shard_entries,
    read_table_hashes,
)
from shards.ledger import SCHEMA as LEDGER_SCHEMA
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    SCHEMA_VERSION,
    SPEECH_MEMBER,
    get_frames_member,
)
from shards.sources import KNOWN_LICENCES, DataSource
from shards.spans import SPAN_TEXTS

CROISSANT_NAME = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET, TAR = "application/x-parquet", "application/x-tar"  # as mlcroissant calls them
BYTES, JSON = "application/octet-stream", "application/json"
INDEX_RECORDS, LEDGER_RECORDS = "clips", "files"  # those of members are called as the members

# The specification's: mlcroissant warns about any other.
CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
DATA_TYPES: Mapping[pa.DataType, str] = {
    pa.string(): "sc:Text",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.uint32(): "cr:UInt32",
    pa.float64(): "cr:Float64",
}


@dataclass(frozen=True, slots=True)
class Publication:
    """What Croissant asks for and no file of a dataset says. None: not stated, and left out."""

    url: str | None = None
    creator: str | None = None
    date: str | None = None  # YYYY-MM-DD


@dataclass(frozen=True, slots=True)
class MemberFormat:
    """What a member of every clip is."""

    name: str  # in the tar, after the clip's key and a dot
    media_type: str
    text: str


def describe_dataset(
    manifest: Mapping[str, Any],
    sources: Sequence[DataSource],
    members: Sequence[MemberFormat],
    publication: Publication,
    *,
    name: str,
    text: str,
    personal_data: str,
    ledger_schema: pa.Schema = LEDGER_SCHEMA,
) -> dict[str, Any]:
    """The content of ``croissant.json``. Equal arguments give equal content.

    ``name`` and ``text`` say what the dataset is, ``personal_data`` what is personal in it;
    ``ledger_schema`` has the ledger's columns, with those of spans where each span of a file has a row.
    """
    entries = parse_shard_entries(manifest)
    with_spans = "start_seconds" in ledger_schema.names
    facts = {
        "url": publication.url,
        "datePublished": publication.date,
        "creator": publication.creator and {"@type": "sc:Organization", "name": publication.creator},
        "citeAs": "; ".join(source.citation for source in sources if source.citation) or None,
    }
    return {
        "@context": dict(CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": text,
        # of the format, and which dataset it is
        "version": f"{SCHEMA_VERSION}.0.0+{manifest['digest'][:HASH_LETTERS]}",
        "license": [describe_licence(source) for source in sources],
        **{key: value for key, value in facts.items() if value is not None},
        "rai:personalSensitiveInformation": personal_data,
        "distribution": [
            *map(_describe_shard, entries),
            *(
                _describe_table(table, sha256, with_spans)
                for table, sha256 in read_table_hashes(manifest).items()
            ),
            *(_describe_member(member, entries) for member in members),
        ],
        "recordSet": list(_describe_records(members, ledger_schema)),
    }


def describe_licence(source: DataSource) -> str:
    """The address of a licence with a known name; of any other what is said of it, and of which source."""
    known = KNOWN_LICENCES.get(source.licence)
    return known.url if known else f"{source.name}: {source.licence}"


def list_member_formats(codec: str, size: int, n_mels: int, *, with_speech: bool) -> list[MemberFormat]:
    """The members of each clip of T frames, in the order of the tar."""
    images = f"T images of {size} x {size} px, one after another: the json's frame_offsets cut them"
    members = [
        MemberFormat(AFFINE_MEMBER, BYTES, "float32 (T, 2, 3): source px to crop px"),
        MemberFormat(BOXES_MEMBER, BYTES, "int16 (T, 4): x0 y0 x1 y1 of the mask box; x1, y1 exclusive"),
        MemberFormat(get_frames_member(codec), BYTES if codec == "raw" else f"image/{codec}", images),
        MemberFormat(JSON_MEMBER, JSON, "what the clip is, and where its frames are"),
        MemberFormat(MELS_MEMBER, BYTES, f"float32 (2T, {n_mels}): mels in dB; row j is centred on j/50 s"),
    ]
    if with_speech:
        text = "float16 (2T, D): features of a speech encoder; row j is centred on j/50 s"
        members.append(MemberFormat(SPEECH_MEMBER, BYTES, text))
    return members


def _describe_shard(entry: ShardEntry) -> dict[str, Any]:
    text = f"{entry.clips} clips, {entry.frames} frames of the split {entry.split}"
    return _describe_file(entry.name, TAR, entry.sha256, text) | {"contentSize": f"{entry.bytes} B"}


def _describe_table(name: str, sha256: str, with_spans: bool) -> dict[str, Any]:
    row = "a row per span of a source file" if with_spans else "a row per source file"
    texts = {INDEX_NAME: "a row per clip", LEDGER_NAME: f"{row}, with what became of it"}
    return _describe_file(name, PARQUET, sha256, texts[name])


def _describe_file(name: str, media_type: str, sha256: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": text,
        "contentUrl": name,  # in the folder of croissant.json
        "encodingFormat": media_type,
        "sha256": sha256,
    }


def _describe_member(member: MemberFormat, entries: Iterable[ShardEntry]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"members/{member.name}",
        "name": member.name,
        "description": member.text,
        "containedIn": [{"@id": entry.name} for entry in entries],
        "encodingFormat": member.media_type,
        "includes": f"*.{member.name}",
    }


def _describe_records(members: Sequence[MemberFormat], ledger_schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """A record for each row of a table, and for each member of each clip."""
    has_speech = SPEECH_MEMBER in (member.name for member in members)
    ledger_keys = tuple(name for name in ("path", "start_seconds") if name in ledger_schema.names)
    tables: tuple[tuple[str, str, pa.Schema, tuple[str, ...]], ...] = (
        (INDEX_RECORDS, INDEX_NAME, SPEECH_INDEX_SCHEMA if has_speech else INDEX_SCHEMA, ("clip_id",)),
        (LEDGER_RECORDS, LEDGER_NAME, ledger_schema, ledger_keys),
    )
    for records, table, schema, keys in tables:
        fields = [
            _describe_field(
                records,
                column.name,
                column.type,
                {"fileObject": {"@id": table}, "extract": {"column": column.name}},
            )
            | ({"description": SPAN_TEXTS[column.name]} if column.name in SPAN_TEXTS else {})
            for column in schema
        ]
        yield _describe_record_set(records, keys, fields)
    for member in members:
        records = member.name.split(".")[0]
        files = {"fileSet": {"@id": f"members/{member.name}"}}
        pattern = {"regex": rf"^(.*)\.{re.escape(member.name)}$"}
        clip_id = files | {"extract": {"fileProperty": "filename"}, "transform": pattern}
        content = files | {"extract": {"fileProperty": "content"}}
        fields = [
            _describe_field(records, "clip_id", pa.string(), clip_id),
            _describe_field(records, "content", pa.string(), content) | {"description": member.text},
        ]
        yield _describe_record_set(records, ("clip_id",), fields)


def _describe_record_set(
    name: str, key_fields: Sequence[str], fields: list[dict[str, Any]]
) -> dict[str, Any]:
    keys = [{"@id": f"{name}/{key}"} for key in key_fields]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": keys if len(keys) > 1 else keys[0],
        "field": fields,
    }


def _describe_field(records: str, name: str, kind: pa.DataType, source: Mapping[str, Any]) -> dict[str, Any]:
    is_array = pa.types.is_list(kind)
    return {
        "@type": "cr:Field",
        "@id": f"{records}/{name}",
        "name": name,
        "dataType": DATA_TYPES[kind.value_type if is_array else kind],
        **({"isArray": True, "arrayShape": "-1"} if is_array else {}),
        "source": source,
    }
