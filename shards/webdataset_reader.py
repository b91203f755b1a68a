"""Read shards with the ``webdataset`` package: pipelines that yield decoded, checked ``ClipSample``.

    clips = from_webdataset(glob("shards/train-*.tar"), shuffle=500)
    loader = DataLoader(clips, batch_size=None, num_workers=2)

Every shard is read once by one rank and one DataLoader worker. The order depends on (seed, epoch) and on the
number of ranks and workers. webdataset's own decoders, one of which unpickles, are never called.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import webdataset as wds
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from shards.checksum import HASH_LETTERS
from shards.index import MEMBERS, Clips, list_members
from shards.names import check_clip_id
from shards.reader import Dataset, decode_members, find_altered_member
from shards.rng import derive_key
from shards.schema import ClipSample, ShardError
from shards.storage import LocalStorage, MissingFileError, Storage, open_storage
from shards.tar_members import iterate_members
from shards.transport import split_address

BLOCK_BYTES = 2**23  # read from the storage at a time
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
SCHEMES = ("file", "http", "https", "s3")
HASH_IN_NAME = re.compile(rf"-([0-9a-f]{{{HASH_LETTERS}}})\.tar$")

META_NAME = re.compile(r"__[^/]*__($|/)")  # about a shard: no clip's, by webdataset's convention

NodeSplitter = Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]]
split_by_node: NodeSplitter = wds.split_by_node  # by torch.distributed, or RANK and WORLD_SIZE


def from_webdataset(
    urls: str | Path | Iterable[str | Path],
    *,
    shuffle: int = 0,
    seed: int = 0,
    epoch: int = 0,
    nodesplitter: NodeSplitter | None = split_by_node,
) -> wds.DataPipeline:
    """One pass over shards, as a stock webdataset pipeline that yields ``ClipSample``.

    ``urls`` are paths or ``file:``, ``http(s)://`` and ``s3://`` addresses; braces in a single string are
    expanded. ``shuffle`` is the number of encoded clips in the shuffle buffer: 0 keeps the order of
    ``urls`` and of the tars, any other number shuffles the shards too. ``nodesplitter`` chooses the shards of
    a rank; None gives all shards to every rank.

    Raises ShardError for any other address (webdataset would run a ``pipe:`` as a shell command), and while
    iterating for a clip that does not fit the schema, a tar that is cut short, and a shard whose contents are
    not the ones that its name was made from. That last check happens after the last clip of the shard.
    """
    if isinstance(urls, str):
        addresses = expand_urls(urls)
    else:
        addresses = [str(url) for url in ([urls] if isinstance(urls, Path) else urls)]
    for address in addresses:
        locate_shard(address)
    return _build_pipeline(
        addresses,
        [_ShardReader(locate_shard, {})],
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        nodesplitter=nodesplitter,
    )


def from_dataset(
    dataset: Dataset,
    split: str = "train",
    *,
    clip_ids: Iterable[str] | None = None,
    shuffle: int = 0,
    seed: int = 0,
    epoch: int = 0,
    nodesplitter: NodeSplitter | None = split_by_node,
) -> wds.DataPipeline:
    """As ``from_webdataset``, for the clips of a split, or for ``clip_ids``, of an open dataset.

    Reads the shards that ``dataset.json`` lists and no other file of the folder or bucket. Each clip is
    compared with the CRCs of the index before it is decoded.
    """
    selected = dataset.clips.ids_in_split(split) if clip_ids is None else list(clip_ids)
    names, _ = dataset.clips.locate_shards(selected)
    hashes = {name: dataset.shards[name].sha256 for name in names}
    return _build_pipeline(
        names,
        [
            _ShardReader(functools.partial(_pair_with, dataset.storage), hashes),
            _ClipCheck(dataset.clips, frozenset(selected)),
        ],
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        nodesplitter=nodesplitter,
    )


def locate_shard(url: str) -> tuple[Storage, str]:
    """The storage of a shard and its name there. Raises ShardError for an address that is not read."""
    match = SCHEME.match(url)
    if match is None:
        return LocalStorage(Path(url).parent), Path(url).name
    scheme, parts = match[1].lower(), split_address(url)
    if scheme not in SCHEMES or (scheme == "file" and parts.netloc not in ("", "localhost")):
        raise ShardError(f"{url}: shards are read from paths, file:, http(s):// and s3:// addresses only")
    if scheme == "file":
        path = Path(unquote(parts.path))
        return LocalStorage(path.parent), path.name
    if parts.query:  # perhaps a signature, which belongs to this one file
        return open_storage(url), ""
    folder, _, name = url.rpartition("/")
    return open_storage(folder), name


def decode_sample(sample: Mapping[str, Any]) -> ClipSample:
    """A clip from its members in bytes, as webdataset groups them. Raises ShardError with shard and clip."""
    url, clip_id = sample["__url__"], sample["__key__"]
    members = _list_members(sample)
    check_clip_id(clip_id, url)
    _check_members(url, clip_id, members, MEMBERS)
    try:
        return decode_members(clip_id, members)
    except ShardError as err:
        raise ShardError(f"{url}: {err}") from err


def _build_pipeline(
    urls: Sequence[str],
    readers: Sequence[Callable[[Any], Any]],
    *,
    shuffle: int,
    seed: int,
    epoch: int,
    nodesplitter: NodeSplitter | None,
) -> wds.DataPipeline:
    if not urls:
        raise ShardError("no shards to read")
    shard_seed, clip_seed = derive_key(seed, epoch, 0), derive_key(seed, epoch, 1)
    return wds.DataPipeline(
        wds.SimpleShardList(list(urls), seed=shard_seed if shuffle else None),
        nodesplitter,
        wds.split_by_worker,
        *readers,
        wds.shuffle(shuffle, initial=shuffle, seed=clip_seed) if shuffle else None,
        wds.map(decode_sample),
    )


def _pair_with(storage: Storage, name: str) -> tuple[Storage, str]:
    return storage, name


def _list_members(sample: Mapping[str, Any]) -> dict[str, bytes]:
    """{"frames.webp": ..., "__key__": ...} -> {"frames": ...}: named as in the index."""
    return {name.partition(".")[0]: data for name, data in sample.items() if not name.startswith("__")}


def _check_members(url: str, clip_id: str, members: Mapping[str, bytes], expected: Sequence[str]) -> None:
    """Raise ShardError unless a clip has the expected members."""
    missing = [name for name in expected if name not in members]
    if missing:
        raise ShardError(f"{url}: {clip_id} has no {', '.join(missing)}")


class _ShardReader:
    """Pipeline stage: shards in, the members of each of their clips out."""

    def __init__(self, locate: Callable[[str], tuple[Storage, str]], hashes: Mapping[str, str]) -> None:
        """``hashes``: sha256 by url. Of other shards the name may hold the first letters."""
        self.locate = locate
        self.hashes = hashes

    def __call__(self, shards: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            stream = _ShardStream(*self.locate(shard["url"]))
            try:
                yield from group_by_keys(stream.iterate_files())
            except ValueError as err:  # webdataset appends to its first argument
                message = str(err.args[0]).partition(" @ ")[0] if err.args else ""
                raise ShardError(f"{stream.path}: the tar is cut short or damaged ({message})") from err
            stream.check_end(self.hashes.get(shard["url"]))


class _ClipCheck:
    """Pipeline stage: passes the selected clips on, each compared with the CRCs of its index row."""

    def __init__(self, clips: Clips, selected: frozenset[str]) -> None:
        self.clips = clips
        self.selected = selected

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            clip_id = sample["__key__"]
            if clip_id not in self.selected:
                continue
            row = self.clips[clip_id]
            members = {
                name: data for name, data in _list_members(sample).items() if name in list_members(row)
            }
            if (member := find_altered_member(row, members)) is not None:
                raise ShardError(
                    f"{sample['__url__']}: {clip_id}'s {member} are not the bytes that the index names"
                )
            _check_members(sample["__url__"], clip_id, members, list_members(row))
            yield {name: data for name, data in sample.items() if name.startswith("__")} | members


class _ShardStream:
    """The bytes of a shard from first to last, for ``tarfile``, which stops silently at damage."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.path = f"{storage.address}/{name}" if name else storage.address
        size = storage.size(name)
        if size is None:
            raise MissingFileError(f"{self.path}: no such shard")
        self._storage, self._name, self._n_bytes = storage, name, size
        self._position = 0
        self._block = memoryview(b"")
        self._digest = hashlib.sha256()
        self._is_exhausted = False
        self._load_block()
        if bytes(self._block[257:262]) != b"ustar":  # a compressed one is refused too
            raise ShardError(f"{self.path}: not a tar")

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; b"" at the end of the file."""
        if not self._block:
            self._load_block()
        data, self._block = bytes(self._block[:size]), self._block[size:]
        self._is_exhausted |= not data
        return data

    def iterate_files(self) -> Iterator[dict[str, Any]]:
        """Name and bytes of each plain file, as ``group_by_keys`` takes them."""
        for member, read in iterate_members(self, self._n_bytes, "r|"):
            if read is not None and not META_NAME.match(member.name):
                yield {"fname": member.name, "data": read(), "__url__": self.path}

    def check_end(self, sha256: str | None) -> None:
        """Read what follows the last clip; raise ShardError unless the shard is complete and unaltered."""
        is_cut = self._is_exhausted  # a complete tar ends with blocks of zeros, where tarfile stops
        is_damaged = False  # tarfile also stops at a header that is none
        while data := self.read(BLOCK_BYTES):
            is_damaged |= bool(data.strip(b"\0"))
        match = HASH_IN_NAME.search(self.path)
        expected = sha256 or (match[1] if match else "")
        if not self._digest.hexdigest().startswith(expected):
            raise ShardError(
                f"{self.path}: {self._n_bytes} bytes with sha256 {self._digest.hexdigest()[:HASH_LETTERS]}, "
                f"expected {expected[:HASH_LETTERS]}"
            )
        if is_cut or is_damaged:
            raise ShardError(f"{self.path}: the tar is cut short or damaged")

    def _load_block(self) -> None:
        stop = min(self._position + BLOCK_BYTES, self._n_bytes)
        if stop > self._position:
            data = self._storage.read(self._name, self._position, stop)
            self._position = stop
            self._digest.update(data)
            self._block = memoryview(data)
