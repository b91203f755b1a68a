"""Where the face is while a video runs: crop matrices and mask boxes for whatever of it can be re-drawn.

As stages.landmarks and stages.align find them for a dataset, by the same functions; but where a clip
would be dropped for a gap, a video goes on behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages import landmarks
from stages.align import USED_POINTS, AlignParams, Boxes, Matrices, align_used, centred_mean, check_boxes
from stages.edit.reader import Stamped, VideoFacts, stamped_frames
from stages.engine import sandbox
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.sandbox import ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.crops import ShardParams, supersampling
from stages.media.faces import Sighting, Track, bridge_gaps, follow, sight
from stages.media.video import SAME_TIME, ToRgb, first_instant, on_clock, open_media

Choice = Literal["largest", "left", "right"] | int

# A face that comes back to where it was is the same one for so long.
REMEMBERED_INSTANTS = 60 * VIDEO_FPS

# What the child writes as it goes; sizes tell how far it is, and no frame's mesh is kept.
STAMPS, INSTANTS, SIGHTINGS = "stamps", "instants", "sightings"
STAMP = np.dtype("i8")  # ticks from the reel's start, of every source frame
INSTANT = np.dtype([("seconds", "f8"), ("faces", "i4")])  # stamp of what is shown, how many faces in it
SIGHTING = np.dtype([("centre", "f4", 2), ("width", "f4"), ("points", "f4", (len(USED_POINTS), 2))])


def find_faces(
    path: str, facts: dict[str, Any], seconds: str, params: dict[str, Any], model: str, folder: str
) -> Outcome:
    """Look for faces at each k / 25 s of a video's first ``seconds``. Runs in the sandbox."""
    reel, until, rules = VideoFacts.from_json(facts), Fraction(seconds), LandmarksParams(**params)
    find, to_rgb = landmarks.open_finder(model, rules.max_faces), ToRgb()
    with (
        open_media(Path(path)) as container,
        Path(folder, STAMPS).open("wb") as stamps,
        Path(folder, INSTANTS).open("wb", buffering=0) as instants,
        Path(folder, SIGHTINGS).open("wb") as sightings,
    ):

        def noted() -> Iterator[tuple[Fraction, Stamped]]:
            for one in stamped_frames(container, reel):
                at = one.ticks * reel.time_base
                if at >= until - SAME_TIME and stamps.tell():
                    return
                stamps.write(STAMP.type(one.ticks).tobytes())
                yield at, one

        frames = noted()
        seen: Stamped | None = None
        for at, one in on_clock(frames, max(1, first_instant(until))):
            if one is not seen:
                seen, found = one, [sight(face) for face in find(to_rgb(one.frame))]
            sightings.write(_packed(found))
            instants.write(np.array((float(at), len(found)), INSTANT).tobytes())
        for _ in frames:
            pass  # frames between the last instant and the end have stamps too
    return Outcome()


def _packed(found: Sequence[Sighting]) -> bytes:
    rows = [(face.centre, face.width, face.points[list(USED_POINTS)]) for face in found]
    return np.array(rows, SIGHTING).tobytes()


def warm_up() -> None:
    """Load MediaPipe before the deadline runs."""
    landmarks.warm_up()


@dataclass(frozen=True, slots=True)
class FaceObservations:
    """What ``find_faces`` saw: at most half a kilobyte an instant and face."""

    stamps: NDArray[np.int64]  # (n,), ticks of every source frame
    seconds: NDArray[np.float64]  # (T,), stamp of the source frame that each instant shows
    faces: list[list[Sighting]]  # T lists; their points are USED_POINTS


def watch(
    path: Path,
    facts: VideoFacts,
    seconds: Fraction,
    params: LandmarksParams,
    limits: LimitParams,
    model: Path,
    folder: Path,
    progress: Callable[[int, int], None],
) -> FaceObservations:
    """Find the faces of a video's first ``seconds``. ``folder`` is an empty one, for scratch.

    ``progress`` is told (instants done, instants). Raises StageError when the video cannot be used.
    """
    n_instants = max(1, first_instant(seconds))

    def tell() -> None:
        done = Path(folder, INSTANTS)
        progress(done.stat().st_size // INSTANT.itemsize if done.exists() else 0, n_instants)

    args = {
        "path": os.fspath(path),
        "facts": facts.to_json(),
        "seconds": str(seconds),
        "params": asdict(params),
        "model": os.fspath(model),
        "folder": os.fspath(folder),
    }
    sandbox.run_or_raise(
        ClipJob("stages.edit.face_track:find_faces", args, float(seconds), limits), path, tell
    )
    tell()
    stamps = np.fromfile(folder / STAMPS, STAMP)
    instants = np.fromfile(folder / INSTANTS, INSTANT)
    rows = iter(np.fromfile(folder / SIGHTINGS, SIGHTING))
    faces = [
        [Sighting(row["points"], row["centre"], float(row["width"])) for row in islice(rows, n)]
        for n in instants["faces"]
    ]
    return FaceObservations(stamps, instants["seconds"], faces)


@dataclass(frozen=True, slots=True)
class FaceSegment:
    """Instants one after the other through which the face is followed, as a clip of a dataset."""

    first: int  # instant
    seconds: NDArray[np.float64]  # (n,), when the matrices are right, by the video's own time stamps
    matrices: Matrices  # (n, 2, 3), source px -> crop px
    boxes: Boxes  # (n, 4)
    supersample: int

    def affine(self, seconds: float) -> NDArray[np.float32]:
        """The matrix (2, 3) for a frame with this time stamp, on the line through its neighbours'.

        Frames between the last instant and the end, at 50 fps say, lie on it by one step more.
        """
        last = len(self.seconds) - 1
        after = min(max(int(np.searchsorted(self.seconds, seconds)), 1), last)
        before = max(after - 1, 0)
        span = self.seconds[after] - self.seconds[before]
        share = np.clip((seconds - self.seconds[before]) / span, -1, 2) if span > 0 else 1.0
        between = self.matrices[before] * (1 - share) + self.matrices[after] * share
        return np.asarray(between, np.float32)


@dataclass(frozen=True, slots=True)
class FacePath:
    """What is known of each instant of the video's clock."""

    stretches: list[FaceSegment]
    stretch_at: NDArray[np.int32]  # (T,), which stretch, or -1
    why_not: list[str]  # T codes, of instants in no stretch


def face_path(
    watched: FaceObservations, choice: Choice, rules: LandmarksParams, align: AlignParams
) -> FacePath:
    """The chosen face through a video. Raises Drop when there is none that can be re-drawn.

    Where it is gone for longer than ``max_gap_frames`` a stretch ends. With "largest", "left" and "right"
    the next face in that order is followed there, if it is never to be seen beside one that is followed: so
    the same speaker after a cut is, and a listener is not.
    """
    n_instants = len(watched.seconds)
    stretches: list[FaceSegment] = []
    at = np.full(n_instants, -1, np.int32)
    why_not = ["no_face"] * n_instants
    claimed = np.zeros(n_instants, bool)
    first_drop: Drop | None = None
    for track in _chosen(follow(watched.faces, REMEMBERED_INSTANTS), choice, rules):
        runs = list(_runs(sorted(track.sightings), rules.max_gap_frames, n_instants))
        if any(claimed[first : last + 1].any() for first, last in runs):
            continue
        for first, last in runs:
            here = slice(first, last + 1)
            claimed[here] = True
            try:
                stretches.append(_stretch(watched, track, first, last, rules, align))
            except Drop as drop:
                first_drop = first_drop or drop
                why_not[here] = [drop.code] * (last + 1 - first)
                continue
            at[here] = len(stretches) - 1
    if not stretches:
        raise first_drop or Drop("no_face", f"no face in any of its {n_instants} frames at {VIDEO_FPS} fps")
    return FacePath(stretches, at, why_not)


def _chosen(tracks: list[Track], choice: Choice, rules: LandmarksParams) -> list[Track]:
    """Tracks in the order in which they are to be followed. Raises StageError when there is no such face."""
    # What the finder takes for a face now and then is none.
    fleeting = min(rules.max_gap_frames + 1, max((len(track.sightings) for track in tracks), default=0))
    lasting = [track for track in tracks if len(track.sightings) >= fleeting]
    if choice == "largest":
        return sorted(lasting, key=lambda track: -track.total_width)
    from_left = sorted(lasting, key=_first_x)
    if not isinstance(choice, int):
        return from_left if choice == "left" else from_left[::-1]
    if choice >= len(from_left):
        seen = "; ".join(
            f"{k} at x = {_first_x(track):.0f}, in {len(track.sightings)} frames"
            for k, track in enumerate(from_left)
        )
        raise StageError(f"--face {choice}: there is no such face; from the left there are {seen or 'none'}")
    return [from_left[choice]]


def _first_x(track: Track) -> float:
    """Where a face's centre is when it appears, px from the left."""
    return float(next(iter(track.sightings.values())).centre[0])


def _runs(seen: Sequence[int], max_gap: int, n_instants: int) -> Iterator[tuple[int, int]]:
    """First and last instant of each stretch without too long a gap; the video's ends count as seen."""
    first = last = seen[0]
    if first <= max_gap:
        first = 0
    for k in [*seen[1:], n_instants + max_gap + 1]:
        if k - last - 1 > max_gap:
            yield first, n_instants - 1 if n_instants - 1 - last <= max_gap else last
            first = k
        last = k


def _stretch(
    watched: FaceObservations, track: Track, first: int, last: int, rules: LandmarksParams, align: AlignParams
) -> FaceSegment:
    """Align a run of instants. Raises Drop when it cannot be used."""
    here = range(first, last + 1)
    seen = [track.sightings.get(k) for k in here]
    width = float(np.median([face.width for face in seen if face is not None]))
    if width < rules.min_face_pixels:
        raise Drop("small_face", f"its face is {width:.0f} px wide, "
                   f"expected {rules.min_face_pixels:g} or more")  # fmt: skip
    points = bridge_gaps([None if face is None else face.points for face in seen])
    matrices, boxes = align_used(points, align)
    check_boxes(boxes)
    # The matrices are means over instants, so they are right at the mean of what those show.
    seconds = centred_mean(watched.seconds[first : last + 1], align.smooth_frames)
    return FaceSegment(
        first, seconds, matrices, boxes, supersampling(matrices, ShardParams().max_supersample)
    )
