"""An example for who has no video at hand: a made clip of a face that talks, and what somebody else says."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stages import synth
from stages.synth import ClipSpec

FOLDER = "example"
SECONDS = 4.0  # an edit takes half a minute of one core with the packaged model
MIN_SECONDS = 2.5  # a model can be trained on 2 s
# Of four speakers, the one whose colours the packaged model meets best: 5.8 at the mouth's border.
VIDEO = ClipSpec(speaker=4, size=(480, 360))
SPEECH = ClipSpec(speaker=1, size=(160, 128))  # only its sound is used


@dataclass(frozen=True, slots=True)
class ExampleClips:
    """Both are videos."""

    video: Path
    speech: Path


class Example:
    """Makes the clips when they are first asked for, and again after the last session with them has ended.

    They are stored as uploads are, in a folder of ``uploads``, so that the page accepts them in the same way.
    """

    def __init__(self, uploads: Path, *, max_seconds: float) -> None:
        self._uploads, self._seconds = uploads, min(SECONDS, 0.9 * max_seconds)
        self._lock = threading.Lock()

    @property
    def is_offered(self) -> bool:
        """Whether the server's longest video is long enough for it."""
        return self._seconds >= MIN_SECONDS

    @contextlib.contextmanager
    def make(self) -> Iterator[ExampleClips]:
        """The clips, which the block accepts for a session; one block at a time."""
        with self._lock:
            clips = [self._make_clip("example", VIDEO), self._make_clip("example speech", SPEECH)]
            yield ExampleClips(*clips)

    def _make_clip(self, name: str, spec: ClipSpec) -> Path:
        path = self._uploads / FOLDER / f"{name}.mp4"
        if not path.is_file():
            with TemporaryDirectory(dir=self._uploads) as scratch:
                partial = Path(scratch, path.name)
                synth.make_clip(partial, replace(spec, seconds=self._seconds))
                path.parent.mkdir(exist_ok=True)
                partial.replace(path)  # without its truth.json
        return path
