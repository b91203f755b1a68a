"""The webdataset pipeline yields every clip as ``read_clip`` does; damage and unsafe addresses are errors."""

from __future__ import annotations

import io
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from shards.checksum import file_sha256
from shards.reader import Dataset, open_dataset, read_clip
from shards.schema import ClipSample, ShardError
from shards.storage import open_storage
from shards.webdataset_reader import from_dataset, from_webdataset
from shards.writer import PackedClip
from tests import datasets
from tests.shards.test_publish import serve

SIZE, N_CLIPS, PER_SHARD = 16, 12, 2
IDS = [f"s1_clip{number:02d}" for number in range(N_CLIPS)]


def make_clip(number: int, split: str = "train") -> PackedClip:
    rng = np.random.default_rng(number)
    return datasets.pack(
        f"s1_clip{number:02d}",
        rng.integers(0, 256, (3 + number % 4, SIZE, SIZE, 3), dtype=np.uint8),
        box=(1, 3, 6, 8),
        mels=rng.uniform(-79, 0, (2 * (3 + number % 4), 4)).astype(np.float32),
        codec="webp",
        split=split,
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    clips = [make_clip(number) for number in range(N_CLIPS)]
    return open_dataset(datasets.write(tmp_path / "shards", clips, per_shard=PER_SHARD))


def list_shards(dataset: Dataset) -> list[Path]:
    return sorted(dataset.folder.glob("*.tar"))


def keys(samples: object) -> list[str]:
    return [sample.key for sample in samples]  # type: ignore[attr-defined]


def is_same(sample: ClipSample, other: ClipSample) -> bool:
    names = ("frames", "boxes", "mels", "affine")
    arrays = [(getattr(sample, name), getattr(other, name)) for name in names]
    return (sample.key, sample.info) == (other.key, other.info) and all(
        one.dtype == two.dtype and np.array_equal(one, two) for one, two in arrays
    )


# --- what is read ---------------------------------------------------------------------------------


def test_each_clip_is_the_one_that_read_clip_returns(dataset: Dataset) -> None:
    shards = list_shards(dataset)
    urls: Sequence[Sequence[str | Path]] = (shards, [str(path) for path in shards], [f"file:{shards[0]}"])
    for addresses in urls:
        samples = list(from_webdataset(addresses))
        assert keys(samples) == IDS[: PER_SHARD * len(addresses)]
        assert all(is_same(sample, read_clip(dataset, sample.key)) for sample in samples)
    assert keys(from_webdataset(shards[1])) == IDS[2:4], "one path"
    assert keys(from_dataset(dataset)) == IDS


def test_braces_are_expanded(dataset: Dataset, tmp_path: Path) -> None:
    for number, path in enumerate(list_shards(dataset)):
        shutil.copyfile(path, tmp_path / f"copy-{number}.tar")
    assert keys(from_webdataset(f"{tmp_path}/copy-{{0..2}}.tar")) == IDS[:6]


def test_shards_are_read_from_a_web_server(dataset: Dataset) -> None:
    with serve(dataset.folder) as (address, sent):
        urls = [f"{address}/{path.name}" for path in list_shards(dataset)]
        assert keys(from_webdataset([*urls[:2], f"{urls[2]}?signature=1"])) == IDS[:6]
        assert keys(from_dataset(open_dataset(open_storage(address)))) == IDS
        with pytest.raises(ShardError, match=r"gone\.tar: no such shard"):
            list(from_webdataset(f"{address}/gone.tar"))
        shard = list_shards(dataset)[2]
        shard.write_bytes(shard.read_bytes()[:-600] + bytes([1] * 600))
        with pytest.raises(ShardError, match=r"with sha256 [0-9a-f]{12}, expected [0-9a-f]{12}$"):
            list(from_webdataset(f"{urls[2]}?signature=1"))
    assert urls[0].rpartition("/")[2] in sent


@pytest.mark.parametrize("shuffle", [0, 5])
@pytest.mark.parametrize("registered", [False, True])
def test_ranks_and_workers_together_read_every_clip_once(
    dataset: Dataset, shuffle: int, registered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        pipeline = (
            from_dataset(dataset, shuffle=shuffle)
            if registered
            else from_webdataset(list_shards(dataset), shuffle=shuffle)
        )
        rank_keys = keys(DataLoader(pipeline, batch_size=None, num_workers=2))
        assert len(rank_keys) == N_CLIPS // 2
        read += rank_keys
    assert sorted(read) == IDS
    assert keys(from_webdataset(list_shards(dataset), nodesplitter=None)) == IDS, "and all without a splitter"


def test_the_order_depends_on_seed_and_epoch(dataset: Dataset) -> None:
    def order(seed: int = 0, epoch: int = 0) -> list[str]:
        return keys(from_webdataset(list_shards(dataset), shuffle=6, seed=seed, epoch=epoch))

    assert order() == order()
    assert order(seed=1) == order(seed=1)
    orders = [order(), order(seed=1), order(epoch=1), order(epoch=2), IDS]
    assert all(sorted(keys) == IDS for keys in orders)
    assert len(set(map(tuple, orders))) == len(orders)
    shard_order = keys(from_webdataset(list_shards(dataset), shuffle=1))[::PER_SHARD]
    assert shard_order != IDS[::PER_SHARD], "shards are shuffled too"


def test_only_registered_shards_and_the_clips_of_the_split_are_read(tmp_path: Path) -> None:
    clips = [make_clip(number, "test" if number in (1, 5) else "train") for number in range(6)]
    folder = datasets.write(tmp_path / "shards", clips, per_shard=PER_SHARD)
    other = datasets.write(tmp_path / "other", [make_clip(9)])
    stray = next(other.glob("*.tar"))
    stray.rename(folder / stray.name)
    dataset = open_dataset(folder)
    assert keys(from_dataset(dataset)) == [IDS[0], IDS[2], IDS[3], IDS[4]]
    assert keys(from_dataset(dataset, "test")) == [IDS[1], IDS[5]]
    assert keys(from_dataset(dataset, clip_ids=[IDS[3]])) == [IDS[3]]
    with pytest.raises(ShardError, match="no shards to read"):
        from_dataset(dataset, "validation")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["pipe:touch ran", "PIPE:touch ran", "gs://bucket/x.tar", "sftp://host/x.tar", "file://host/x.tar"]
)
def test_commands_and_other_schemes_are_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for urls in (url, [url], ["x.tar", url], f"x.tar::{url}"):
        with pytest.raises(ShardError, match="shards are read from paths, file:"):
            from_webdataset(urls)
    with pytest.raises(ShardError, match="no shards to read"):
        from_webdataset([])
    assert list(tmp_path.iterdir()) == []


def read_error(pipeline: object) -> str:
    with pytest.raises(ShardError) as caught:
        list(pipeline)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shard_that_is_cut_anywhere_is_an_error_that_names_it(dataset: Dataset, tmp_path: Path) -> None:
    shard = list_shards(dataset)[1]
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
    for path in (shard, tmp_path / "renamed.tar"):  # with and without a hash in its name
        for n_bytes in (0, 100, headers[3], headers[5], headers[5] + 512, headers[5] + 700):
            path.write_bytes(data[:n_bytes])
            error = read_error(from_webdataset([list_shards(dataset)[0], path]))
            assert error.startswith(f"{path}: "), n_bytes
    shard.unlink()
    assert "no such shard" in read_error(from_dataset(dataset))


def test_a_damaged_tar_header_does_not_end_a_shard_early(dataset: Dataset, tmp_path: Path) -> None:
    """``tarfile`` stops at such a header without an error."""
    path = tmp_path / "renamed.tar"
    data = bytearray(list_shards(dataset)[0].read_bytes())
    with tarfile.open(list_shards(dataset)[0]) as tar:
        second_clip = tar.getmember(f"{IDS[1]}.affine.npy").offset
    data[second_clip + 150] ^= 1  # in the header's checksum
    path.write_bytes(data)
    assert read_error(from_webdataset(path)) == f"{path}: the tar is cut short or damaged"


@pytest.mark.parametrize("member", ["frames", "boxes", "mels", "affine", "json"])
def test_an_altered_member_is_named_by_shard_and_clip(dataset: Dataset, member: str) -> None:
    row = dataset.clips[IDS[3]]
    path = dataset.folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row[f"{member}_offset"] + row[f"{member}_size"] // 2] ^= 1
    path.write_bytes(data)
    error = read_error(from_dataset(dataset))
    assert error == f"{path}: {IDS[3]}'s {member} are not the bytes that the index names"
    assert read_error(from_webdataset(list_shards(dataset))).startswith(f"{path}: "), "the hash in its name"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(f"s1_x.{name}")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def test_a_clip_that_does_not_fit_the_schema_is_named(tmp_path: Path) -> None:
    members = make_clip(0).members()
    path = tmp_path / "x.tar"
    assert keys(from_webdataset(write_tar(path, members))) == ["s1_x"]
    for changes, message in (
        ({"frames.webp": b"no picture"}, "s1_x: frame offsets do not cut 10 bytes"),
        ({"mels.npy": b"no array"}, "s1_x.mels.npy: not a plain .npy array"),
        ({"json": b"{}"}, "s1_x.json: schema version None"),
    ):
        write_tar(path, members | changes)
        assert read_error(from_webdataset(path)).startswith(f"{path}: {message}")
    del members["boxes.npy"], members["mels.npy"]
    assert read_error(from_webdataset(write_tar(path, members))) == f"{path}: s1_x has no boxes, mels"


class Bomb:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("exploded", "w")


def test_members_that_webdataset_would_unpickle_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extras = {f"x.{suffix}": pickle.dumps(Bomb()) for suffix in ("pyd", "pickle", "pth", "cls")}
    path = write_tar(tmp_path / "x.tar", make_clip(0).members() | extras)
    assert keys(from_webdataset(path)) == ["s1_x"]
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_tar_or_is_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"x" * 20_000)
    assert read_error(from_webdataset(path)) == f"{path}: not a tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("s1_x.json"))
    assert read_error(from_webdataset(path)) == f"{path}: not a tar"


def test_errors_of_workers_stay_shard_errors(dataset: Dataset) -> None:
    shard = list_shards(dataset)[1]
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ShardError, match=shard.name):
        list(DataLoader(from_dataset(dataset), batch_size=None, num_workers=2))


def test_the_hash_in_a_shards_name_is_the_start_of_its_sha256(dataset: Dataset) -> None:
    for path in list_shards(dataset):
        assert path.stem.rpartition("-")[2] == file_sha256(path)[:12]
