"""Where corpora are downloaded from: their publishers' lists of files, and the address of each file."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shards.http import HttpTransport
from shards.retry import RetryPolicy
from shards.schema import ShardError
from shards.tar_members import iterate_members
from stages.corpora import crema_d, grid
from stages.media.download import DownloadError, RemoteFile, read_response
from stages.media.packages import CREMA_D_CLIPS, PackagedFiles

MAX_RESPONSE_BYTES = 2**24
MAX_ARCHIVE_BYTES = 2**28  # of a repository's archive, which holds pointers and tables
MAX_UNPACKED_BYTES = 2**31
MAX_POINTER_BYTES = 1024
LFS_JSON = "application/vnd.git-lfs+json"
LFS_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize ([0-9]{1,12})\n"
)


class CorpusSource(Protocol):
    """A corpus at its publisher."""

    @property
    def citation(self) -> str:
        """Authors, licence and address."""
        ...

    @property
    def suffixes(self) -> frozenset[str]:
        """Suffixes of the files that are unpacked from archives."""
        ...

    @property
    def package(self) -> PackagedFiles | None:
        """A package that contains some of the files."""
        ...

    @property
    def group(self) -> int:
        """How many files to pass to ``locate`` at a time."""
        ...

    def list_files(self, policy: RetryPolicy) -> list[RemoteFile]:
        """All files. Raises DownloadError."""
        ...

    def locate(self, policy: RetryPolicy, files: Sequence[RemoteFile]) -> list[HttpTransport | DownloadError]:
        """The address of each file, or why it has none. Raises DownloadError when there are none."""
        ...


@dataclass(frozen=True, slots=True)
class ZenodoRecord:
    """A record of Zenodo. Its files never change, and the record lists their md5."""

    base_url: str
    number: int
    pattern: str  # of its files' names
    n_files: int  # that match ``pattern``
    citation: str
    suffixes: frozenset[str]
    package: None = None
    group: int = 1

    def list_files(self, policy: RetryPolicy) -> list[RemoteFile]:
        url = f"{self.base_url}/api/records/{self.number}"
        source = HttpTransport(url, silence_seconds=policy.silence_seconds)
        record = _parse_json(read_response(source, policy, limit_bytes=MAX_RESPONSE_BYTES), url)
        try:
            files = [
                RemoteFile(str(file["key"]), int(file["size"]), str(file["checksum"]))
                for file in record["files"]
                if re.fullmatch(self.pattern, file["key"])
            ]
        except (KeyError, TypeError, ValueError, OverflowError) as err:  # int(inf) overflows
            raise DownloadError(
                "wrong", f"{url} is no record with files, sizes and checksums ({err!r})"
            ) from err
        return _check_count(files, self.n_files, url)

    def locate(self, policy: RetryPolicy, files: Sequence[RemoteFile]) -> list[HttpTransport | DownloadError]:
        record = f"{self.base_url}/api/records/{self.number}"
        return [
            HttpTransport(f"{record}/files/{file.path}/content", silence_seconds=policy.silence_seconds)
            for file in files
        ]


@dataclass(frozen=True, slots=True)
class LfsRepository:
    """A Git repository whose files are in Git LFS, which names them by their sha256.

    One archive of the repository contains all LFS pointers: a few megabytes, instead of a request for each
    file. Addresses are requested a hundred at a time, since they are valid for a short time.
    """

    archive_url: str
    batch_url: str
    pattern: str  # of its files' paths
    n_files: int  # that match ``pattern``
    citation: str
    package: PackagedFiles | None = None
    suffixes: frozenset[str] = frozenset()
    group: int = 100

    def list_files(self, policy: RetryPolicy) -> list[RemoteFile]:
        source = HttpTransport(self.archive_url, silence_seconds=policy.silence_seconds)
        data = read_response(source, policy, limit_bytes=MAX_ARCHIVE_BYTES)
        files = []
        try:
            stream = _LimitedStream(gzip.GzipFile(fileobj=io.BytesIO(data)))
            for member, read in iterate_members(stream, MAX_UNPACKED_BYTES, "r|"):
                path = member.name.partition("/")[2]  # below the folder that the archive packs
                if read is None or not re.fullmatch(self.pattern, path):
                    continue
                pointer = LFS_POINTER.fullmatch(read()) if member.size <= MAX_POINTER_BYTES else None
                if pointer is None:
                    raise DownloadError("wrong", f"{self.archive_url}: {path} is no LFS pointer")
                files.append(RemoteFile(path, int(pointer[2]), f"sha256:{pointer[1].decode()}"))
        except (ValueError, zlib.error, OSError) as err:
            raise DownloadError("wrong", f"{self.archive_url}: {err}") from err
        return _check_count(files, self.n_files, self.archive_url)

    def locate(self, policy: RetryPolicy, files: Sequence[RemoteFile]) -> list[HttpTransport | DownloadError]:
        body = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": file.digest_hex, "size": file.bytes} for file in files],
        }
        source = HttpTransport(
            self.batch_url,
            headers={"Accept": LFS_JSON, "Content-Type": LFS_JSON},
            silence_seconds=policy.silence_seconds,
        )
        data = read_response(source, policy, limit_bytes=MAX_RESPONSE_BYTES, body=json.dumps(body).encode())
        response = _parse_json(data, self.batch_url)
        try:
            by_oid = {item["oid"]: item for item in response["objects"]}
        except (KeyError, TypeError) as err:
            raise DownloadError("wrong", f"{self.batch_url}: the response lists no objects") from err
        return [_parse_lfs_object(by_oid.get(file.digest_hex), file, policy) for file in files]


def _parse_lfs_object(item: Any, file: RemoteFile, policy: RetryPolicy) -> HttpTransport | DownloadError:
    """The address of one object of a batch response."""
    try:
        action = item["actions"]["download"]
        headers = {str(name): str(value) for name, value in action.get("header", {}).items()}
        return HttpTransport(str(action["href"]), headers=headers, silence_seconds=policy.silence_seconds)
    except (KeyError, TypeError, AttributeError, ShardError):
        reason = item.get("error") if isinstance(item, dict) else "the response does not list it"
        return DownloadError("refused", f"{file.path}: {reason}")


class _LimitedStream(io.RawIOBase):
    """A stream that raises OSError where it gets too long."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._remaining = MAX_UNPACKED_BYTES

    def read(self, n_bytes: int = -1) -> bytes:
        data = self._stream.read(n_bytes)
        self._remaining -= len(data)
        if self._remaining < 0:
            raise OSError(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return data


def _parse_json(data: bytes, url: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as err:
        raise DownloadError("wrong", f"{url}: the response is no JSON ({err})") from err


def _check_count(files: list[RemoteFile], n_files: int, url: str) -> list[RemoteFile]:
    """The files in order of their paths. Raises DownloadError when some are missing."""
    if len(files) != n_files:
        raise DownloadError("wrong", f"{url} lists {len(files)} of the corpus's files, expected {n_files}")
    return sorted(files, key=lambda file: file.path)


# Speaker 21 has no video. The sound is in the video files; the record's audio_25k.zip is cut differently.
GRID = ZenodoRecord(
    base_url="https://zenodo.org",
    number=3625687,
    pattern=r"s\d{1,2}\.zip|alignments\.zip",
    n_files=34,
    citation=grid.CITATION,
    suffixes=frozenset({".mpg", ".align"}),
)
CREMA_D = LfsRepository(
    archive_url="https://codeload.github.com/CheyneyComputerScience/CREMA-D/tar.gz/refs/heads/master",
    batch_url="https://github.com/CheyneyComputerScience/CREMA-D.git/info/lfs/objects/batch",
    pattern=r"VideoFlash/\w+\.flv",
    n_files=7442,
    citation=crema_d.CITATION,
    package=CREMA_D_CLIPS,
)
SOURCES: Mapping[str, CorpusSource] = {"grid": GRID, "crema-d": CREMA_D}
