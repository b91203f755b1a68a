"""Unpack zip archives that are not trusted: no file outside the folder, no links, no sizes that grow."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from shards.atomic import write_atomically
from shards.checksum import CHUNK_BYTES, file_sha256
from shards.files import is_inside
from stages.media.packages import DAMAGED_ZIP_ERRORS

MAX_MEMBERS = 100_000
MAX_RATIO = 20  # unpacked bytes to the archive's: video hardly compresses, word lists by a factor of ten
SPARE_BYTES = 2**28  # kept free on the disk
NAME = r"[^\\:/\x00-\x1f\x7f]+"
PATH = re.compile(rf"{NAME}(/{NAME})*")


class UnpackError(Exception):
    """An archive that cannot be unpacked. ``code`` is one word to count by."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code

    @property
    def is_final(self) -> bool:
        """Whether the archive itself is bad, so that unpacking it again cannot succeed."""
        return self.code in ("unsafe", "bad_archive")


def unpack(archive: Path, name: str, to: Path, suffixes: frozenset[str]) -> dict[str, str]:
    """Extract the files with these suffixes to the folder ``name`` below ``to``; their sha256 by path.

    All members are checked before the first is written. Files appear complete, and never replace a file with
    other contents. Raises UnpackError.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = _check_members(zip_file, name, archive.stat().st_size)
            _check_free_space(sum(member.file_size for member in members.values()), to)
            return {
                path: _extract(zip_file, member, to / path, to)
                for path, member in sorted(members.items())
                if PurePosixPath(path).suffix.lower() in suffixes
            }
    except DAMAGED_ZIP_ERRORS as err:
        raise UnpackError("bad_archive", f"{name}: {err}") from err
    except OSError as err:
        if err.errno in (errno.EEXIST, errno.ENOTDIR):
            raise UnpackError("unsafe", f"{name}: {err.filename} is both a file and a folder") from err
        if err.errno != errno.EINVAL:  # from seeking to before the start, where a damaged archive points
            raise
        raise UnpackError("bad_archive", f"{name}: damaged") from err


def is_plain_path(path: str) -> bool:
    """Whether this is a path below a folder, for every system."""
    return PATH.fullmatch(path) is not None and {".", ".."}.isdisjoint(path.split("/"))


def _check_members(zip_file: zipfile.ZipFile, name: str, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by the path they will get. Raises UnpackError when one is not safe."""
    files = [member for member in zip_file.infolist() if not member.is_dir()]
    if len(files) > MAX_MEMBERS:
        raise UnpackError("unsafe", f"{name}: {len(files)} members, more than {MAX_MEMBERS}")
    total = sum(member.file_size for member in files)
    if total > MAX_RATIO * n_bytes:
        raise UnpackError("unsafe", f"{name}: would be {total} bytes, more than {MAX_RATIO} times its own")
    members: dict[str, zipfile.ZipInfo] = {}
    lower_paths: set[str] = set()
    for member in files:
        path = member.filename
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UnpackError("unsafe", f"{name}: {path!r} is a link or a special file")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnpackError("bad_archive", f"{name}: {path!r} is packed by method {member.compress_type}")
        if not is_plain_path(path):
            raise UnpackError("unsafe", f"{name}: {path!r} is no plain path below a folder")
        if not path.startswith(f"{name}/"):
            path = f"{name}/{path}"  # so that archives do not share files
        if path.lower() in lower_paths:
            raise UnpackError("unsafe", f"{name}: {path!r} occurs twice")
        lower_paths.add(path.lower())
        members[path] = member
    return members


def _check_free_space(n_bytes: int, to: Path) -> None:
    free = shutil.disk_usage(to).free
    if n_bytes + SPARE_BYTES > free:
        raise UnpackError("no_space", f"{to}: {n_bytes} bytes to unpack, {free} free")


def _extract(zip_file: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, to: Path) -> str:
    """Extract one member below ``to``, unless the same file is there already. Returns its sha256."""
    if not is_inside(path, to):
        raise UnpackError("unsafe", f"{path}: leads out of {to} by a link; nothing is written there")
    sha256 = hashlib.sha256()
    with zip_file.open(member) as stream, write_atomically(path) as partial:
        with partial.open("wb") as out:
            while chunk := stream.read(CHUNK_BYTES):
                sha256.update(chunk)
                out.write(chunk)
        if path.exists() and file_sha256(path) != sha256.hexdigest():
            raise UnpackError("differs", f"{path}: is there with other contents; move it away first")
    return sha256.hexdigest()
