"""The files of the page's sessions: uploads, copies and results. They are deleted when a session ends.

A session ends when its page is closed or was not used for some hours. All files together have a bound too.
A session's folder has a name that cannot be guessed, since Gradio serves a file to anyone who knows its path.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.options import MEGABYTE
from shards.errors import shorten
from shards.files import is_regular_file
from stages.engine.outcome import StageError

Kind = Literal["video", "speech"]
MAX_SESSIONS = 100
STOP_SECONDS = 10.0  # until an edit notices that it is cancelled: one frame may take some seconds


class UploadCounter:
    """Counts the users of each upload: Gradio names files by content, so two sessions may share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: Counter[Path] = Counter()

    def acquire(self, upload: Path) -> None:
        with self._lock:
            self._users[upload] += 1

    def is_used(self, upload: Path) -> bool:
        return self._users[upload] > 0

    def release(self, upload: Path) -> None:
        """The last user's release deletes the file."""
        with self._lock:
            self._users[upload] -= 1
            if not self._users[upload]:
                del self._users[upload]
                upload.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty: the same file is being uploaded again
                    upload.parent.rmdir()


@dataclass
class Session:
    """One open page."""

    folder: Path  # for copies and results
    _counter: UploadCounter
    stop: threading.Event = field(default_factory=threading.Event)  # set when the edit is cancelled
    _uploads: dict[Kind, Path] = field(default_factory=dict)
    _condition: threading.Condition = field(default_factory=threading.Condition)
    last_use: float = field(default_factory=time.monotonic)  # seconds
    _n_jobs: int = 0
    _is_over: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether a file is being checked or edited."""
        return self._n_jobs > 0

    @contextlib.contextmanager
    def keep_files(self) -> Iterator[None]:
        """While inside, the session's files are not deleted."""
        with self._condition:
            self._n_jobs += 1
        try:
            yield
        finally:
            with self._condition:
                self._n_jobs -= 1
                self.last_use = time.monotonic()
                self._clear()

    def end(self, *, wait_seconds: float = 0) -> None:
        """Cancel what is running; the files are deleted when it has stopped."""
        with self._condition:
            self._is_over = True
            self.stop.set()
            self._clear()
            self._condition.wait_for(lambda: not self._n_jobs, wait_seconds)

    def _clear(self) -> None:
        if self._is_over and not self._n_jobs:
            for kind in list(self._uploads):
                self._release_upload(kind)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._condition.notify_all()

    def renew_stop(self) -> None:
        """Give the next edit a stop event of its own: an earlier edit may still be about to stop."""
        if not self._is_over:
            self.stop = threading.Event()

    def make_empty_folder(self, name: str) -> Path:
        """An empty folder for one purpose; earlier files in it are deleted."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def check_upload(self, kind: Kind, upload: Path, *, max_mb: int) -> Iterator[Path]:
        """Replace an upload. The block checks the new one; if the block raises, the upload is deleted.

        Raises StageError when it is too large.
        """
        self.remove_upload(kind)
        uploads = self.folder.parent  # each upload is in a folder of its own there
        if upload.parent.parent != uploads or not is_regular_file(upload, inside=uploads):
            raise StageError(f"{shorten(upload.name)[1:-1]}: is not there any more; choose it again")
        self._counter.acquire(upload)
        try:
            size = upload.stat().st_size
            if size > max_mb * MEGABYTE:
                raise StageError(f"{upload}: has {size / MEGABYTE:.1f} MB, expected at most {max_mb} MB")
            yield upload
        except BaseException:
            self._counter.release(upload)
            raise
        self._release_upload(kind)
        self._uploads[kind] = upload

    def get_model_folder(self) -> Path:
        """For models that are trained on the video: of the visitor's face, so they are deleted with it."""
        return self.folder / "video" / "adapted"

    def remove_upload(self, kind: Kind) -> None:
        """Delete an upload, its copy, and what was made of it; an edit is over without what it reads."""
        self.stop.set()
        self._release_upload(kind)
        shutil.rmtree(self.folder / kind, ignore_errors=True)

    def _release_upload(self, kind: Kind) -> None:
        if kind in self._uploads:
            self._counter.release(self._uploads.pop(kind))

    def get_upload(self, kind: Kind) -> Path:
        """The path of an upload. Raises StageError when there is none, or it has been deleted."""
        path = self._uploads.get(kind)
        if path is None or not path.is_file():
            raise StageError(f"there is no {kind} yet; choose one")
        return path

    def shorten_paths(self, err: Exception) -> str:
        """An error's message, with file names instead of the session's paths."""
        return re.sub(rf"{re.escape(str(self.folder.parent))}/([^/\s]+/)*", "", str(err))


class Sessions:
    """The open sessions by the id that Gradio gives them, and bounds on what they keep."""

    def __init__(self, root: Path, *, max_mb: int = 2000, keep_seconds: float = 2 * 3600.0) -> None:
        self._root = root
        self._max_mb, self._keep_seconds = max_mb, keep_seconds
        self._counter = UploadCounter()
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}  # the one that was used last is last

    def get(self, session_id: str) -> Session:
        """The session with this id; a new one if there is none.

        A request can name any id, and end no session that it began: MAX_SESSIONS of them at most. Raises
        StageError when so many have work in progress.
        """
        with self._lock:
            session = self._sessions.pop(session_id, None)
            if session is None:
                if len(self._sessions) >= MAX_SESSIONS:
                    self._end_oldest()
                folder = self._root / secrets.token_urlsafe(24)  # created with its first file
                session = Session(folder, self._counter)
            session.last_use = time.monotonic()
            self._sessions[session_id] = session
            return session

    def _end_oldest(self) -> None:
        for session_id, session in self._sessions.items():
            if not session.is_busy:
                del self._sessions[session_id]
                session.end()
                return
        raise StageError(f"{MAX_SESSIONS} pages are open; try again later")

    def end(self, session_id: str) -> None:
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.end()

    def end_all(self) -> None:
        """End every session, and wait until what is running has stopped."""
        while self._sessions:
            _, session = self._sessions.popitem()
            session.end(wait_seconds=STOP_SECONDS)

    def check_space(self, n_bytes: int = 0) -> None:
        """Raise StageError when all uploads and results, and so many bytes more, take too much space."""
        n_total = n_bytes + sum(size for _, size, _ in self._list_files())
        if n_total > self._max_mb * MEGABYTE:
            raise StageError(
                f"the files of all pages would take {n_total / MEGABYTE:.1f} MB, expected at most "
                f"{self._max_mb} MB (--max-total-mb); try again when others have left"
            )

    def remove_old(self) -> None:
        """End the sessions that were not used for so long, and delete files that no session has."""
        now = time.monotonic()
        with self._lock:
            old = [
                session_id
                for session_id, session in self._sessions.items()
                if now - session.last_use > self._keep_seconds and not session.is_busy
            ]
            folders = [session.folder for session in self._sessions.values()]
        for session_id in old:
            self.end(session_id)
        oldest = time.time() - self._keep_seconds
        for path, _, changed in self._list_files():
            has_session = any(path.is_relative_to(folder) for folder in folders)
            if changed < oldest and not has_session and not self._counter.is_used(path):
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty, or the root
                    path.parent.rmdir()

    def _list_files(self) -> Iterator[tuple[Path, int, float]]:
        """(path, bytes, time of the last change in seconds) of every file that is kept."""
        for folder, _, names in os.walk(self._root):  # skips what is deleted meanwhile; rglob raises
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    yield path, status.st_size, status.st_mtime
