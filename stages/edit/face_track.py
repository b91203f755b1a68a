"""Find the face in a video: crop matrices and mask boxes for every part of it that can be re-drawn.

Uses the functions of stages.landmarks and stages.align, as for a dataset. But where a gap would drop a clip
of a dataset, here it only ends a segment. An instant is a multiple of 1/25 s of the video's own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shards.background import map_ahead
from shards.cores import count_cores
from shards.schema import VIDEO_FPS, Frame
from stages import landmarks
from stages.align import AlignParams, Boxes, align_used_points, centred_mean, check_boxes, project_points
from stages.edit.mouth_cover import COVERED, crop_lower_face, find_covered_mouths
from stages.edit.mouth_cover import SIDE as LOWER_FACE_SIDE
from stages.edit.reader import VideoFacts, decode_timed_frames
from stages.engine import sandbox
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.progress import Progress
from stages.engine.sandbox import ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.container import find_video_stream, open_media
from stages.media.crops import MAX_SUPERSAMPLE, Matrices, compute_supersample
from stages.media.faces import (
    MAX_LOOK_CHANGE,
    STABLE_POINTS,
    USED_POINTS,
    FaceDetection,
    FaceFinder,
    FaceTrack,
    compare_all_looks,
    compare_looks,
    interpolate_gaps,
    open_finder,
    track_faces,
)
from stages.media.jumps import LOOK_SIDE, Jump, PictureComparison, detect_faces, find_jumps
from stages.media.presentation import TIME_TOLERANCE
from stages.media.video import RgbConverter, count_instants, sample_at_25fps

FaceChoice = Literal["largest", "left", "right"] | Annotated[int, Field(ge=0, le=99)]

MAX_FACE_THREADS = 4  # one thread decodes and converts the pictures: so many keep up with it
# A face that reappears where it was within this many instants is the same face.
MAX_ABSENCE_INSTANTS = 60 * VIDEO_FPS

OTHER_FACE = "other_face"  # the reason code: a face is in sight, and it is not the chosen one
# Looks by which a track is compared with others: some spread over it, and those around its gaps, up to the
# most. Of three looks of a clip's first third and three of its last, the nearest two are within
# MAX_LOOK_CHANGE in 95 % of 57 real clips; of ten looks each of two people in 0.2 % of 1513 pairs of clips.
SPREAD_LOOKS, MAX_LOOKS = 5, 64

# Files that the sandbox's child appends to; their sizes show its progress. No full face mesh is stored.
STAMPS, INSTANTS, DETECTIONS = "stamps", "instants", "detections"
# Of every source frame: ticks from the first one, and how much its picture differs from the one before.
STAMP = np.dtype([("ticks", "i8"), ("change", "f8")])
# The source frame that an instant shows, its time stamp, faces in it.
INSTANT = np.dtype([("source", "i8"), ("seconds", "f8"), ("faces", "i4")])
DETECTION = np.dtype(
    [
        ("centre", "f4", 2),
        ("width", "f4"),
        ("points", "f4", (len(USED_POINTS), 2)),
        ("look", "u1", (LOOK_SIDE, LOOK_SIDE)),
        ("lower_face", "u1", (LOWER_FACE_SIDE, LOWER_FACE_SIDE, 3)),
    ]
)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A frame of the source by number, as RGB."""

    source: int
    image: Frame


def count_face_threads() -> int:
    """How many threads look for faces in a process that may use all cores."""
    return min(MAX_FACE_THREADS, count_cores())


def find_faces(
    path: Path,
    facts: VideoFacts,
    seconds: Fraction,
    params: LandmarksParams,
    model: Path,
    folder: Path,
    windows: Sequence[tuple[int, int]] | None = None,
    n_threads: int = 1,
) -> Outcome:
    """Find the faces at each instant of a video's first ``seconds``. Runs in the sandbox.

    ``windows`` are pairs of a first instant and the one after the last, in order: at the others no face is
    looked for. Writes the files STAMPS, INSTANTS and DETECTIONS to ``folder``, the same ones with any
    ``n_threads``.
    """

    def is_searched(k: int) -> bool:
        return windows is None or any(first <= k < end for first, end in windows)

    with (
        open_media(path) as container,
        (folder / STAMPS).open("wb") as stamps,
        (folder / INSTANTS).open("wb", buffering=0) as instants,
        (folder / DETECTIONS).open("wb") as detections,
        _open_detectors(model, params, n_threads) as detect,
    ):
        compare_picture = PictureComparison()
        convert = RgbConverter(find_video_stream(container))

        def record_stamps() -> Iterator[tuple[Fraction, SourceImage]]:
            for source, frame in enumerate(decode_timed_frames(container, facts)):
                at = frame.ticks * facts.time_base
                if at >= seconds - TIME_TOLERANCE and source:
                    return
                image = convert(frame.frame)
                stamps.write(np.array((frame.ticks, compare_picture(image)), STAMP).tobytes())
                yield at, SourceImage(source, image)

        frames = record_stamps()

        def list_instants() -> Iterator[tuple[int, Fraction, Frame | None]]:
            """Each instant's source frame, its time stamp, and the picture if faces are looked for in it."""
            searched = -1
            for k, (at, frame) in enumerate(sample_at_25fps(frames, max(1, count_instants(seconds)))):
                image = frame.image if is_searched(k) and frame.source != searched else None
                searched = searched if image is None else frame.source
                yield frame.source, at, image

        def find_in_instant(
            instant: tuple[int, Fraction, Frame | None],
        ) -> tuple[int, Fraction, list[FaceDetection] | None]:
            source, at, image = instant
            return source, at, None if image is None else detect(image)

        last_faces: list[FaceDetection] = []
        with closing(map_ahead(find_in_instant, list_instants(), n_threads)) as found:
            for k, (source, at, new_faces) in enumerate(found):
                last_faces = last_faces if new_faces is None else new_faces
                faces = last_faces if is_searched(k) else []
                detections.write(_pack_detections(faces))
                instants.write(np.array((source, float(at), len(faces)), INSTANT).tobytes())
        for _ in frames:
            pass  # frames between the last instant and the end have time stamps too
    return Outcome()


@contextmanager
def _open_detectors(
    model: Path, params: LandmarksParams, n_threads: int
) -> Iterator[Callable[[Frame], list[FaceDetection]]]:
    """What finds the faces in a picture, for ``n_threads`` at a time: each has networks of its own."""
    free: SimpleQueue[FaceFinder] = SimpleQueue()

    def detect(image: Frame) -> list[FaceDetection]:
        finder = free.get()
        try:
            return [
                replace(face, lower_face=crop_lower_face(image, face.points))
                for face in detect_faces(image, finder)
            ]
        finally:
            free.put(finder)

    with ExitStack() as stack:
        free.put(open_finder(model, params.max_faces, params.engine))
        for _ in range(n_threads - 1):
            free.put(stack.enter_context(FaceFinder(model, params.max_faces, params.engine)))
        yield detect


def _pack_detections(faces: Sequence[FaceDetection]) -> bytes:
    rows = [
        (face.centre, face.width, face.points[list(USED_POINTS)], face.look, face.lower_face)
        for face in faces
    ]
    return np.array(rows, DETECTION).tobytes()


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load what finds faces before the deadline starts."""
    landmarks.warm_up(arguments)


@dataclass(frozen=True, slots=True)
class FaceObservations:
    """The faces that ``find_faces`` found: one and a half kilobytes per instant and face."""

    stamps: NDArray[np.int64]  # (n,), ticks of every source frame
    changes: NDArray[np.float64]  # (n,), how much its picture differs from the one before
    sources: NDArray[np.int64]  # (T,), the source frame that each instant shows
    seconds: NDArray[np.float64]  # (T,), time stamp of the source frame that each instant shows
    faces: list[list[FaceDetection]]  # T lists; their points are USED_POINTS

    def split_changes(self) -> list[NDArray[np.float64]]:
        """Of each instant, the changes of the source frames since the instant before: T arrays."""
        bounds = [-1, *self.sources.tolist()]
        return [self.changes[before + 1 : after + 1] for before, after in pairwise(bounds)]


def observe_faces(
    path: Path,
    facts: VideoFacts,
    seconds: Fraction,
    *,
    params: LandmarksParams,
    limits: LimitParams,
    model: Path,
    folder: Path,
    progress: Progress,
    windows: Sequence[tuple[int, int]] | None = None,
    n_threads: int = 1,
) -> FaceObservations:
    """Find the faces of a video's first ``seconds`` in the sandbox. ``folder`` is an empty one, for scratch.

    ``windows`` and ``n_threads`` are as in ``find_faces``. Calls ``progress`` with ("faces", instants done,
    instants). Raises StageError when the video cannot be used.
    """
    n_instants = max(1, count_instants(seconds))

    def report_progress() -> None:
        written = folder / INSTANTS
        progress("faces", written.stat().st_size // INSTANT.itemsize if written.exists() else 0, n_instants)

    job = ClipJob(
        find_faces,
        path=path,
        facts=facts,
        seconds=seconds,
        params=params,
        model=model,
        folder=folder,
        windows=windows,
        n_threads=n_threads,
    )
    sandbox.run_or_raise(job, limits, path, video_seconds=float(seconds), on_poll=report_progress)
    report_progress()
    stamps = np.fromfile(folder / STAMPS, STAMP)
    instants = np.fromfile(folder / INSTANTS, INSTANT)
    rows = iter(np.fromfile(folder / DETECTIONS, DETECTION))
    faces = [
        [
            FaceDetection(row["points"], row["centre"], float(row["width"]), row["look"], row["lower_face"])
            for row in islice(rows, n)
        ]
        for n in instants["faces"]
    ]
    return FaceObservations(stamps["ticks"], stamps["change"], instants["source"], instants["seconds"], faces)


@dataclass(frozen=True, slots=True)
class FaceSegment:
    """Consecutive instants in which one face is tracked; aligned like a clip of a dataset."""

    first: int  # instant
    seconds: NDArray[np.float64]  # (n,), the video's own time at which each matrix is exact
    matrices: Matrices  # (n, 2, 3), source px -> crop px
    boxes: Boxes  # (n, 4)
    ovals: NDArray[np.float32]  # (n, 36, 2), the outline of the face in the crop, px
    supersample: int

    def rescale_source(self, scale: tuple[float, float]) -> FaceSegment:
        """The segment for frames whose x and y times ``scale`` are those of this one's matrices."""
        if scale == (1.0, 1.0):
            return self
        # Pixel centres are whole numbers, so an image's edge is at -0.5 and stays there.
        to_square = np.diag([*scale, 1.0])
        to_square[:2, 2] = (np.array(scale) - 1) / 2
        matrices = (self.matrices @ to_square).astype(np.float32)
        return replace(self, matrices=matrices, supersample=compute_supersample(matrices, MAX_SUPERSAMPLE))

    def interpolate_matrix(self, seconds: float) -> NDArray[np.float32]:
        """The matrix (2, 3) for a frame with this time stamp, linearly between its neighbours'.

        Frames between the last instant and the end (at 50 fps, for example) are extrapolated by one step.
        """
        last = len(self.seconds) - 1
        after = min(max(int(np.searchsorted(self.seconds, seconds)), 1), last)
        before = max(after - 1, 0)
        span = self.seconds[after] - self.seconds[before]
        weight = np.clip((seconds - self.seconds[before]) / span, -1, 2) if span > 0 else 1.0
        matrix = self.matrices[before] * (1 - weight) + self.matrices[after] * weight
        return np.asarray(matrix, np.float32)


@dataclass(frozen=True, slots=True)
class FacePath:
    """Where the chosen face is at each instant of the video."""

    segments: list[FaceSegment]
    segment_at: NDArray[np.int32]  # (T,), index of the segment, or -1
    reason_at: list[str]  # T codes that say why an instant is in no segment
    borders: NDArray[np.int64]  # increasing: the source frames at which another segment begins, or none


def choose_face_paths(
    observations: FaceObservations,
    choices: Sequence[FaceChoice],
    params: LandmarksParams,
    align: AlignParams,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> list[FacePath]:
    """The paths of the chosen faces through a video. Raises Drop when one of them cannot be re-drawn.

    ``scale`` has the factors of x and y from the frames' pixels to the square ones of the observations.

    Where the face is absent for more than ``max_gap_frames`` a segment ends, and where it jumps (a cut, a
    zoom) another one begins: no mean and no previous frame crosses it. With "largest", "left" and
    "right" the next face in that order follows there, unless it is ever visible together with a face that
    is already on the path: so the same speaker after a cut is included, and a listener is not. With a number,
    or one of several choices, the path has one person, by their look, anywhere in the video: whoever else is
    in the same place after a cut has a number of their own. Raises StageError when there is no such face, or
    when two choices are the same person.
    """
    changes = [float(part.max(initial=0.0)) for part in observations.split_changes()]
    tracks = track_faces(observations.faces, MAX_ABSENCE_INSTANTS)
    if len(choices) == 1 and not isinstance(choices[0], int):
        orders = [_order_tracks(_select_long_tracks(tracks, params), choices[0])]
    else:
        parts = [part for track in tracks for part in _split_by_look(observations, changes, track, params)]
        parts.sort(key=lambda part: part.first)
        orders = _order_by_person(_select_long_tracks(parts, params), choices, params.max_gap_frames)
    return [_make_face_path(observations, changes, order, params, align, scale) for order in orders]


def _make_face_path(
    observations: FaceObservations,
    changes: Sequence[float],
    tracks: Sequence[FaceTrack],
    params: LandmarksParams,
    align: AlignParams,
    scale: tuple[float, float],
) -> FacePath:
    """The path along tracks, in order of preference. Raises Drop when nothing on it can be re-drawn."""
    n_instants = len(observations.seconds)
    segments: list[FaceSegment] = []
    segment_at = np.full(n_instants, -1, np.int32)
    reason_at = ["no_face"] * n_instants
    is_claimed = np.zeros(n_instants, bool)
    first_drop: Drop | None = None
    for track in tracks:
        runs = list(_split_at_gaps(sorted(track.detections), params.max_gap_frames, n_instants))
        jumps = [jump.frame for jump in _find_track_jumps(observations, changes, track)]
        if any(is_claimed[first : last + 1].any() for first, last in runs):
            continue
        is_covered = np.zeros(n_instants, bool)
        start, end = runs[0][0], runs[-1][1] + 1
        faces = [track.detections.get(k) for k in range(start, end)]
        is_covered[start:end] = find_covered_mouths(
            [None if face is None else face.lower_face for face in faces],
            [jump - start for jump in jumps if start < jump < end],
        )
        for first, last in _split_at_jumps(runs, jumps):
            span = slice(first, last + 1)
            is_claimed[span] = True
            try:
                segment = _align_segment(observations, track, first, last, params, align)
            except Drop as drop:
                first_drop = first_drop or drop
                reason_at[span] = [drop.code] * (last + 1 - first)
                continue
            segments.append(segment.rescale_source(scale))
            segment_at[span] = np.where(is_covered[span], -1, len(segments) - 1)
            for k in first + np.flatnonzero(is_covered[span]):
                reason_at[k] = COVERED
    for k in np.flatnonzero(~is_claimed):
        if observations.faces[k]:
            reason_at[k] = OTHER_FACE
    if not segments:
        raise first_drop or Drop("no_face", f"no face in any of its {n_instants} frames at {VIDEO_FPS} fps")
    return FacePath(segments, segment_at, reason_at, _find_border_sources(observations, segment_at))


def _select_long_tracks(tracks: list[FaceTrack], params: LandmarksParams) -> list[FaceTrack]:
    """All tracks but very short ones, which are false detections."""
    longest = max((len(track.detections) for track in tracks), default=0)
    min_detections = min(params.max_gap_frames + 1, longest)
    return [track for track in tracks if len(track.detections) >= min_detections]


def _order_tracks(
    tracks: Sequence[FaceTrack], choice: Literal["largest", "left", "right"]
) -> list[FaceTrack]:
    """The tracks in order of preference."""
    if choice == "largest":
        return sorted(tracks, key=lambda track: -track.total_width)
    return sorted(tracks, key=_get_first_x, reverse=choice == "right")


def _order_by_person(
    tracks: Sequence[FaceTrack], choices: Sequence[FaceChoice], max_gap: int
) -> list[list[FaceTrack]]:
    """Of each choice its own track and others of that person. Raises StageError when it is not there."""
    from_left = _order_tracks(tracks, "left")
    chosen: list[FaceTrack] = []
    for choice in choices:
        if isinstance(choice, int) and choice >= len(from_left):
            faces = "; ".join(
                f"{k} at x = {_get_first_x(track):.0f}, in {len(track.detections)} frames"
                for k, track in enumerate(from_left)
            )
            raise StageError(
                f"--face {choice}: there is no such face; from the left there are {faces or 'none'}"
            )
        if not from_left:
            return [[] for _ in choices]
        track = from_left[choice] if isinstance(choice, int) else _order_tracks(tracks, choice)[0]
        if any(track is other for other in chosen):
            raise _make_same_face_error(choices[[track is other for other in chosen].index(True)], choice)
        chosen.append(track)
    people = _group_by_person(tracks, max_gap)
    orders = []
    for k, track in enumerate(chosen):
        [person] = [person for person in people if any(track is each for each in person)]
        for first, other in zip(choices[:k], chosen[:k], strict=True):
            if any(other is each for each in person):
                raise _make_same_face_error(first, choices[k])
        orders.append([track, *(other for other in person if other is not track)])
    return orders


def _make_same_face_error(one: FaceChoice, other: FaceChoice) -> StageError:
    return StageError(f"--face {one} and --face {other} are the same face; each says one recording")


def _group_by_person(tracks: Sequence[FaceTrack], max_gap: int) -> list[list[FaceTrack]]:
    """Tracks of one person each, wherever they are in the video: those that look alike, nearest first.

    Two that are ever visible together are two people, and so are those that are joined to them.
    """
    looks = [_select_looks(track, max_gap) for track in tracks]
    pairs = []
    for i, own in enumerate(looks[:-1]):
        nearest = compare_all_looks(own, np.concatenate(looks[i + 1 :])).min(axis=0)
        firsts = np.cumsum([0, *map(len, looks[i + 1 : -1])])  # of each later track
        distances = np.minimum.reduceat(nearest, firsts)
        pairs += [(float(distances[j]), i, i + 1 + j) for j in np.flatnonzero(distances <= MAX_LOOK_CHANGE)]
    people = [[track] for track in tracks]  # of each track, its person's: one list for all tracks of a person
    instants = [set(track.detections) for track in tracks]  # in which the person is visible
    number = [*range(len(tracks))]  # of each track, its person's
    for _, i, j in sorted(pairs):
        one, other = number[i], number[j]
        if one != other and instants[one].isdisjoint(instants[other]):
            people[one] += people[other]
            instants[one] |= instants[other]
            people[other] = []
            number = [one if each == other else each for each in number]
    return [person for person in people if person]


def _select_looks(track: FaceTrack, max_gap: int) -> NDArray[np.uint8]:
    """A few looks of a track (n, 16, 16), among them those before and after its gaps."""
    instants = np.array([*track.detections])
    after_gaps = 1 + np.flatnonzero(np.diff(instants) > max_gap + 1)
    spread = np.linspace(0, len(instants) - 1, SPREAD_LOOKS).round().astype(int)
    places = np.unique(np.concatenate([spread, after_gaps - 1, after_gaps]))
    if len(places) > MAX_LOOKS:
        places = places[np.linspace(0, len(places) - 1, MAX_LOOKS).round().astype(int)]
    return np.stack([track.detections[k].look for k in instants[places].tolist()])


def _split_by_look(
    observations: FaceObservations, changes: Sequence[float], track: FaceTrack, params: LandmarksParams
) -> list[FaceTrack]:
    """The parts of a track that are of one look each: after a cut or a gap somebody else may be there."""
    jumps = _find_track_jumps(observations, changes, track)
    starts = {jump.frame for jump in jumps if jump.is_new_face}
    parts = [FaceTrack()]
    before = track.first
    for k, face in track.detections.items():
        is_gap = k - before - 1 > params.max_gap_frames
        is_new_face = is_gap and compare_looks(track.detections[before].look, face.look) > MAX_LOOK_CHANGE
        if is_new_face or not starts.isdisjoint(range(before + 1, k + 1)):
            parts.append(FaceTrack())
        parts[-1].add(k, face)
        before = k
    return parts


def _get_first_x(track: FaceTrack) -> float:
    """Where a face's centre is when it appears, px from the left."""
    return float(next(iter(track.detections.values())).centre[0])


def _split_at_gaps(instants: Sequence[int], max_gap: int, n_instants: int) -> Iterator[tuple[int, int]]:
    """First and last instant of each run without a long gap; short gaps at the video's ends are included."""
    first = last = instants[0]
    if first <= max_gap:
        first = 0
    for k in [*instants[1:], n_instants + max_gap + 1]:
        if k - last - 1 > max_gap:
            yield first, n_instants - 1 if n_instants - 1 - last <= max_gap else last
            first = k
        last = k


def _find_track_jumps(
    observations: FaceObservations, changes: Sequence[float], track: FaceTrack
) -> list[Jump]:
    """Where a track does not continue the instant before; ``changes`` are the largest up to each instant."""
    detections = [track.detections.get(k) for k in range(len(changes))]
    return find_jumps(detections, changes, observations.seconds.tolist())


def _find_border_sources(observations: FaceObservations, segment_at: NDArray[np.int32]) -> NDArray[np.int64]:
    """The source frames at which another segment begins, or none.

    Several source frames may lie between two instants: of these, it is the one whose picture changes most.
    """
    borders = 1 + np.flatnonzero(np.diff(segment_at))
    parts = observations.split_changes()
    firsts = observations.sources[borders - 1] + 1
    largest = [int(np.argmax(parts[k])) if len(parts[k]) else 0 for k in borders.tolist()]
    return firsts + np.array(largest, np.int64)


def _split_at_jumps(runs: Sequence[tuple[int, int]], jumps: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last instant of each run and part of one: a jump begins a new one."""
    for first, last in runs:
        starts = [first, *(k for k in jumps if first < k <= last)]
        yield from zip(starts, [*(k - 1 for k in starts[1:]), last], strict=True)


def _align_segment(
    observations: FaceObservations,
    track: FaceTrack,
    first: int,
    last: int,
    params: LandmarksParams,
    align: AlignParams,
) -> FaceSegment:
    """Align a run of instants. Raises Drop when it cannot be used."""
    detections = [track.detections.get(k) for k in range(first, last + 1)]
    width = float(np.median([face.width for face in detections if face is not None]))
    if width < params.min_face_pixels:
        raise Drop("small_face", f"its face is {width:.0f} px wide, "
                   f"expected {params.min_face_pixels:g} or more")  # fmt: skip
    points = interpolate_gaps([None if face is None else face.points for face in detections])
    matrices, boxes = align_used_points(points, align)
    check_boxes(boxes)
    # The matrices are means over instants, so each is exact at the mean of their frames' time stamps.
    seconds = centred_mean(observations.seconds[first : last + 1], align.smooth_frames)
    ovals = project_points(matrices, points)[:, len(STABLE_POINTS) :].astype(np.float32)
    supersample = compute_supersample(matrices, MAX_SUPERSAMPLE)
    return FaceSegment(first, seconds, matrices, boxes, ovals, supersample)
