"""Stage 2: 478 face points for every frame on the 25 fps clock, in source pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.ledger import is_span
from shards.schema import Frame
from shards.table import Row
from stages.engine.cache import digest, hash_file_once, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome, StageError, shorten_text
from stages.engine.parts import Part
from stages.engine.per_clip import run_per_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work
from stages.media import weights
from stages.media.faces import (
    DEFAULT_ENGINE,
    ENGINE_PACKAGES,
    Engine,
    FaceDetection,
    Points,
    check_engine,
    find_longest_gap,
    interpolate_gaps,
    load_engine,
    open_finder,
    track_largest_face,
)
from stages.media.jumps import PictureComparison, detect_faces, find_jumps
from stages.media.video import ClipFrames, ClockFrame, read_frames_at_25fps

STAGE = "landmarks"
SPAN_FOLDER = "points"  # of the stage ``cut``
MAX_LISTED = 20  # frames that a note names
VERSION = 2  # 2: square pixels, mirrored pictures, jumps
COLUMNS = {
    "points": np.float32,  # (T, 478, 2) source px, gaps bridged
    "found": np.bool_,  # (T,), False where interpolated
    "jumps": np.bool_,  # (T,), True where a frame does not continue the one before
}


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LandmarksParams:
    """How faces are found and tracked."""

    model: str = ""  # path of face_landmarker.task; empty: environment, user's cache, download
    engine: Engine = DEFAULT_ENGINE  # what runs the model: litert, or mediapipe, its slower reference
    max_faces: int = Field(default=4, ge=1, le=100)  # to look for in a frame; the largest is tracked
    # Frames without a face that are bridged; a longer gap drops the clip.
    max_gap_frames: int = Field(default=5, ge=0, le=100_000)
    min_face_pixels: float = Field(default=40.0, ge=0, le=16_384)  # median width; smaller ones are too coarse
    # Clips with a cut to another face (or a mirrored one). Of two people in one clip the network would be
    # shown one and asked for the other. Zooms and jumps of the same face are always kept: crops hide them.
    cuts: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True, slots=True)
class ClipLandmarks:
    """The tracked face of a clip of T frames."""

    points: Points  # (T, 478, 2), source px, gaps bridged
    is_found: NDArray[np.bool_]  # (T,), False where interpolated
    jumps: list[int]  # frames that do not continue the one before
    notes: tuple[str, ...]


def find_points(
    frames: Iterable[ClockFrame],
    find: Callable[[Frame], list[Points]],
    params: LandmarksParams,
) -> ClipLandmarks:
    """Track the largest face through a clip.

    ``find`` returns the faces of a frame; it is called once for a source frame that several frames show.
    ``frames`` is no iterator: it is read again for the rare clip whose pictures have to be compared. Raises
    Drop when the gaps are too long, the face is too small or a cut shows another one.
    """
    assert not isinstance(frames, Iterator), "frames may be read twice"
    faces: list[list[FaceDetection]] = []
    changes: list[float] = []
    seconds: list[float] = []
    last: ClockFrame | None = None
    for frame in frames:
        seconds.append(frame.seconds)
        if frame is last:
            faces.append(faces[-1])
            changes.append(0.0)
            continue
        faces.append(detect_faces(frame.image, find))
        # Another size is a jump. Other changes only tell at which frame of a gap a jump is.
        changes.append(0.0 if last is None or last.image.shape == frame.image.shape else math.inf)
        last = frame
    n_frames = len(faces)
    if not any(faces):
        raise Drop("no_face", f"no face in any of its {n_frames} frames")
    _check_gaps([bool(faces_in_frame) for faces_in_frame in faces], "no face", params)
    tracked = track_largest_face(faces, params.max_gap_frames)
    is_found = np.array([face is not None for face in tracked])
    _check_gaps(list(is_found), "the largest face is away", params)
    width = float(np.median([face.width for face in tracked if face is not None]))
    if width < params.min_face_pixels:
        raise Drop("small_face", f"its face is {width:.0f} px wide, "
                   f"expected {params.min_face_pixels:g} or more")  # fmt: skip
    jumps = find_jumps(tracked, changes, seconds)
    if any(_is_unplaced(tracked, jump.frame) for jump in jumps):
        jumps = find_jumps(tracked, _compare_pictures(frames), seconds)
    cuts = [jump.frame for jump in jumps if jump.is_new_face]
    if cuts and params.cuts == "drop":
        raise Drop("cut", f"{describe_frames('cut to another face', cuts)} of {n_frames}; "
                   "landmarks.cuts: keep accepts such clips")  # fmt: skip
    notes = describe_gaps(is_found)
    moves = [jump.frame for jump in jumps if not jump.is_new_face]
    if moves:
        notes.append(describe_frames("jump", moves))
    if cuts:
        notes.append(describe_frames("cut to another face", cuts))
    most = max(len(faces_in_frame) for faces_in_frame in faces)
    if most > 1:
        notes.append(f"{most} faces seen, the largest followed")
    starts = [jump.frame for jump in jumps]
    points = interpolate_gaps([None if face is None else face.points for face in tracked], starts)
    return ClipLandmarks(points, is_found, starts, tuple(notes))


def describe_gaps(is_found: NDArray[np.bool_]) -> list[str]:
    """A note on the frames (T,) whose face is interpolated, if there are any.

    It names them all, as notes are in the bytes of shards, unless that is longer than a table's text may be.
    """
    if is_found.all():
        return []
    return [shorten_text(f"face interpolated in frames {np.flatnonzero(~is_found).tolist()}")]


def _is_unplaced(tracked: Sequence[FaceDetection | None], frame: int) -> bool:
    """Whether a jump may be later than at ``frame``, the first after the last that shows the face before."""
    before, face = tracked[frame - 1], tracked[frame]
    if before is None or face is None:
        return True
    return np.array_equal(before.points, face.points) and np.array_equal(before.look, face.look)


def _compare_pictures(frames: Iterable[ClockFrame]) -> list[float]:
    """How much each frame's picture differs from the one before, as PictureComparison measures it."""
    changes: list[float] = []
    compare_picture = PictureComparison()
    last: ClockFrame | None = None
    for frame in frames:
        # Frames that show one source frame share one object.
        changes.append(0.0 if frame is last else compare_picture(frame.image))
        last = frame
    return changes


def describe_frames(what: str, frames: Sequence[int]) -> str:
    """What happens at some frames, of which at most MAX_LISTED are named: "jump at frame 15, 30"."""
    listed = ", ".join(str(k) for k in frames[:MAX_LISTED])
    more = f" and {len(frames) - MAX_LISTED} more" if len(frames) > MAX_LISTED else ""
    return f"{what} at frame {listed}{more}"


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
    finder = open_finder(model, params.max_faces, params.engine)
    frames = ClipFrames(partial(read_frames_at_25fps, path, start, n_frames))
    clip = find_points(frames, finder, params)
    is_jump = np.zeros(len(clip.points), bool)
    is_jump[clip.jumps] = True
    outcome = Outcome(notes=clip.notes)
    save_entry(entry, outcome, {"points": clip.points, "found": clip.is_found, "jumps": is_jump})
    return outcome


def find_span_points(work: Work, clip_id: str) -> Path:
    """The points of a clip that is a span of a file: the stage ``cut`` has found them."""
    return work.root / "cut" / SPAN_FOLDER / f"{clip_id}.npz"


def copy_span_points(source: Path, n_frames: int, entry: Path) -> Outcome:
    """Save the points that the stage ``cut`` has found as a cache entry. Runs in the sandbox."""
    loaded = load_entry(source)
    if loaded is None or len(loaded[1].get("points", ())) != n_frames:
        raise ValueError(
            f"{source.name} is damaged; remove {SPAN_FOLDER} and the cache, and run `pipeline cut`"
        )
    outcome, arrays = loaded
    save_entry(entry, outcome, {name: arrays[name] for name in COLUMNS})
    return outcome


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load what finds faces, by a job's ``params``, before the first clip's deadline starts."""
    if "params" in arguments:  # points that are there need nothing
        load_engine(arguments["params"]["engine"])


def make_params_digest(params: LandmarksParams) -> str:
    """Digest of everything that decides a clip's points besides its picture. There is one model."""
    libraries = versions(ENGINE_PACKAGES[params.engine], "opencv-python", "av")
    return digest(STAGE, VERSION, replace(params, model=""), weights.LANDMARKER.sha256, libraries)


def make_source_hasher(work: Work) -> Callable[[Row], str]:
    """A function that returns the hash of a span's points, from the row of the clip.

    They are from the stage ``cut``, and all that decided them is in them.
    """

    def hash_points(row: Row) -> str:
        points = find_span_points(work, row["clip_id"])
        if not points.is_file():
            raise StageError(f"{points}: not there; run `pipeline cut --dataset {work.corpus} --cut` first")
        return hash_file_once(points)  # two stages of a build ask for it

    return hash_points


def run(work: Work, parts: Sequence[Part], params: LandmarksParams, context: Context) -> Report:
    """Write ``landmarks/<part>.parquet``: the points of every usable clip."""
    check_engine(params.engine)
    model = weights.find(weights.LANDMARKER, params.model)

    def make_job(row: Row, entry: Path) -> ClipJob:
        if is_span(row):
            points = find_span_points(work, row["clip_id"])
            return ClipJob(copy_span_points, source=points, n_frames=row["frames"], entry=entry)
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
        params_digest=make_params_digest(params),
        make_job=make_job,
        columns=COLUMNS,
        hash_source=make_source_hasher(work),
    )
