"""Model files: found on this machine or downloaded once, and used only after their sha256 is checked.

The face model, which every build needs, is downloaded where it is missing; so is the speech encoder, where a
dataset gets its features, and so are both it and the voice detector, where files are cut into clips. The
networks of an evaluation are downloaded only by `pipeline fetch --weights`: without them, their figures are
reported as not computed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.atomic import move_into_place, write_atomically
from shards.checksum import file_sha256
from stages.engine.outcome import StageError
from stages.media.download import RETRY_POLICY, Download, DownloadError
from stages.media.packages import (
    FACE_MODEL,
    LPIPS_HEADS,
    VOICE_MODEL,
    WHISPER_MODEL,
    PackagedFiles,
    find_installed_file,
    open_package,
)
from stages.media.whisper_weights import convert_encoder

log = logging.getLogger(__name__)

MAX_BYTES = 2**30  # of a model file; the largest here has a quarter of it
DOWNLOAD_POLICY = replace(RETRY_POLICY, connect_tries=2)  # a package may have the file


@dataclass(frozen=True, slots=True)
class Weights:
    """One model file and where to get it."""

    name: str
    sha256: str
    url: str
    environment: str = "REDUB_WEIGHTS"  # variable that may hold its path, or its folder's; empty: none
    option: str = "--weights"  # the command line option that may hold it
    title: str = ""  # in the messages of an evaluation
    package: PackagedFiles | None = None
    # Makes this file from one that is published in another form: (published file, file to write).
    convert: Callable[[Path, Path], None] | None = None
    published_sha256: str = ""  # of the file at ``url``, where it is converted


LANDMARKER = Weights(
    name="face_landmarker.task",
    sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/"
    "face_landmarker.task",
    environment="REDUB_LANDMARKER",
    option="--landmarker",
    package=FACE_MODEL,
)


SPEECH_ENCODER = Weights(
    name="whisper-tiny.en-encoder.safetensors",
    sha256="71f26f93264e81042e68b435b65e1adcc0f3bedfa95ff60ec414c6bbf3b7bf37",
    url="https://huggingface.co/openai/whisper-tiny.en/resolve/87c7102498dcde7456f24cfd30239ca606ed9063/"
    "model.safetensors",
    environment="REDUB_SPEECH_ENCODER",
    option="speech.model",
    package=WHISPER_MODEL,
    convert=convert_encoder,
    published_sha256="db59695928ded6043adaef491a53ef4e12da9611184d77c53baa691a60b958ad",
)


VOICE_DETECTOR = Weights(
    name="silero_vad_16k_op15.onnx",
    sha256="7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    url="https://raw.githubusercontent.com/snakers4/silero-vad/v6.2.1/src/silero_vad/data/"
    "silero_vad_16k_op15.onnx",
    environment="REDUB_VOICE_DETECTOR",
    option="cut.voice_model",
    package=VOICE_MODEL,
)


# Networks of an evaluation. One folder may hold them all.
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
        package=LPIPS_HEADS,
    ),
}


# What an edit needs, and what cutting files into clips needs, and downloads where it is missing.
BASIC: Mapping[str, Weights] = {
    "landmarker": LANDMARKER,
    "whisper-tiny.en": SPEECH_ENCODER,
    "silero-vad": VOICE_DETECTOR,
}


class WeightsNotFound(StageError):
    """A network that has not been downloaded to this machine."""


def cache_folder() -> Path:
    """The user's folder of downloaded model files."""
    import platformdirs

    return platformdirs.user_cache_path("redub")


def find(weights: Weights, path: str = "") -> Path:
    """The file at ``path``, in the environment, in the user's cache, or downloaded; the first that is named.

    A file that is named may also be the published one that it is converted from. Raises StageError, with
    what was tried.
    """
    if path:
        return _check_or_convert(Path(path), weights, weights.option)
    if variable := os.environ.get(weights.environment):
        return _check_or_convert(Path(variable), weights, weights.environment)
    return fetch(weights)


def find_present(weights: Weights) -> Path | None:
    """The file that ``find`` takes where nothing is downloaded or converted; None if there is none.

    Raises StageError for a file that the environment names and that is another one.
    """
    if variable := os.environ.get(weights.environment):
        path = Path(variable)
        # A published file is checked when it is converted.
        return (
            path
            if weights.convert is not None and path.is_file()
            else _check(path, weights, weights.environment)
        )
    path = cache_folder() / weights.name
    return path if _is_right(path, weights) else None


def find_local(weights: Weights, folder: Path | None = None) -> Path:
    """The file in ``folder``, in the environment's folder or in the user's cache; downloads nothing.

    Raises WeightsNotFound, with where it was looked for, and StageError if the file has other contents.
    """
    variable = os.environ.get(weights.environment)
    folders = [folder, Path(variable) if variable else None, cache_folder()]
    paths = [each / weights.name for each in folders if each is not None]
    for path in paths:
        if path.is_file():
            return _check(path, weights, weights.title)
    raise WeightsNotFound(
        f"{weights.title} not found at {', '.join(map(str, paths))}; "
        f"get them from {weights.url} (sha256 {weights.sha256})"
    )


def fetch(weights: Weights) -> Path:
    """The file in the user's cache: it is there, or it is downloaded, or taken from a package.

    Raises StageError, with what was tried.
    """
    path = cache_folder() / weights.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_right(path, weights):
        return path
    errors = []
    for source, get in (("download", _download), ("package", _extract_from_package)):
        try:
            get(weights, path)
            return path
        except (OSError, StageError, DownloadError) as err:
            errors.append(f"{source}: {err}")
    raise StageError(
        f"{weights.name} is not on this machine and could not be downloaded ({'; '.join(errors)}). Get it "
        f"from {weights.url} (sha256 {weights.published_sha256 or weights.sha256}) and say where by "
        f"{' or '.join(filter(None, (weights.option, weights.environment)))}"
    )


def _download(weights: Weights, path: Path) -> None:
    """Download the file to ``path``. One process downloads; others wait for it."""
    from filelock import FileLock

    from shards.http import HttpTransport  # loads requests
    from shards.locks import hold_lock

    locks = cache_folder().with_name("redub-locks")
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{weights.name}.lock")
    message = f"{weights.name}: waiting for another process that downloads it; it has locked {lock.lock_file}"
    with hold_lock(lock, message):
        if _is_right(path, weights):
            return
        log.warning("downloading %s from %s", weights.name, weights.url)
        source = HttpTransport(weights.url, silence_seconds=DOWNLOAD_POLICY.silence_seconds)
        partial = path.with_name(f".{weights.name}.part")
        digest = f"sha256:{weights.published_sha256 or weights.sha256}"
        Download(source, partial, digest, DOWNLOAD_POLICY, max_bytes=MAX_BYTES).run()
        if weights.convert is None:
            move_into_place(partial, path)
        else:
            _convert(partial, path, weights, weights.url)
            partial.unlink()


def _extract_from_package(weights: Weights, path: Path) -> None:
    if weights.package is None:
        raise StageError("no package contains it")
    log.warning("taking %s from the package %s", weights.name, weights.package.requirement)
    if weights.convert is None:
        with open_package(weights.package) as package, write_atomically(path) as partial:
            partial.write_bytes(package.read(weights.name, MAX_BYTES))
            _check(partial, weights, weights.package.requirement)
        return
    with TemporaryDirectory(prefix="redub.") as folder:
        published = find_installed_file(weights.package, weights.name)
        if published is None:
            published = Path(folder, weights.name)
            with open_package(weights.package) as package:
                published.write_bytes(package.read(weights.name, MAX_BYTES))
        _convert(published, path, weights, weights.package.requirement)


def _check_or_convert(path: Path, weights: Weights, source: str) -> Path:
    """The file, or what it is converted to, in the user's cache. Raises StageError when neither is right."""
    if weights.convert is None or not path.is_file() or _is_right(path, weights):
        return _check(path, weights, source)
    converted = cache_folder() / weights.name
    converted.parent.mkdir(parents=True, exist_ok=True)
    _convert(path, converted, weights, source)
    return converted


def _convert(published: Path, path: Path, weights: Weights, source: str) -> None:
    """Convert a published file. What is written has the expected sha256, or StageError is raised."""
    assert weights.convert is not None, "only for files that are published in another form"
    with write_atomically(path) as partial:
        weights.convert(published, partial)
        if not _is_right(partial, weights):
            raise StageError(f"{source}: {published} holds other values than those of {weights.name}")


def _is_right(path: Path, weights: Weights) -> bool:
    return path.is_file() and file_sha256(path) == weights.sha256


def _check(path: Path, weights: Weights, source: str) -> Path:
    if not path.is_file():
        raise StageError(f"{source} names {path}, which is no file")
    sha256 = file_sha256(path)
    if sha256 != weights.sha256:
        raise StageError(f"{source}: {path} has sha256 {sha256}, {weights.name} has {weights.sha256}")
    return path
