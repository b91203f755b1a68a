"""The files of those who are on the page: a folder for each visit, gone when the visit is over.

A folder's name cannot be guessed, since Gradio serves what lies there to whoever names it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.work import StageError

Kind = Literal["video", "speech"]
MEGABYTE = 10**6
STOP_SECONDS = 10.0  # for an edit to notice that nobody wants it any more: a frame may take some


@dataclass
class Visit:
    """One open page."""

    folder: Path
    brought: dict[Kind, Path] = field(default_factory=dict)  # what is to be edited
    stop: threading.Event = field(default_factory=threading.Event)  # set when the edit is not wanted any more
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _at_work: int = 0
    _over: bool = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While inside, the folder stays."""
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

    def bring(self, kind: Kind, upload: Path, *, max_mb: int) -> Path:
        """Take an uploaded file over; raises StageError when it is too large."""
        self.drop(kind)
        try:
            size = upload.stat().st_size
            if size > max_mb * MEGABYTE:
                upload.unlink()
                raise StageError(f"{upload.name}: has {size / MEGABYTE:.1f} MB, expected at most {max_mb} MB")
            path = upload.rename(self.empty(kind) / upload.name)
        except FileNotFoundError as err:
            raise StageError(f"{upload.name}: is not there any more, choose it again") from err
        with contextlib.suppress(OSError):  # somebody has just brought the same
            upload.parent.rmdir()
        return path

    def drop(self, kind: Kind) -> None:
        """Forget what was brought."""
        self.brought.pop(kind, None)
        shutil.rmtree(self.folder / kind, ignore_errors=True)

    def found(self, kind: Kind) -> Path:
        """What was brought. Raises StageError when nothing was, or it is gone."""
        path = self.brought.get(kind)
        if path is None or not path.is_file():
            raise StageError(f"there is no {kind} yet; choose one first")
        return path

    def short(self, err: Exception) -> str:
        """What an error says, with files by their names alone."""
        return re.sub(f"{re.escape(str(self.folder))}/[^/]+/", "", str(err))


class Visits:
    """Who is on the page, by the name that Gradio gives a session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._open: dict[str, Visit] = {}

    def of(self, session: str) -> Visit:
        with self._lock:
            if session not in self._open:
                folder = self._root / secrets.token_urlsafe(24)
                folder.mkdir()
                self._open[session] = Visit(folder)
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
