"""The files of those who are on the page: what each has brought and got, gone when the visit is over.

A folder's name cannot be guessed, since Gradio serves what lies there to whoever names it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.engine.outcome import StageError
from stages.engine.sandbox import MEGABYTE

Kind = Literal["video", "speech"]
STOP_SECONDS = 10.0  # for an edit to notice that nobody wants it any more: a frame may take some


class Uploads:
    """Who holds which upload: Gradio files them by their content, so two may have brought the same file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: Counter[Path] = Counter()

    def hold(self, upload: Path) -> None:
        with self._lock:
            self._holders[upload] += 1

    def release(self, upload: Path) -> None:
        """The last one to let go removes it."""
        with self._lock:
            self._holders[upload] -= 1
            if not self._holders[upload]:
                del self._holders[upload]
                upload.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the same name and content are coming in again
                    upload.parent.rmdir()


@dataclass
class Session:
    """One open page."""

    folder: Path  # for copies and results
    _uploads: Uploads
    stop: threading.Event = field(default_factory=threading.Event)  # set when the edit is not wanted any more
    _brought: dict[Kind, Path] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _at_work: int = 0
    _over: bool = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While inside, the files stay."""
        with self._changed:
            self._at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._clear()

    def end(self, *, wait_seconds: float = 0) -> None:
        """Ask what runs to stop; the files go when it has."""
        with self._changed:
            self._over = True
            self.stop.set()
            self._clear()
            self._changed.wait_for(lambda: not self._at_work, wait_seconds)

    def _clear(self) -> None:
        if self._over and not self._at_work:
            for kind in list(self._brought):
                self._forget(kind)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._changed.notify_all()

    def begin(self) -> None:
        """What ran before may still be about to stop; what comes now has a signal of its own."""
        if not self._over:
            self.stop = threading.Event()

    def empty(self, name: str) -> Path:
        """A folder without files, for one purpose."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def bring(self, kind: Kind, upload: Path, *, max_mb: int) -> Iterator[Path]:
        """Inside is seen whether an upload can be used; unless an error says no, it is kept for the edit.

        Raises StageError when it is too large.
        """
        self.drop(kind)
        if not upload.is_file():
            raise StageError(f"{upload}: is not there any more; choose it again")
        self._uploads.hold(upload)
        try:
            size = upload.stat().st_size
            if size > max_mb * MEGABYTE:
                raise StageError(f"{upload}: has {size / MEGABYTE:.1f} MB, expected at most {max_mb} MB")
            yield upload
        except BaseException:
            self._uploads.release(upload)
            raise
        self._forget(kind)
        self._brought[kind] = upload

    def drop(self, kind: Kind) -> None:
        """Remove what was brought, and its copy."""
        self._forget(kind)
        shutil.rmtree(self.folder / kind, ignore_errors=True)

    def _forget(self, kind: Kind) -> None:
        if kind in self._brought:
            self._uploads.release(self._brought.pop(kind))

    def found(self, kind: Kind) -> Path:
        """What was brought. Raises StageError when nothing was, or it has gone since."""
        path = self._brought.get(kind)
        if path is None or not path.is_file():
            raise StageError(f"there is no {kind} here; choose one")
        return path

    def short(self, err: Exception) -> str:
        """What an error says, with files by their names alone."""
        return re.sub(rf"{re.escape(str(self.folder.parent))}/([^/\s]+/)*", "", str(err))


class Sessions:
    """Who is on the page, by the name that Gradio gives a session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads = Uploads()
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def of(self, session: str) -> Session:
        with self._lock:
            if session not in self._open:
                folder = self._root / secrets.token_urlsafe(24)  # made with its first file
                self._open[session] = Session(folder, self._uploads)
            return self._open[session]

    def end(self, session: str) -> None:
        with self._lock:
            visit = self._open.pop(session, None)
        if visit is not None:
            visit.end()

    def end_all(self) -> None:
        """End every visit, and wait for what runs to stop."""
        while self._open:
            _, visit = self._open.popitem()
            visit.end(wait_seconds=STOP_SECONDS)
