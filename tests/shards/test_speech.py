"""The member speech.npy: read back as written by every reader, absent where there is none, or refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from numpy.typing import NDArray

from shards.cache import LocalShards
from shards.clip_stream import ClipStream
from shards.diff import diff
from shards.frames import BatchIndex, FrameSource, NetworkInput, RawBatch
from shards.index import INDEX_NAME, INDEX_SCHEMA, MEMBERS, SPEECH_FIELDS
from shards.reader import open_dataset, read_clip, read_info, read_members
from shards.resident import build_clip_table
from shards.schema import MAX_SPEECH_FEATURES, ShardError
from shards.speech_scale import measure_speech_scale
from shards.streaming import Cached, Decoder
from shards.verify import verify
from shards.webdataset_reader import from_dataset, from_webdataset
from shards.windowed import Windowed
from shards.writer import PackedClip, write_tar
from tests import alterations, datasets
from tests.alterations import make_npy
from tests.shards.test_streaming import CPU, N_MELS, NETWORK_INPUT, SIZE, SPEECH_SIZE

LENGTHS = {"s1_a": 6, "s1_b": 1, "s1_c": 4, "s1_d": 9}
BEFORE, AFTER = 5, 8
OPENERS: dict[str, Callable[[Path, NetworkInput], FrameSource]] = {}


def make_clip(key: str, *, speech_size: int = SPEECH_SIZE) -> PackedClip:
    number = list(LENGTHS).index(key)
    return datasets.make_noise_clip(key, LENGTHS[key], SIZE, N_MELS, seed=number, speech_size=speech_size)


def write(folder: Path, *without: str) -> Path:
    """Four clips in two shards, with speech features except for some of them."""
    clips = [make_clip(key, speech_size=0 if key in without else SPEECH_SIZE) for key in LENGTHS]
    return datasets.write(folder, clips, per_shard=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shards")


def opener(open_source: Callable[[Path, NetworkInput], FrameSource]) -> Callable[..., FrameSource]:
    OPENERS[open_source.__name__.removeprefix("open_")] = open_source
    return open_source


@opener
def open_resident(folder: Path, network_input: NetworkInput) -> FrameSource:
    return datasets.load(folder, network_input, pad=max(BEFORE, AFTER, 3))


@opener
def open_cached(folder: Path, network_input: NetworkInput) -> FrameSource:
    dataset = open_dataset(folder)
    table = build_clip_table(dataset, dataset.clips)
    return Cached(Decoder(dataset, table, LocalShards(folder), network_input), CPU, 2)


@opener
def open_windowed(folder: Path, network_input: NetworkInput) -> FrameSource:
    dataset, store = open_dataset(folder), LocalShards(folder)
    decoder = Decoder(dataset, build_clip_table(dataset, dataset.clips), store, network_input)
    return Windowed(decoder, CPU, 1, store=store, window=1)


@opener
def open_streamed(folder: Path, network_input: NetworkInput) -> FrameSource:
    dataset = open_dataset(folder)
    return ClipStream(
        dataset, list(dataset.clips), network_input, CPU, workers=0, seed=0, start_step=0, buffer_clips=4
    )


each_reader = pytest.mark.parametrize("name", ["resident", "cached", "windowed", "streamed"])


def read_epoch(data: FrameSource, window: tuple[int, int] | None = (BEFORE, AFTER)) -> Iterator[RawBatch]:
    def select() -> Iterator[BatchIndex]:
        for k in range(0, len(data), 4):
            positions = np.arange(k, k + 4)
            target = data.epoch_order(positions, seed=1)
            first = data.clips.starts[data.clips.find_clips(target)]
            yield BatchIndex(positions, target, first, first, (3, 2), speech_rows=window)

    if isinstance(data, ClipStream):
        with closing(data):
            yield from map(data.read_batch, select())
    else:
        yield from islice(data.prefetch(select(), seed=1), len(data) // 4)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_the_member_is_read_back_byte_for_byte_by_every_way_to_read_a_clip(folder: Path) -> None:
    dataset = open_dataset(folder)
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = {
        "read_clip": {clip_id: read_clip(dataset, clip_id) for clip_id in LENGTHS},
        "from_dataset": {clip.key: clip for clip in from_dataset(dataset)},
        "from_webdataset": {clip.key: clip for clip in from_webdataset(shards)},
    }
    stock = {sample["__key__"]: sample for sample in wds.WebDataset(shards, shardshuffle=False)}
    for clip_id in LENGTHS:
        packed = make_clip(clip_id)
        assert packed.speech is not None
        data = packed.members()["speech.npy"]
        assert read_members(dataset, clip_id)["speech"] == data == stock[clip_id]["speech.npy"]
        assert np.array_equal(np.load(io.BytesIO(data), allow_pickle=False), packed.speech)
        for way, clips in samples.items():
            speech = clips[clip_id].speech
            assert speech is not None and speech.dtype == np.float16, way
            assert speech.tobytes() == packed.speech.tobytes(), way
        assert read_info(dataset, clip_id) == packed.info
    assert list(verify(folder, full=True)) == [] and not diff(folder, folder)
    with tarfile.open(shards[0]) as tar:
        names = [name.partition(".")[2] for name in tar.getnames()[:6]]
    assert names == ["affine.npy", "boxes.npy", "frames.raw", "json", "mels.npy", "speech.npy"]


def test_shards_and_index_without_the_member_are_as_if_there_were_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "without", *LENGTHS)
    assert pq.read_schema(folder / INDEX_NAME).names == INDEX_SCHEMA.names
    dataset = open_dataset(folder)
    assert read_clip(dataset, "s1_a").speech is None
    assert tuple(read_members(dataset, "s1_a")) == MEMBERS
    with pytest.raises(ShardError, match="s1_a has no speech"):
        read_members(dataset, "s1_a", ["speech"])
    assert list(verify(folder, full=True)) == []
    write_tar(tmp_path / "with.tar", [make_clip("s1_a")])
    write_tar(tmp_path / "without.tar", [make_clip("s1_a", speech_size=0)])
    with tarfile.open(tmp_path / "with.tar") as one, tarfile.open(tmp_path / "without.tar") as other:
        for member in other:
            there = one.extractfile(member.name)
            here = other.extractfile(member)
            assert there is not None and here is not None and there.read() == here.read()


@each_reader
def test_windows_hold_the_rows_of_their_clip_and_zeros_beyond_its_ends(folder: Path, name: str) -> None:
    dataset = open_dataset(folder)
    padded = {}
    for clip_id in LENGTHS:
        speech = read_clip(dataset, clip_id).speech
        assert speech is not None
        padded[clip_id] = np.pad(speech, ((BEFORE, AFTER), (0, 0)))
    data = OPENERS[name](folder, NETWORK_INPUT)
    n_windows = 0
    for batch in read_epoch(data):
        assert batch.speech is not None and batch.speech.shape == (4, BEFORE + 1 + AFTER, SPEECH_SIZE)
        for row, frame in zip(batch.speech.numpy(), batch.indices.target, strict=True):
            clip = int(data.clips.find_clips(frame))
            first = 2 * int(frame - data.clips.starts[clip])
            expected = padded[data.clips.ids[clip]][first : first + BEFORE + 1 + AFTER]
            assert row.tobytes() == expected.tobytes()
            n_windows += 1
    assert n_windows == sum(LENGTHS.values()) == 20


@each_reader
def test_a_network_of_mels_reads_any_dataset_and_gets_no_speech(tmp_path: Path, name: str) -> None:
    mels_alone = replace(NETWORK_INPUT, speech_size=0)
    for number, without in enumerate([(), ("s1_c",), tuple(LENGTHS)]):
        data = OPENERS[name](write(tmp_path / f"{number}", *without), mels_alone)
        assert [batch.speech for batch in read_epoch(data, None)] == [None] * 5


@each_reader
def test_a_network_of_speech_refuses_a_dataset_in_which_some_clips_or_all_lack_it(
    tmp_path: Path, name: str
) -> None:
    some = write(tmp_path / "some", "s1_c", "s1_d")
    with pytest.raises(ShardError) as caught:
        OPENERS[name](some, NETWORK_INPUT)
    assert str(caught.value) == (
        f"{some}: s1_c has no speech features (speech.npy), which the network takes; other clips have them"
    )
    none = write(tmp_path / "none", *LENGTHS)
    with pytest.raises(ShardError) as caught:
        OPENERS[name](none, NETWORK_INPUT)
    assert str(caught.value) == (
        f"{none}: has no speech features (speech.npy), which the network takes; build it with "
        "--speech-encoder whisper-tiny.en, or speech.encoder in the params"
    )
    assert read_clip(open_dataset(some), "s1_c").speech is None
    assert read_clip(open_dataset(some), "s1_a").speech is not None
    assert list(verify(some, full=True)) == [
        f"{some}/dataset.json: params.speech.encoder is 'made', 2 clips have no speech features, "
        "the first s1_c"
    ]


@each_reader
def test_a_network_of_other_features_refuses_the_first_clip(folder: Path, name: str) -> None:
    with pytest.raises(ShardError, match=r"s1_\w.* holds 3 speech features, the network takes 384"):
        list(read_epoch(OPENERS[name](folder, replace(NETWORK_INPUT, speech_size=384))))


def forge_speech() -> dict[str, tuple[bytes, str]]:
    """Bytes of a clip of six frames that are no speech features, and what is said of them."""
    good = np.ones((12, SPEECH_SIZE), np.float16)
    spoiled, huge = good.copy(), good.copy()
    spoiled[7, 1], huge[3, 2] = np.nan, 20_000
    what = "6 frames need 12 rows of 1 to 4096 speech features in float16, got "

    def forge(shape: str, dtype: str = "<f2") -> bytes:
        return alterations.forge_npy(shape, dtype, bytes(72))

    return {
        "NaN": (make_npy(spoiled), "speech features of row 7 are not finite"),
        "infinite": (make_npy(np.full_like(good, np.inf)), "speech features of row 0 are not finite"),
        "large": (make_npy(huge), "speech features reach 20000, expected at most 10000"),
        "float32": (make_npy(good.astype(np.float32)), what + "float32 (12, 3)"),
        "big endian": (make_npy(good.astype(">f2")), what + ">f2 (12, 3)"),
        "short": (make_npy(good[:-1]), what + "float16 (11, 3)"),
        "long": (make_npy(np.concatenate([good, good])), what + "float16 (24, 3)"),
        "1D": (make_npy(good[:, 0]), what + "float16 (12,)"),
        "0D": (make_npy(good[0, 0]), what + "float16 ()"),
        "3D": (make_npy(good[..., None]), what + "float16 (12, 3, 1)"),
        "no features": (make_npy(good[:, :0]), what + "float16 (12, 0)"),
        "too many": (make_npy(np.zeros((12, MAX_SPEECH_FEATURES + 1), np.float16)), "got float16 (12, 4097)"),
        "objects": (make_npy(np.array([{}] * 12, object), allow_pickle=True), "header of an array of number"),
        "no array": (b"no array at all", "not a plain .npy array"),
        "empty": (b"", "not a plain .npy array"),
        "cut": (make_npy(good)[:-1], "declares 72 bytes, 71 follow"),
        "more declared": (forge("(99999999999, 3)"), "declares 599999999994 bytes, 72 follow"),
        "negative": (forge("(-12, -3)"), "got float16 (-12, -3)|not a plain .npy array|negative"),
    }


FORGERIES = forge_speech()


def write_forged(folder: Path, data: bytes) -> Path:
    """Two clips; the features of the first are other bytes, and every hash and size is right."""
    clips = [make_clip("s1_a"), make_clip("s1_b")]
    datasets.write(folder, clips)
    members = {clip.key: clip.members() for clip in clips}
    members["s1_a"]["speech.npy"] = data
    alterations.repack(folder, members)
    return folder


def collect_refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(ShardError) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_features_are_refused_by_every_reader_in_one_line_that_names_the_clip(
    tmp_path: Path, forgery: str
) -> None:
    data, expected = FORGERIES[forgery]
    folder = write_forged(tmp_path / "shards", data)
    dataset = open_dataset(folder)
    (shard,) = folder.glob("*.tar")
    mels_alone = replace(NETWORK_INPUT, speech_size=0)
    refusals = [
        collect_refusal(lambda: read_clip(dataset, "s1_a")),
        collect_refusal(lambda: list(from_dataset(dataset))),
        collect_refusal(lambda: list(from_webdataset(shard))),
        collect_refusal(lambda: list(read_epoch(open_resident(folder, NETWORK_INPUT)))),
        collect_refusal(lambda: list(read_epoch(open_cached(folder, NETWORK_INPUT)))),
        collect_refusal(lambda: list(read_epoch(open_streamed(folder, NETWORK_INPUT)))),
        collect_refusal(lambda: list(read_epoch(open_cached(folder, mels_alone), None))),
        collect_refusal(lambda: measure_speech_scale(dataset, list(LENGTHS)[:2], NETWORK_INPUT)),
        *verify(folder, full=True),
    ]
    assert len(refusals) == 9
    for refusal in refusals:
        assert "s1_a" in refusal and "\n" not in refusal and len(refusal) < 400, refusal
        assert any(part in refusal for part in expected.split("|")), refusal


@pytest.mark.parametrize("member", ["mels", "speech"])
def test_rows_that_are_stored_by_column_are_read_right_or_refused(tmp_path: Path, member: str) -> None:
    clip = make_clip("s1_a")
    datasets.write(tmp_path, [clip])
    array: NDArray[Any] = getattr(clip, member)
    members = {**clip.members(), f"{member}.npy": make_npy(np.asfortranarray(array))}
    alterations.repack(tmp_path, {"s1_a": members})
    assert np.array_equal(getattr(read_clip(open_dataset(tmp_path), "s1_a"), member), array)
    refusal = collect_refusal(lambda: list(read_epoch(open_cached(tmp_path, NETWORK_INPUT))))
    assert f"s1_a.{member}: stored column by column, expected row by row" in refusal


def change_index(folder: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    table = pq.read_table(folder / INDEX_NAME)
    columns = {name: np.array(table[name].to_pylist(), object) for name in table.column_names}
    change(columns)
    names = [name for name in table.column_names if name in columns]
    table = table.select(names)
    for number, name in enumerate(names):
        field = table.schema.field(name)
        table = table.set_column(number, field, pa.array(columns[name].tolist(), field.type))
    pq.write_table(table, folder / INDEX_NAME)


@pytest.mark.parametrize("column", [field.name for field in SPEECH_FIELDS])
def test_an_index_has_all_three_columns_of_the_member_or_none_also_in_each_row(
    folder: Path, column: str
) -> None:
    change_index(folder, lambda columns: columns[column].__setitem__(1, None))
    with pytest.raises(
        ShardError, match=r"index.parquet: s1_\w has a part of the columns of speech features"
    ):
        open_dataset(folder)
    change_index(folder, lambda columns: columns.pop(column))
    with pytest.raises(ShardError, match=f"index.parquet: index lacks the columns \\['{column}'\\]"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("column", "value"), [("offset", 2**40), ("size", 10**9), ("offset", -1), ("size", -5)]
)
def test_the_member_must_lie_in_its_shard(folder: Path, column: str, value: int) -> None:
    change_index(folder, lambda columns: columns[f"speech_{column}"].__setitem__(0, value))
    with pytest.raises(ShardError, match=r"s1_\w's bytes do not lie|expected 0 or more"):
        open_dataset(folder)


def test_altered_features_are_noticed(folder: Path) -> None:
    dataset = open_dataset(folder)
    row = dataset.clips["s1_a"]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["speech_offset"] + row["speech_size"] - 1] ^= 1
    path.write_bytes(data)
    expected = "s1_a's speech are not the bytes that the index names"
    assert expected in collect_refusal(lambda: read_clip(dataset, "s1_a"))
    assert expected in collect_refusal(lambda: list(from_dataset(dataset)))
    assert expected in collect_refusal(lambda: list(read_epoch(open_cached(folder, NETWORK_INPUT))))


def test_a_tar_whose_index_names_a_member_that_it_lacks_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    clips = [make_clip("s1_a"), make_clip("s1_b")]
    datasets.write(folder, clips)
    members = {clip.key: clip.members() for clip in clips}
    del members["s1_a"]["speech.npy"]
    alterations.repack(folder, members)
    dataset = open_dataset(folder)
    assert "s1_a has no speech" in collect_refusal(lambda: list(from_dataset(dataset)))
    assert any("s1_a's speech is only in index.parquet" in problem for problem in verify(folder, full=False))


def test_verify_and_diff_tell_datasets_with_and_without_the_member_apart(tmp_path: Path) -> None:
    with_speech, without = write(tmp_path / "with"), write(tmp_path / "without", *LENGTHS)
    assert diff(without, with_speech).changed == {clip_id: ["speech", "sha256"] for clip_id in LENGTHS} or (
        set(diff(without, with_speech).changed) == set(LENGTHS)
    )
    assert all("speech" in names for names in diff(without, with_speech).changed.values())
    assert all("speech" in names for names in diff(with_speech, without).changed.values())
    manifest = json.loads((with_speech / "dataset.json").read_text())
    manifest["params"]["speech"]["encoder"] = "none"
    (with_speech / "dataset.json").write_text(json.dumps(manifest))
    assert list(verify(with_speech, full=False)) == [
        f"{with_speech}/dataset.json: params.speech.encoder is 'none', 4 clips have speech features, "
        "the first s1_a"
    ]


def test_the_scale_of_the_features_is_that_of_the_clips_however_they_are_sharded(
    folder: Path, tmp_path: Path
) -> None:
    rows = np.concatenate([make_clip(key).speech for key in LENGTHS]).astype(np.float64)
    scale = measure_speech_scale(open_dataset(folder), list(LENGTHS), NETWORK_INPUT)
    np.testing.assert_allclose(scale.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scale.std, rows.std(axis=0), rtol=1e-5)
    other = datasets.write(tmp_path / "one", [make_clip(key) for key in reversed(LENGTHS)])
    again = measure_speech_scale(open_dataset(other), list(LENGTHS)[::-1], NETWORK_INPUT)
    assert all(np.array_equal(one, two) for one, two in zip(scale, again, strict=True))


def test_a_feature_that_never_changes_is_not_divided_by_zero(tmp_path: Path) -> None:
    for number, speech in enumerate(([[5.0, 5.0]] * 4, [[0.0, 1.0], [0.0, 3.0]] * 2)):
        frames, mels = np.zeros((2, SIZE, SIZE, 3), np.uint8), np.zeros((4, N_MELS), np.float32)
        array = np.array(speech, np.float16)
        clip = datasets.pack("s1_a", frames, box=(1, 3, 6, 8), mels=mels, speech=array)
        dataset = open_dataset(datasets.write(tmp_path / f"{number}", [clip]))
        scale = measure_speech_scale(dataset, ["s1_a"], replace(NETWORK_INPUT, speech_size=2))
        assert (scale.std > 0).all() and np.isfinite(1 / scale.std).all()
