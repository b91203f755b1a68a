"""Stage 2: 478 face points for every frame on the 25 fps clock, in source pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.checksum import file_sha256
from shards.table import Row
from stages.clips import carry_ledger
from stages.engine import per_clip as clipwise
from stages.engine.cache import digest, save_entry, versions
from stages.engine.outcome import Drop, Mapper, Outcome, Report, Work
from stages.engine.parts import Part
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.faces import (
    FaceFinder,
    Points,
    bridge_gaps,
    face_width,
    follow_largest,
    longest_gap,
)
from stages.media.video import ClockFrame, Frame, read_on_clock

STAGE = "landmarks"
VERSION = 1
COLUMNS = {
    "points": np.float32,  # (T, 478, 2) source px, gaps bridged
    "found": np.bool_,  # (T,), False where bridged
}


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LandmarksParams:
    """How faces are found and followed."""

    model: str = ""  # path of face_landmarker.task; empty: environment, user's cache, download
    max_faces: int = Field(default=4, ge=1)  # looked for in a frame; the largest is followed
    max_gap_frames: int = Field(default=5, ge=0)  # without a face, bridged; a longer gap drops the clip
    min_face_pixels: float = Field(default=40.0, ge=0)  # median width; smaller ones are too coarse


def find_points(
    frames: Iterable[ClockFrame],
    find: Callable[[Frame], list[Points]],
    params: LandmarksParams,
) -> tuple[Points, NDArray[np.bool_], tuple[str, ...]]:
    """Points (T, 478, 2) float32, found (T,) and notes. ``find`` maps a frame to its faces.

    A frame shown twice is looked at once. Raises Drop when the gaps are too long or the face too small.
    """
    faces: list[list[Points]] = []
    last: ClockFrame | None = None
    for frame in frames:
        faces.append(faces[-1] if frame is last else find(frame.image))
        last = frame
    n_frames = len(faces)
    if not any(faces):
        raise Drop("no_face", f"no face in any of its {n_frames} frames")
    _check_gaps([bool(found_here) for found_here in faces], "no face", params)
    followed = follow_largest(faces, params.max_gap_frames)
    found = np.array([face is not None for face in followed])
    _check_gaps(list(found), "the largest face is away", params)
    width = float(np.median([face_width(face) for face in followed if face is not None]))
    if width < params.min_face_pixels:
        raise Drop("small_face", f"its face is {width:.0f} px wide, "
                   f"expected {params.min_face_pixels:g} or more")  # fmt: skip
    notes = []
    if not found.all():
        notes.append(f"face interpolated in frames {np.flatnonzero(~found).tolist()}")
    most = max(len(found_here) for found_here in faces)
    if most > 1:
        notes.append(f"{most} faces seen, the largest followed")
    return bridge_gaps(followed), found, tuple(notes)


def _check_gaps(there: list[bool], what: str, params: LandmarksParams) -> None:
    """Raise Drop where a face is missing for too long."""
    start, length = longest_gap(there)
    if length > params.max_gap_frames:
        raise Drop("no_face", f"{what} in frames {start}-{start + length - 1} of {len(there)}, "
                   f"expected gaps of at most {params.max_gap_frames}")  # fmt: skip


_finders: dict[tuple[str, int], FaceFinder] = {}


def open_finder(model: str, max_faces: int) -> FaceFinder:
    """A finder that stays open for the child's life: frames are seen alone, so clips do not mix."""
    if (model, max_faces) not in _finders:
        _finders[model, max_faces] = FaceFinder(Path(model), max_faces).__enter__()
    return _finders[model, max_faces]


def find_in_file(
    path: str, start: float, n_frames: int, params: dict[str, Any], model: str, entry: str
) -> Outcome:
    """Find points in a video and save them in the cache. Runs in the sandbox."""
    rules = LandmarksParams(**params)
    finder = open_finder(model, rules.max_faces)
    points, found, notes = find_points(read_on_clock(Path(path), start, n_frames), finder, rules)
    outcome = Outcome(notes=notes)
    save_entry(Path(entry), outcome, {"points": points, "found": found})
    return outcome


def warm_up() -> None:
    """Load MediaPipe before the first clip's deadline runs."""
    import mediapipe.tasks.python.vision  # noqa: F401


def run(
    work: Work,
    params: LandmarksParams,
    parts: Sequence[Part],
    limits: LimitParams,
    model: Path,
    mapper: Mapper,
) -> Report:
    """Write ``landmarks/<part>.parquet``: points and found of every usable clip."""
    known = digest(STAGE, VERSION, replace(params, model=""), file_sha256(model), versions("mediapipe", "av"))

    def job(row: Row, entry: Path) -> ClipJob:
        args = clipwise.clip_args(work, row, entry) | {"params": asdict(params), "model": os.fspath(model)}
        return ClipJob("stages.landmarks:find_in_file", args, row["video_seconds"], limits)

    report = clipwise.run(STAGE, work, parts, known, job, COLUMNS, mapper)
    carry_ledger(work, (STAGE,), parts)
    return report
