"""Datasets as a stranger may send them: what can be altered in each of their files, one alteration each.

An altered member of a clip is packed again with the right sizes, CRCs and hashes: nothing but the values
themselves can give it away.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import socket
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.index import (
    DATASET_NAME,
    INDEX_NAME,
    LEDGER_NAME,
    MEMBERS,
    SPEECH,
    compute_digest,
    parse_shard_entries,
)
from tests import datasets

SIZE, N_MELS, SPEECH_SIZE, N_FRAMES = 16, 8, 5, 6
VALUES: tuple[object, ...] = (
    None,
    True,
    0,
    -1,
    10**18,
    1.5,
    "",
    "x",
    "..",
    "../../escape",
    "/tmp/escape",
    "a\nb",
    "a\0b",
    "z" * 5000,
    [],
    [1],
    {},
    {"a": None},
    [[1]],
)
NAMES = (
    "",
    ".",
    "..",
    "../../escape",
    "/tmp/escape",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a.b",
    "a~b",
    "end ",
    "z" * 300,
    "CON",
    "\u202eabc",
    "s1_clip0",
)


@dataclass(frozen=True)
class Alteration:
    """One thing that is wrong with a dataset; ``apply`` makes it so in a folder."""

    name: str
    apply: Callable[[Path], object]


def make_dataset(folder: Path) -> Path:
    """Two clips to train on and two to test on, in two shards, and a file that was dropped."""
    rng = np.random.default_rng(0)
    clips = [
        datasets.pack(
            f"s1_clip{number}",
            rng.integers(0, 256, (N_FRAMES, SIZE, SIZE, 3), dtype=np.uint8),
            box=(4, 8, 12, 15),
            mels=rng.uniform(-80, 0, (2 * N_FRAMES, N_MELS)).astype(np.float32),
            speech=rng.normal(0, 3, (2 * N_FRAMES, SPEECH_SIZE)).astype(np.float16),
            codec="webp",
            split="test" if number % 2 else "train",
            source_size=[64, 48],
            source=f"s1_clip{number}.mpg",
            source_start=0.0,
            notes=["a note"],
            interpolated_frames=[2],
            emotion="SAD",
            level="HI",
        )
        for number in range(4)
    ]
    dropped = {
        "path": "bad.mpg",
        "clip_id": "bad",
        "status": "dropped",
        "stage": "clips",
        "code": "empty",
        "reason": "is empty",
    }
    params = {
        "align": {"size": SIZE},
        "mels": {"n_mels": N_MELS, "top_db": 80.0, "n_fft": 2048, "win_length": 640, "fmax": 8000.0},
    }
    datasets.write(
        folder,
        clips,
        per_shard=2,
        dropped=[dropped],
        params=params,
        codec="webp",
        size=SIZE,
        n_mels=N_MELS,
        files_found=5,
        tools={"numpy": "2"},
        clips_kept=4,
    )
    _set(folder, ("dropped",), {"empty": 1})
    return folder


# --- dataset.json -------------------------------------------------------------------------------------------


def list_manifest_alterations() -> Iterator[Alteration]:
    """A value of another type or size at every key, a key that is gone, and texts that are no JSON."""
    keys: list[tuple[str | int, ...]] = [
        ("schema_version",),
        ("digest",),
        ("tables",),
        ("tables", INDEX_NAME),
        ("shards",),
        ("shards", 0),
        *(("shards", 0, name) for name in ("name", "split", "bytes", "sha256", "clips", "frames")),
        ("splits",),
        ("splits", "train"),
        ("splits", "train", "clips"),
        ("params",),
        ("params", "align"),
        ("params", "align", "size"),
        ("params", "mels"),
        ("params", "mels", "n_mels"),
        ("params", "mels", "n_fft"),
        ("params", "mels", "top_db"),
        ("params", "align", "below_nose"),
        ("params", "speech"),
        ("params", "speech", "encoder"),
        ("dataset",),
        ("codec",),
        ("size",),
        ("n_mels",),
        ("files_found",),
        ("dropped",),
        ("tools",),
    ]
    for key in keys:
        for number, value in enumerate(VALUES):
            name = f"dataset.json {'.'.join(map(str, key))} = {str(value)[:20]!r} ({number})"
            yield Alteration(name, lambda folder, key=key, value=value: _set(folder, key, value))
        yield Alteration(f"dataset.json without {key}", lambda folder, key=key: _set(folder, key, _set))
    for name, text in (
        ("empty", b""),
        ("cut", b'{"schema_version": 1, "sha'),
        ("not UTF-8", b'{"schema_version": 1, "a": "\xff"}'),
        ("NaN", b'{"schema_version": NaN}'),
        ("5000 digits", b'{"schema_version": ' + b"9" * 5000 + b"}"),
        ("twice", b'{"schema_version": 1, "schema_version": 1}'),
        ("deep", b"[" * 200_000 + b"]" * 200_000),
        ("1e999", b'{"schema_version": 1, "size": 1e999}'),
        ("a list", b"[1, 2]"),
        ("a number", b"3"),
        ("deep object", b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
        ("large", b'{"a": "' + b"a" * 2**26 + b'"}'),
    ):
        yield Alteration(
            f"dataset.json {name}", lambda folder, text=text: _write(folder / DATASET_NAME, text)
        )


def _set(folder: Path, key: tuple[str | int, ...], value: Any) -> None:
    """Set a value of the manifest; ``_set`` itself as the value removes the key."""
    path = folder / DATASET_NAME
    manifest = json.loads(path.read_text())
    place: Any = manifest
    for part in key[:-1]:
        place = place[part]
    if value is _set:
        if isinstance(place, list) or key[-1] in place:
            del place[key[-1]]
    else:
        place[key[-1]] = value
    path.write_text(json.dumps(manifest))


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# --- tables -------------------------------------------------------------------------------------------------


def list_table_alterations(file: str, schema: pa.Schema) -> Iterator[Alteration]:
    """Columns of other types, null, missing, twice, with extreme values; files that are no tables."""
    for name in schema.names:
        for label, change in _list_column_changes(schema.field(name).type):

            def apply(folder: Path, name: str = name, change: Any = change) -> None:
                table = pq.read_table(folder / file)
                change_column(folder / file, table, name, change)

            yield Alteration(f"{file} {name}: {label}", apply)
    for label, change_bytes in (
        ("empty", lambda data: b""),
        ("cut", lambda data: data[: len(data) // 2]),
        ("no table", lambda data: b"PAR1" + bytes(100) + b"PAR1"),
        *((f"flips {seed}", lambda data, seed=seed: flip_bytes(data, seed)) for seed in range(24)),
    ):
        yield Alteration(
            f"{file} {label}",
            lambda folder, change=change_bytes: _write(folder / file, change((folder / file).read_bytes())),
        )
    for rows in (5_000_000, 30_000_000):
        yield Alteration(
            f"{file} {rows} equal rows", lambda folder, rows=rows: repeat_row(folder / file, rows)
        )
    yield Alteration(f"{file} footer lies", lambda folder: lie_about_size(folder / file))


def _list_column_changes(kind: pa.DataType) -> Iterator[tuple[str, Callable[[pa.ChunkedArray], Any]]]:
    n = 5
    others = {
        "string": ["1"] * n,
        "int64": [1] * n,
        "float": [1.5] * n,
        "list": [["a"]] * n,
        "bool": [True] * n,
        "binary": [b"\xff\xfe"] * n,
        "struct": [{"a": 1}] * n,
        "null": [None] * n,
    }
    for label, values in others.items():
        array = pa.array(values)
        if array.type != kind:
            yield label, lambda column, array=array: array[: len(column)]
    yield "nulls", lambda column: pa.array([None] * len(column), column.type)
    yield "gone", lambda column: None
    yield "twice", lambda column: [column, column]
    if pa.types.is_string(kind):
        for name in NAMES:
            yield (
                f"{name[:20]!r}",
                lambda column, name=name: pa.array([*column.to_pylist()[:-1], name], column.type),
            )
        bad = pa.StringArray.from_buffers(
            1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")
        )
        yield "not UTF-8", lambda column: pa.chunked_array([column.combine_chunks()[:-1], bad])
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        extremes: list[Any] = [0, 1, 2**31 - 1, -1, -(2**31), 2**63 - 1, -(2**63), 2**32 - 1]
        if pa.types.is_floating(kind):
            extremes = [0.0, -1.0, 1e300, float("nan"), float("inf"), -float("inf")]
        for value in extremes:
            try:
                array = pa.array([value], kind)
            except (pa.ArrowInvalid, OverflowError):
                continue
            yield (
                f"{value}",
                lambda column, array=array: pa.chunked_array([column.combine_chunks()[:-1], array]),
            )


def change_column(path: Path, table: pa.Table, name: str, change: Callable[[pa.ChunkedArray], Any]) -> None:
    """Write a table again with another column of this name, without it, or with two of them."""
    column = change(table[name])
    place = table.column_names.index(name)
    if column is None:
        table = table.remove_column(place)
    elif isinstance(column, list):
        table = table.append_column(name, column[1])
    else:
        table = table.set_column(place, name, column)
    pq.write_table(table, path, compression="zstd")


def flip_bytes(data: bytes, seed: int) -> bytes:
    """A file with three bytes altered."""
    rng = np.random.default_rng(seed)
    altered = bytearray(data)
    for place in rng.integers(0, len(data), 3):
        altered[place] ^= int(rng.integers(1, 256))
    return bytes(altered)


def repeat_row(path: Path, n_rows: int) -> None:
    """A small file whose table is large: the first row again and again."""
    table = pq.read_table(path)[:1]
    first = {
        name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(1, np.int32)), table[name].combine_chunks())
        for name in table.column_names
        if pa.types.is_string(table.schema.field(name).type)
    }
    n_chunk = 1_000_000
    columns = []
    for name in table.column_names:
        if name in first:
            columns.append(
                pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_chunk, np.int32)), first[name].dictionary)
            )
        else:
            columns.append(table[name].combine_chunks().take(pa.array(np.zeros(n_chunk, np.int64))))
    chunk = pa.Table.from_arrays(columns, table.column_names).cast(table.schema)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(n_rows // n_chunk):
            writer.write_table(chunk)


def lie_about_size(path: Path) -> None:
    """Pages that declare 134 MB each, 2.7 GB in all, in a file of 2 MB whose footer says nothing of it."""
    table = pq.read_table(path)
    table = pa.concat_tables([table] * (20 // len(table) + 1))[:20]
    place = next(i for i, field in enumerate(table.schema) if pa.types.is_string(field.type))
    long = pa.array([f"{number:02}" * 2**20 for number in range(len(table))])
    name = table.column_names[place]
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False, data_page_size=1,
                          write_batch_size=1) as writer:  # fmt: skip
        writer.write_table(table.set_column(place, name, long))
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(place)
    start, stop = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    head = b"\x15\0\x15"  # a data page, and then its uncompressed size: a number of four bytes
    while (start := data.find(head, start, stop)) >= 0:
        start += len(head)
        if data[start + 3] < 128 and all(byte >= 128 for byte in data[start : start + 3]):
            data[start : start + 4] = b"\xfe\xff\xff\x7f"
    path.write_bytes(bytes(data))


# --- members of a clip --------------------------------------------------------------------------------------


def read_all_members(folder: Path) -> dict[str, dict[str, bytes]]:
    """The members of every clip, by clip id and by their name in the tar."""
    clips: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                clip_id, _, name = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                clips.setdefault(clip_id, {})[name] = file.read()
    return clips


def repack(folder: Path, clips: Mapping[str, Mapping[str, bytes]], **index_columns: Any) -> None:
    """Write all clips into one shard, and the index and the manifest that belong to it."""
    rows = pq.read_table(folder / INDEX_NAME).to_pylist()
    manifest = json.loads((folder / DATASET_NAME).read_text())
    for path in folder.glob("*.tar"):
        path.unlink()
    temporary = folder / "new"
    with tarfile.open(temporary, "w:", format=tarfile.PAX_FORMAT) as tar:
        for row, (clip_id, members) in zip(rows, clips.items(), strict=False):
            digest = hashlib.sha256()
            for full in sorted(members):
                header = tarfile.TarInfo(f"{clip_id}.{full}")
                header.size = len(members[full])
                tar.addfile(header, io.BytesIO(members[full]))
                name = full.partition(".")[0]
                if name in (*MEMBERS, SPEECH):
                    row[f"{name}_offset"] = tar.offset - -(-header.size // 512) * 512
                    row[f"{name}_size"] = header.size
                    row[f"{name}_crc32"] = zlib.crc32(members[full])
            for name in (*MEMBERS, SPEECH):
                digest.update(next((data for full, data in members.items() if full.startswith(name)), b""))
            row |= {"clip_id": clip_id, "sha256": digest.hexdigest(), **index_columns}
    data = temporary.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"train-00000-{sha256[:12]}.tar"
    temporary.rename(folder / name)
    for row in rows:
        row["shard"] = name
    schema = pq.read_schema(folder / INDEX_NAME)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / INDEX_NAME, compression="zstd")
    entry = {
        "name": name,
        "split": "train",
        "bytes": len(data),
        "sha256": sha256,
        "clips": len(rows),
        "frames": sum(row["frames"] for row in rows),
    }
    manifest["shards"] = [entry]
    manifest["digest"] = compute_digest(parse_shard_entries(manifest))
    manifest["tables"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (INDEX_NAME, LEDGER_NAME)
    }
    (folder / DATASET_NAME).write_text(json.dumps(manifest))


def make_npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def forge_npy(shape: str, dtype: str = "<f4", data: bytes = bytes(16)) -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def encode_image(kind: str, size: tuple[int, int] = (SIZE, SIZE), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def forge_webp(side: int) -> bytes:
    """The header of a lossless WebP of this size, and no picture."""
    bits = (side - 1) | (side - 1) << 14
    return b"RIFF\x40\0\0\0WEBPVP8L\x34\0\0\0\x2f" + bits.to_bytes(4, "little") + bytes(47)


def list_member_alterations() -> Iterator[Alteration]:
    """Every member with other values, packed so that all hashes are right."""
    t = N_FRAMES
    mels, affine = (
        np.full((2 * t, N_MELS), -30, np.float32),
        np.tile(np.eye(2, 3, dtype=np.float32), (t, 1, 1)),
    )
    box = np.tile(np.array([4, 8, 12, 15], np.int16), (t, 1))
    speech = np.ones((2 * t, SPEECH_SIZE), np.float16)
    arrays: dict[str, list[tuple[str, bytes]]] = {
        "mels.npy": [
            ("3e38", make_npy(np.full_like(mels, 3e38))),
            ("NaN", make_npy(np.full_like(mels, np.nan))),
            ("positive", make_npy(np.full_like(mels, 50))),
            ("-1000", make_npy(np.full_like(mels, -1000))),
            ("no bins", make_npy(mels[:, :0])),
            ("short", make_npy(mels[:-1])),
            ("float64", make_npy(mels.astype(float))),
            ("big endian", make_npy(mels.astype(">f4"))),
            ("1D", make_npy(mels[0])),
            ("0D", make_npy(mels[0, 0])),
            ("other bins", make_npy(mels[:, :4])),
            ("Fortran", make_npy(np.asfortranarray(mels))),
        ],
        "speech.npy": [
            ("NaN", make_npy(np.full_like(speech, np.nan))),
            ("inf", make_npy(np.full_like(speech, np.inf))),
            ("65504", make_npy(np.full_like(speech, 65504))),
            ("no features", make_npy(speech[:, :0])),
            ("short", make_npy(speech[:-1])),
            ("float32", make_npy(speech.astype(np.float32))),
            ("big endian", make_npy(speech.astype(">f2"))),
            ("1D", make_npy(speech[0])),
            ("0D", make_npy(speech[0, 0])),
            ("other features", make_npy(speech[:, :4])),
            ("Fortran", make_npy(np.asfortranarray(speech))),
        ],
        "affine.npy": [
            ("zero", make_npy(np.zeros_like(affine))),
            ("inf", make_npy(np.full_like(affine, np.inf))),
            ("huge", make_npy(np.full_like(affine, 1e38))),
            ("rank one", make_npy(np.ones_like(affine))),
            ("shape", make_npy(affine[:, :1])),
        ],
        "boxes.npy": [
            ("empty", make_npy(box * 0)),
            ("outside", make_npy(box + 100)),
            ("negative", make_npy(box - 50)),
            ("turned", make_npy(box[:, ::-1])),
            ("int64", make_npy(box.astype(np.int64))),
            ("T - 1", make_npy(box[1:])),
        ],
    }
    for member in arrays:
        arrays[member] += [
            ("terabytes", forge_npy("(999999999999,)")),
            ("negative shape", forge_npy("(-4,)")),
            ("no bytes", b""),
            ("noise", os.urandom(200)),
            ("object", make_npy(np.array([{}]), allow_pickle=True)),
            ("odd dtype", forge_npy("(4,)", "O")),
            ("unknown dtype", forge_npy("(4,)", "zz")),
            ("zero size", forge_npy("(999999999999,)", "<U0", b"")),
            ("not a shape", forge_npy("'a'")),
            ("nested", forge_npy("[" * 2000)),
            ("code", forge_npy("__import__('os')")),
            ("huge number", forge_npy("(" + "9" * 4000 + ",)")),
            ("float shape", forge_npy("(4.0,)")),
            ("fields", forge_npy("(1,)", "f4,(9999999,)f8")),
            ("bool shape", forge_npy("(True, 4)")),
        ]
        for label, data in arrays[member]:
            yield Alteration(f"{member} {label}", _replace_member(member, data))
    for number, (key, value) in enumerate(
        itertools.product(
            (
                "schema_version",
                "frames",
                "size",
                "codec",
                "frame_offsets",
                "clip_id",
                "split",
                "speaker",
                "source",
                "source_size",
                "source_start",
                "source_sha256",
                "interpolated_frames",
                "notes",
                "emotion",
            ),
            VALUES,
        )
    ):
        name = f"json {key} = {str(value)[:20]!r} ({number})"
        yield Alteration(name, lambda folder, key=key, value=value: _set_info(folder, **{key: value}))
    for label, offsets in (
        ("overlap", [0, 10, 5, 10, 15, 20, 30]),
        ("negative", [0, -1, 2, 3, 4, 5, 6]),
        ("overflow", [0, *[2**70] * 6]),
        ("equal", [0] * 7),
        ("bools", [False, True, 2, 3, 4, 5, 6]),
        ("text", ["0"] * 7),
        ("floats", [0.0] * 7),
    ):
        yield Alteration(
            f"offsets {label}", lambda folder, offsets=offsets: _set_info(folder, frame_offsets=offsets)
        )
    for label, data in (
        ("empty", b""),
        ("list", b"[]"),
        ("not UTF-8", b'{"a": "\xff"}'),
        ("NaN", b'{"a": NaN}'),
        ("deep", b"[" * 100_000),
        ("digits", b'{"a": ' + b"1" * 5000 + b"}"),
    ):
        yield Alteration(f"json {label}", _replace_member("json", data))
    bomb_png = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0" + bytes(40)
    )
    webp = encode_image("WEBP", lossless=True)
    for label, frame in (
        ("TIFF", encode_image("TIFF")),
        ("PNG", encode_image("PNG")),
        ("GIF", encode_image("GIF")),
        ("BMP", encode_image("BMP")),
        ("JPEG", encode_image("JPEG")),
        ("bomb", bomb_png),
        ("no image", os.urandom(99)),
        ("cut", webp[:20]),
        ("other size", encode_image("WEBP", (32, 32))),
        ("large", forge_webp(16000)),
        ("VP8X bomb", b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6 + bytes(30)),
    ):
        yield Alteration(
            f"frames {label}", lambda folder, frame=frame: _replace_frames(folder, [frame] * N_FRAMES)
        )
    yield Alteration(
        "frames many of one byte",
        lambda folder: _replace_frames(folder, [b"\0"] * 200_000, size=1024, frames=200_000),
    )
    yield Alteration("frames one less", lambda folder: _replace_frames(folder, [webp] * (N_FRAMES - 1)))
    for name in (*NAMES, "s1_clip1"):
        yield Alteration(f"clip named {name[:20]!r}", lambda folder, name=name: _rename_clip(folder, name))


def _replace_member(member: str, data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        clips = read_all_members(folder)
        for clip_id in ("s1_clip0", "s1_clip1"):  # of both splits
            clips[clip_id][member] = data
        repack(folder, clips)

    return apply


def _set_info(folder: Path, **values: Any) -> None:
    clips = read_all_members(folder)
    for clip_id in ("s1_clip0", "s1_clip1"):
        clips[clip_id]["json"] = json.dumps(json.loads(clips[clip_id]["json"]) | values).encode()
    repack(folder, clips)


def _replace_frames(folder: Path, images: list[bytes], **values: Any) -> None:
    clips = read_all_members(folder)
    offsets = [0, *itertools.accumulate(map(len, images))]
    for clip_id in ("s1_clip0", "s1_clip1"):
        info = json.loads(clips[clip_id]["json"]) | {"frame_offsets": offsets} | values
        clips[clip_id]["json"] = json.dumps(info).encode()
        clips[clip_id]["frames.webp"] = b"".join(images)
    repack(folder, clips, **({"frames": values["frames"]} if "frames" in values else {}))


def _rename_clip(folder: Path, name: str) -> None:
    """Give the first test clip another name, everywhere."""
    ledger = pq.read_table(folder / LEDGER_NAME)
    ids = [name if clip_id == "s1_clip1" else clip_id for clip_id in ledger["clip_id"].to_pylist()]
    place = ledger.column_names.index("clip_id")
    pq.write_table(ledger.set_column(place, "clip_id", pa.array(ids, pa.string())), folder / LEDGER_NAME)
    clips = read_all_members(folder)
    renamed = {}
    for clip_id, members in clips.items():
        if clip_id == "s1_clip1":
            members = members | {"json": json.dumps(json.loads(members["json"]) | {"clip_id": name}).encode()}
        renamed[name if clip_id == "s1_clip1" else clip_id] = members
    repack(folder, renamed)


# --- files --------------------------------------------------------------------------------------------------


def list_file_alterations(outside: Path) -> Iterator[Alteration]:
    """A pipe, a folder, a link, nothing where each file should be. ``outside`` is another folder."""
    for which in (DATASET_NAME, INDEX_NAME, LEDGER_NAME, "*.tar"):
        for kind in (
            "pipe",
            "socket",
            "folder",
            "device",
            "gone",
            "link out",
            "dangling link",
            "link to itself",
        ):
            yield Alteration(
                f"{which} is a {kind}",
                lambda folder, which=which, kind=kind: replace_file(
                    next(iter(sorted(folder.glob(which)))), kind, outside
                ),
            )
    yield Alteration("a shard is no tar", lambda folder: _reshard(folder, lambda data: os.urandom(len(data))))
    yield Alteration("a shard is cut", lambda folder: _reshard(folder, lambda data: data[:1500]))
    yield Alteration("a shard is empty", lambda folder: _reshard(folder, lambda data: b""))


def replace_file(path: Path, kind: str, outside: Path) -> None:
    """Put something else in the place of a file. ``link out``: its bytes are in the folder ``outside``."""
    data = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link out":
        outside.mkdir(parents=True, exist_ok=True)
        (outside / path.name).write_bytes(data)
        path.symlink_to(outside / path.name)
    elif kind == "dangling link":
        path.symlink_to(outside / "nothing")
    elif kind == "link to itself":
        path.symlink_to(path)


def _reshard(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """Other bytes in the first shard, under hashes that are right."""
    manifest = json.loads((folder / DATASET_NAME).read_text())
    entry = manifest["shards"][0]
    data = change((folder / entry["name"]).read_bytes())
    (folder / entry["name"]).write_bytes(data)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["digest"] = compute_digest(parse_shard_entries(manifest))
    (folder / DATASET_NAME).write_text(json.dumps(manifest))
