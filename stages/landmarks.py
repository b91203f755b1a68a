"""Stage 2: 478 face points for every frame on the 25 fps clock, in source pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.checksum import file_sha256
from shards.schema import Frame
from shards.table import Row
from stages.engine.cache import digest, save_entry, versions
from stages.engine.outcome import Drop, Outcome
from stages.engine.parts import Part
from stages.engine.per_clip import run_per_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work
from stages.media import weights
from stages.media.faces import (
    Points,
    find_longest_gap,
    interpolate_gaps,
    measure_face_width,
    open_finder,
    track_largest_face,
)
from stages.media.video import ClockFrame, read_frames_at_25fps

STAGE = "landmarks"
VERSION = 2  # 2: square pixels, mirrored pictures
COLUMNS = {
    "points": np.float32,  # (T, 478, 2) source px, gaps bridged
    "found": np.bool_,  # (T,), False where interpolated
}


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LandmarksParams:
    """How faces are found and tracked."""

    model: str = ""  # path of face_landmarker.task; empty: environment, user's cache, download
    max_faces: int = Field(default=4, ge=1, le=100)  # to look for in a frame; the largest is tracked
    max_gap_frames: int = Field(
        default=5, ge=0, le=100_000
    )  # without a face, bridged; a longer gap drops the clip
    min_face_pixels: float = Field(default=40.0, ge=0, le=16_384)  # median width; smaller ones are too coarse


def find_points(
    frames: Iterable[ClockFrame],
    find: Callable[[Frame], list[Points]],
    params: LandmarksParams,
) -> tuple[Points, NDArray[np.bool_], tuple[str, ...]]:
    """Points (T, 478, 2) float32, whether a face was found in each frame (T,), and notes.

    ``find`` returns the faces of a frame; it is called once for a source frame that several frames show.
    Raises Drop when the gaps are too long or the face is too small.
    """
    faces: list[list[Points]] = []
    last: ClockFrame | None = None
    for frame in frames:
        faces.append(faces[-1] if frame is last else find(frame.image))
        last = frame
    n_frames = len(faces)
    if not any(faces):
        raise Drop("no_face", f"no face in any of its {n_frames} frames")
    _check_gaps([bool(faces_in_frame) for faces_in_frame in faces], "no face", params)
    tracked = track_largest_face(faces, params.max_gap_frames)
    is_found = np.array([face is not None for face in tracked])
    _check_gaps(list(is_found), "the largest face is away", params)
    width = float(np.median([measure_face_width(face) for face in tracked if face is not None]))
    if width < params.min_face_pixels:
        raise Drop("small_face", f"its face is {width:.0f} px wide, "
                   f"expected {params.min_face_pixels:g} or more")  # fmt: skip
    notes = []
    if not is_found.all():
        notes.append(f"face interpolated in frames {np.flatnonzero(~is_found).tolist()}")
    most = max(len(faces_in_frame) for faces_in_frame in faces)
    if most > 1:
        notes.append(f"{most} faces seen, the largest followed")
    return interpolate_gaps(tracked), is_found, tuple(notes)


def _check_gaps(is_found: list[bool], what: str, params: LandmarksParams) -> None:
    """Raise Drop when a face is missing for too long."""
    start, length = find_longest_gap(is_found)
    if length > params.max_gap_frames:
        raise Drop("no_face", f"{what} in frames {start}-{start + length - 1} of {len(is_found)}, "
                   f"expected gaps of at most {params.max_gap_frames}")  # fmt: skip


def find_landmarks_in_file(
    path: Path, start: float, n_frames: int, params: LandmarksParams, model: Path, entry: Path
) -> Outcome:
    """Find the points of a video's frames and save them as a cache entry. Runs in the sandbox."""
    finder = open_finder(model, params.max_faces)
    points, is_found, notes = find_points(read_frames_at_25fps(path, start, n_frames), finder, params)
    outcome = Outcome(notes=notes)
    save_entry(entry, outcome, {"points": points, "found": is_found})
    return outcome


def warm_up() -> None:
    """Load MediaPipe before the first clip's deadline starts."""
    import mediapipe.tasks.python.vision  # noqa: F401


def run(work: Work, parts: Sequence[Part], params: LandmarksParams, context: Context) -> Report:
    """Write ``landmarks/<part>.parquet``: the points of every usable clip."""
    model = weights.find(weights.LANDMARKER, params.model)

    def make_job(row: Row, entry: Path) -> ClipJob:
        return ClipJob(
            find_landmarks_in_file,
            path=work.raw.resolve() / row["path"],
            start=row["video_start"],
            n_frames=row["frames"],
            params=params,
            model=model,
            entry=entry,
        )

    return run_per_clip(
        STAGE,
        work,
        parts,
        context,
        params_digest=digest(
            STAGE, VERSION, replace(params, model=""), file_sha256(model), versions("mediapipe", "av")
        ),
        make_job=make_job,
        columns=COLUMNS,
    )
