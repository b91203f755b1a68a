"""Shards are read back as they were written; damaged and forged members raise an error that names them."""

from __future__ import annotations

import gc
import io
import json
import pickle
import re
import shutil
import sys
import tarfile
import time
from collections.abc import ValuesView
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from numpy.typing import NDArray

from shards.codec import CODECS, Codec, decode_frame
from shards.diff import diff
from shards.index import DATASET_NAME, INDEX_NAME, INDEX_SCHEMA, LEDGER_NAME, Clips, read_manifest
from shards.ledger import write_ledger
from shards.reader import decode_members, open_dataset, read_clip, read_members, read_unless_damaged
from shards.retry import RetryError
from shards.schema import ShardError, array_to_npy, info_to_json, json_to_info, npy_to_array
from shards.table import Row
from shards.verify import verify
from shards.writer import PackedClip, write_tar
from tests import alterations, datasets

SIZE = 32
N_FRAMES = 5


def make_clip(key: str, codec: Codec = "webp", seed: int = 0) -> PackedClip:
    """A clip of five small frames: noise over a gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, SIZE, dtype=np.float32)
    frames = (ramp[None, :, None, None] + rng.integers(0, 50, (N_FRAMES, SIZE, SIZE, 3))).astype(np.uint8)
    mels = rng.uniform(-80, 0, (2 * N_FRAMES, 256)).astype(np.float32)
    return datasets.pack(key, frames, box=(4, 16, 28, 30), mels=mels, codec=codec)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return datasets.write(tmp_path / "shards", [make_clip("s1_b", seed=1), make_clip("s1_a", seed=2)])


@pytest.mark.parametrize(("n_frames", "fits"), [(1365, True), (1366, False)])
def test_a_clip_that_no_reader_accepts_is_not_packed(n_frames: int, fits: bool) -> None:
    info = {"schema_version": 1, "frames": n_frames, "size": 1024, "codec": "webp"}
    info["frame_offsets"] = list(range(n_frames + 1))
    expected = f"{n_frames} frames of 1024 px are 4.3 GB, expected at most 4.29"

    def pack() -> PackedClip:
        boxes = np.tile(np.array([4, 16, 28, 30], np.int16), (n_frames, 1))
        affine = np.tile(np.eye(2, 3, dtype=np.float32), (n_frames, 1, 1))
        return PackedClip("s1_x", b"", boxes, np.zeros((2 * n_frames, 8), np.float32), affine, info)

    if fits:
        assert json_to_info(pack().members()["json"], "s1_x.json")["frames"] == n_frames
    else:
        with pytest.raises(ShardError, match=re.escape(f"s1_x: {expected}")):
            pack()
        with pytest.raises(ShardError, match=re.escape(f"s1_x.json: {expected}")):
            json_to_info(info_to_json(info), "s1_x.json")


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_written_is_read_back(codec: Codec, tmp_path: Path) -> None:
    packed = make_clip("s1_x", codec)
    sample = read_clip(open_dataset(datasets.write(tmp_path / "shards", [packed])), "s1_x")
    exact = make_clip("s1_x", "raw")
    frames = np.frombuffer(exact.blob, np.uint8).reshape(N_FRAMES, SIZE, SIZE, 3)
    if codec == "jpeg":
        error = np.square(sample.frames.astype(float) - frames).mean()
        assert 10 * np.log10(255**2 / error) > 30, "noise is hard on JPEG, but not that hard"
    else:
        assert np.array_equal(sample.frames, frames)
    for name in ("boxes", "mels", "affine"):
        array, expected = getattr(sample, name), getattr(packed, name)
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)
    assert sample.info == json.loads(packed.members()["json"])


def test_equal_clips_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        write_tar(tmp_path / name, [make_clip("s1_b"), make_clip("s1_a")])
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_stock_webdataset_reads_a_shard(dataset: Path) -> None:
    paths = [str(path) for path in dataset.glob("train-*.tar")]
    samples = list(wds.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["s1_b", "s1_a"]
    for sample in samples:
        info = json.loads(sample["json"])
        start, end = info["frame_offsets"][2:4]
        frame = decode_frame(sample["frames.webp"][start:end], "webp", (SIZE, SIZE))
        assert np.array_equal(frame, read_clip(open_dataset(dataset), sample["__key__"]).frames[2])
        assert np.load(io.BytesIO(sample["mels.npy"]), allow_pickle=False).shape == (2 * N_FRAMES, 256)


def test_the_index_names_the_bytes_of_each_member(dataset: Path) -> None:
    reader = open_dataset(dataset)
    for clip_id, row in reader.clips.items():
        with tarfile.open(dataset / row["shard"]) as tar:
            for full in ("frames.webp", "boxes.npy", "mels.npy", "affine.npy", "json"):
                member = tar.extractfile(f"{clip_id}.{full}")
                assert member is not None
                assert member.read() == read_members(reader, clip_id)[full.split(".")[0]]


def test_a_complete_dataset_has_no_problems(dataset: Path) -> None:
    assert list(verify(dataset, full=True)) == []


@pytest.mark.parametrize("full", [False, True])
def test_verify_names_what_is_wrong(dataset: Path, full: bool) -> None:
    (shard,) = dataset.glob("*.tar")
    data = shard.read_bytes()
    middle = len(data) // 2

    shard.write_bytes(data[:middle])
    assert f"{middle} bytes, expected {len(data)}" in next(verify(dataset, full=full))

    shard.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "sha256" in next(verify(dataset, full=full))

    shard.unlink()
    assert "No such file" in next(verify(dataset, full=full))
    shard.write_bytes(data)

    manifest = read_manifest(dataset)
    (dataset / DATASET_NAME).write_text(json.dumps(manifest | {"files_found": 3}))
    assert any("3 files found, the ledger has 2 rows" in message for message in verify(dataset, full=full))
    (dataset / DATASET_NAME).unlink()
    assert "not a complete dataset" in next(verify(dataset, full=full))


def test_verify_reads_each_index_row_twice_however_many_shards_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scanning the index once per shard would take days for a million clips."""
    rows_read: list[int] = []
    values, take_rows = Clips.values, Clips.take_rows

    def count_values(clips: Clips) -> ValuesView[Row]:
        rows_read.append(len(clips))
        return values(clips)

    def count_taken_rows(clips: Clips, row_numbers: NDArray[np.int64]) -> list[Row]:
        rows_read.append(len(row_numbers))
        return take_rows(clips, row_numbers)

    monkeypatch.setattr(Clips, "values", count_values)
    monkeypatch.setattr(Clips, "take_rows", count_taken_rows)
    for per_shard in (1, 6):
        folder = tmp_path / f"{per_shard} a shard"
        datasets.write(folder, [make_clip(f"s1_{n}", "raw") for n in range(6)], per_shard=per_shard)
        rows_read.clear()
        assert list(verify(folder, full=True)) == []
        assert sum(rows_read) == 12, "once for the counts, once for the shards"


def test_a_flipped_bit_is_found_on_reading_without_verify(dataset: Path) -> None:
    reader = open_dataset(dataset)
    row = reader.clips["s1_a"]
    path = dataset / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["mels_offset"] + 500] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match="s1_a's mels are not the bytes"):
        read_clip(reader, "s1_a")
    read_clip(reader, "s1_b")


def test_a_damaged_clip_is_told_from_a_storage_that_does_not_answer(dataset: Path) -> None:
    def fail(error: Exception) -> None:
        raise error

    clip_id = next(iter(open_dataset(dataset).clips))
    datasets.damage_clip(dataset, clip_id)
    assert "frames are not" in str(read_unless_damaged(read_clip, open_dataset(dataset), clip_id))
    with pytest.raises(RetryError, match="given up"):
        read_unless_damaged(fail, RetryError("given up"))


def test_a_manifest_cannot_name_a_file_outside_its_folder(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    manifest["shards"][0]["name"] = "../../etc/passwd"
    (dataset / DATASET_NAME).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="expected a plain file name"):
        open_dataset(dataset)


def test_a_manifest_cannot_name_a_table_outside_its_folder(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    for tables, expected in (
        ({"index.parquet": "/../../../etc/passwd"}, "64 hex digits"),
        (["index.parquet"], "a valid dictionary"),
        ({"index.parquet": None}, "a valid string"),
    ):
        (dataset / DATASET_NAME).write_text(json.dumps(manifest | {"tables": tables}))
        with pytest.raises(ShardError, match=f"tables.* expected {expected}"):
            open_dataset(dataset)


def test_verify_names_a_table_of_another_build(dataset: Path) -> None:
    rows = open_dataset(dataset).ledger()
    write_ledger(dataset / LEDGER_NAME, [row | {"notes": ["written later"]} for row in rows])
    (message,) = verify(dataset, full=False)
    assert f"{LEDGER_NAME}: sha256" in message


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">i2", "|u1"])
def test_any_plain_array_is_read_as_numpy_reads_it(dtype: str, order: Literal["C", "F"]) -> None:
    buffer = io.BytesIO()
    array = np.arange(24).astype(dtype).reshape(2, 3, 4, order=order)
    np.save(buffer, array)
    result = npy_to_array(buffer.getvalue(), "x.npy")
    assert result.dtype == array.dtype and result.flags.writeable
    assert np.array_equal(result, array)


@pytest.mark.parametrize("shape", [(), (0,), (2,), (2, 0), (1, 1, 1, 1, 1)])
def test_arrays_of_any_number_of_dimensions_are_read(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    result = npy_to_array(alterations.make_npy(array), "x.npy")
    assert result.shape == shape and np.array_equal(result, array)


def test_arrays_are_read_by_many_threads_while_garbage_is_collected() -> None:
    """numpy evaluates a header as a literal, which Python 3.11.7 fails to do at random then."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    data, interval, thresholds = array_to_npy(array), sys.getswitchinterval(), gc.get_threshold()

    def let_others_run(*_: object) -> None:
        time.sleep(0)

    def read(_: int) -> set[bytes]:
        return {npy_to_array(data, "x.npy").tobytes() for _ in range(300)}

    gc.callbacks.append(let_others_run)
    try:
        sys.setswitchinterval(1e-6)
        gc.set_threshold(7)
        with ThreadPoolExecutor(8) as pool:
            assert set().union(*pool.map(read, range(64))) == {array.tobytes()}
    finally:
        gc.callbacks.remove(let_others_run)
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)


class Bomb:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("exploded", "w")


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb())):
        with pytest.raises(ShardError):
            npy_to_array(data, "x.mels.npy")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("shape", ["(99999999999,)", "(3, 1)", "(2**9,)", "(-4,)", "(0,)"])
def test_an_array_whose_header_declares_other_bytes_than_follow_is_refused_before_it_is_allocated(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    monkeypatch.setattr(np, "frombuffer", None)
    with pytest.raises(ShardError, match=r"x\.mels\.npy: not a plain \.npy array"):
        npy_to_array(data, "x.mels.npy")


@pytest.mark.parametrize(
    ("member", "forged", "message"),
    [
        ("json", b"[1]", "expected an object"),
        ("json", b'{"schema_version": 99}', "this redub reads 1"),
        ("json", b"{" * 100_000, "not JSON"),
        ("frames", b"", "frame offsets"),
        ("boxes", array_to_npy(np.zeros((N_FRAMES, 4), np.int16)), "expected 0 <= x0 < x1"),
        ("boxes", array_to_npy(np.full((N_FRAMES, 4), 9, np.int64)), "expected int16"),
        ("mels", array_to_npy(np.zeros((3, 256), np.float32)), "need 10 mel rows"),
        ("mels", array_to_npy(np.full((10, 256), np.nan, np.float32)), "not finite"),
        ("affine", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': (99999999999,)}", "not a plain .npy"),
    ],
)
def test_a_forged_member_is_refused(member: str, forged: bytes, message: str) -> None:
    members = {name.split(".")[0]: data for name, data in make_clip("s1_x").members().items()}
    decode_members("s1_x", members)
    with pytest.raises(ShardError, match=message):
        decode_members("s1_x", members | {member: forged})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codec", "exe", "codec is 'exe', expected 'webp'"),
        ("size", 100_000, "size is 100000"),
        ("frame_offsets", [0, 5, 3], "frame offsets"),
        ("frame_offsets", "all", "frame_offsets is 'all', expected a valid list"),
        ("frame_offsets", [-1, 4, 9], "frame_offsets.0 is -1"),
    ],
)
def test_a_forged_json_is_refused(key: str, value: object, message: str) -> None:
    clip = make_clip("s1_x")
    members = {name.split(".")[0]: data for name, data in clip.members().items()}
    members["json"] = json.dumps({**clip.info, key: value}).encode()
    with pytest.raises(ShardError, match=message):
        decode_members("s1_x", members)


def test_an_image_whose_header_declares_gigabytes_is_refused() -> None:
    huge = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ShardError, match=r"not png|expected 32x32"):
        decode_frame(huge + b"\x08\x02\x00\x00\x00" + b"\x00" * 20, "png", (SIZE, SIZE))


@pytest.mark.parametrize("key", ["s1.x", "a/b", ""])
def test_a_clip_id_that_would_split_in_the_tar_is_refused(key: str) -> None:
    with pytest.raises(ShardError, match="is not a plain name"):
        replace(make_clip("s1_x"), key=key)


def test_diff_lists_what_changed(dataset: Path, tmp_path: Path) -> None:
    other = datasets.write(tmp_path / "other", [make_clip("s1_a", seed=3), make_clip("s1_c", seed=2)])
    changes = diff(dataset, other)
    assert changes.added == ["s1_c"]
    assert changes.removed == {"s1_b": "its file is gone"}
    assert set(changes.changed["s1_a"]) >= {"frames", "mels"}
    assert not diff(dataset, dataset)


@pytest.mark.parametrize("name", INDEX_SCHEMA.names)
def test_diff_sees_every_column_of_the_index(name: str, dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    table = pq.read_table(other / INDEX_NAME)
    values = table[name].to_pylist()
    if name == "shard":
        (other / values[0]).rename(other / "other.tar")
        manifest = json.loads((other / DATASET_NAME).read_text())
        manifest["shards"][0]["name"] = "other.tar"
        (other / DATASET_NAME).write_text(json.dumps(manifest))
        values = ["other.tar"] * len(values)
    elif isinstance(values[0], int):
        values[0] = values[0] + (-1 if name.endswith("size") else 1)
    else:
        values[0] = values[0][:-1] + ("0" if values[0][-1] != "0" else "1")
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), other / INDEX_NAME)
    assert diff(dataset, other) or name == "shard"


@pytest.mark.parametrize(
    ("alteration", "message"),
    [
        ("mels.npy 3e38", "s1_clip0: mels reach 3e.38 dB"),
        ("mels.npy positive", "s1_clip0: mels are 50.00 to 50.00 dB, expected -80 to 0"),
        ("affine.npy zero", "s1_clip0: the matrix of frame 0 is .* cannot be inverted"),
        ("frames TIFF", r"shards/train-.*\.tar: s1_clip0: frame 0: a frame of \d+ bytes is not webp"),
        ("frames PNG", "s1_clip0: frame 0: a frame of .* is not webp"),
        ("frames large", "s1_clip0: frame 0: a frame of .* is 16000x16000, expected 16x16"),
        ("frames many of one byte", "200000 frames of 1024 px are 629 GB"),
        ("boxes.npy outside", "s1_clip0: box of frame 0 is .* expected 0 <= x0"),
    ],
)
def test_a_full_check_compares_values(alteration: str, message: str, tmp_path: Path) -> None:
    folder = alterations.make_dataset(tmp_path / "shards")
    assert list(verify(folder, full=True)) == []
    next(each for each in alterations.list_member_alterations() if each.name == alteration).apply(folder)
    quick = list(verify(folder, full=False))
    assert not any("s1_clip0" in problem for problem in quick), "nothing but its values can show it"
    problems = list(verify(folder, full=True))
    assert any(re.search(message, problem) for problem in problems), problems


def test_verify_compares_the_sha256_of_the_index_with_the_bytes(dataset: Path) -> None:
    table = pq.read_table(dataset / INDEX_NAME)
    column = pa.array(["0" * 64, *table["sha256"].to_pylist()[1:]])
    path = dataset / INDEX_NAME
    pq.write_table(table.set_column(table.column_names.index("sha256"), "sha256", column), path)
    problems = list(verify(dataset, full=False))
    assert any("has sha256" in problem and "the index says 0000" in problem for problem in problems), problems
