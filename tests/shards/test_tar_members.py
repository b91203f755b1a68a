"""Tars whose headers lie: every reader of ours ends, soon, in one line."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.codec import encode_frame
from shards.schema import ShardError
from shards.verify import verify
from shards.webdataset_reader import from_webdataset
from stages.sample.pairs import read_crops
from tests.alterations import _reshard, make_dataset

END = bytes(2 * tarfile.BLOCKSIZE)


def forge_header(kind: bytes, size: int, name: str = "x") -> bytes:
    """A header with a size that tarfile would not write; a power of 256 holds what octal digits cannot."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (
        b"\x80" + size.to_bytes(11, "big") if size >= 0 else (256**12 + size).to_bytes(12, "big")
    )
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def forge_pax_size(size: int) -> bytes:
    record = f" size={size}\n".encode()
    record = str(len(record) + 2).encode() + record
    return forge_header(b"x", len(record)) + record.ljust(tarfile.BLOCKSIZE, b"\0") + forge_header(b"0", 0)


FORGERIES = {
    "a size that leads back to its own header": forge_header(b"0", -tarfile.BLOCKSIZE),
    "a size in a pax header that leads back": forge_pax_size(-3 * tarfile.BLOCKSIZE),
    "more bytes than a disk has": forge_header(b"0", 2**62),
    "more bytes of no known kind": forge_header(b"Z", 2**62),
    "a pax header of more bytes than memory": forge_header(b"x", 2**62),
    "a long name of more bytes than memory": forge_header(b"L", 2**62),
    "headers of headers": forge_header(b"x", 0) * 3000,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_header_ends_each_reader_in_one_line(name: str, tmp_path: Path) -> None:
    frame = encode_frame(np.zeros((16, 16, 3), np.uint8), "webp")
    path = tmp_path / "crops.tar"
    first = forge_header(b"0", len(frame), "00000.webp") + frame.ljust(tarfile.BLOCKSIZE, b"\0")
    path.write_bytes(first + FORGERIES[name] + END)
    with pytest.raises(ShardError, match="not a complete tar of frames"):
        read_crops(path, 16)
    with pytest.raises(ShardError, match="the tar is cut short or damaged"):
        list(from_webdataset(path))
    dataset = make_dataset(tmp_path / "shards")

    def append(data: bytes) -> bytes:
        members = data.rstrip(b"\0")
        return members + bytes(-len(members) % tarfile.BLOCKSIZE) + FORGERIES[name] + END

    _reshard(dataset, append)
    assert any("not a complete tar" in problem for problem in verify(dataset, full=False))
