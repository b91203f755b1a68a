"""Find faces with MediaPipe's face model, by one of two engines, and track them through a video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.engine.outcome import StageError
from stages.media.stretches import find_stretches

if TYPE_CHECKING:
    from stages.media.face_networks import FaceNetworks
    from stages.media.mediapipe_faces import MediaPipeFaces

Points = NDArray[np.float32]  # (478, 2), source px, pixel centres at whole numbers
Look = NDArray[np.uint8]  # (16, 16), a face in a few grey pixels (stages.media.jumps)
LowerFace = NDArray[np.uint8]  # (16, 16, 3), from the eyes to the chin (stages.edit.mouth_cover)

# What runs the model's networks: LiteRT alone, or MediaPipe, which costs more and gives the same points.
Engine = Literal["litert", "mediapipe"]
DEFAULT_ENGINE: Engine = "litert"
ENGINE_PACKAGES: Mapping[Engine, str] = {"litert": "ai-edge-litert", "mediapipe": "mediapipe"}

N_POINTS = 478
# Indices into the mesh; right and left are the person's own.
NOSE_BASE = 2
RIGHT_EYE_OUTER, RIGHT_EYE_INNER, LEFT_EYE_INNER, LEFT_EYE_OUTER = 33, 133, 362, 263
STABLE_POINTS = (NOSE_BASE, RIGHT_EYE_OUTER, RIGHT_EYE_INNER, LEFT_EYE_INNER, LEFT_EYE_OUTER)
RIGHT_PUPIL, LEFT_PUPIL = 468, 473
UPPER_LIP_INNER, LOWER_LIP_INNER = 13, 14
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
LOOK_STD = 40.0  # grey levels, of a look before it is compared
MAX_LOOK_CHANGE = 13.0  # of one face from a picture to the next (stages.media.jumps)
USED_POINTS = STABLE_POINTS + FACE_OVAL  # all that alignment and jumps use


class FaceFinder:
    """Finds all faces in an image, each image alone. Use it in ``with``.

    Both engines are bit-identical across runs, processes and frame order.
    """

    def __init__(self, model: Path, max_faces: int, engine: Engine = DEFAULT_ENGINE) -> None:
        self._model = model
        self._max_faces = max_faces
        self._engine = engine

    def __enter__(self) -> FaceFinder:
        """Load the engine. Raises StageError when it is not installed, or the file is no face model."""
        check_engine(self._engine)
        self._find: FaceNetworks | MediaPipeFaces
        if self._engine == "litert":
            from stages.media.face_networks import FaceNetworks

            self._find = FaceNetworks(self._model, self._max_faces)
        else:
            from stages.media.mediapipe_faces import MediaPipeFaces

            self._find = MediaPipeFaces(self._model, self._max_faces)
        return self

    def __exit__(self, *_: object) -> None:
        self._find.close()

    def __call__(self, frame: Frame) -> list[Points]:
        """The faces in a frame (H, W, 3) RGB, any number of them."""
        return self._find(frame)


def check_engine(engine: Engine) -> None:
    """Raise StageError when the package of an engine is not installed. No other one takes its place."""
    package = ENGINE_PACKAGES[engine]
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        others = [name for name in ENGINE_PACKAGES if name != engine]
        raise StageError(
            f"landmarks.engine: {engine} needs the package {package}, which is not installed; "
            f"get it with `pip install {package}`, or choose {' or '.join(others)} in params.yaml"
        ) from None


_finders: dict[tuple[Path, int, Engine], FaceFinder] = {}


def open_finder(model: Path, max_faces: int, engine: Engine = DEFAULT_ENGINE) -> FaceFinder:
    """A finder that stays open for the child's life. It looks at each frame alone, so clips do not mix."""
    key = model, max_faces, engine
    if key not in _finders:
        _finders[key] = FaceFinder(*key).__enter__()
    return _finders[key]


def load_engine(engine: Engine) -> None:
    """Import an engine before the first clip's deadline starts; where it is missing, do nothing."""
    with suppress(ImportError):
        import_module("ai_edge_litert.interpreter" if engine == "litert" else "mediapipe")


def measure_face_width(points: Points) -> float:
    """Width of a face's bounding box, px."""
    return float(np.ptp(points[:, 0]))


@dataclass(frozen=True, slots=True)
class FaceDetection:
    """A face in one frame: what tracking needs, and the points to keep."""

    points: Points
    centre: NDArray[np.float32]  # (2,), mean of all 478 points
    width: float  # px
    look: Look
    lower_face: LowerFace | None = None  # of an edit

    @classmethod
    def from_points(cls, points: Points, look: Look) -> FaceDetection:
        """A face with all its points."""
        return cls(points, points.mean(axis=0), measure_face_width(points), look)


@dataclass(slots=True)
class FaceTrack:
    """One face through time."""

    detections: dict[int, FaceDetection] = field(default_factory=dict)  # by frame
    last: int = -1
    total_width: float = 0.0

    @property
    def first(self) -> int:
        """The first frame."""
        return next(iter(self.detections))

    def add(self, k: int, face: FaceDetection) -> None:
        self.detections[k] = face
        self.last = k
        self.total_width += face.width


def compare_looks(one: Look, other: Look) -> float:
    """Mean difference of two looks, in grey levels, after their brightness and contrast are made equal.

    Only what is inside both pictures counts; 0 when that is less than a quarter.
    """
    inside = (one > 0) & (other > 0)
    if inside.sum() < inside.size / 4:
        return 0.0
    values = np.stack([one[inside], other[inside]]).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    values *= LOOK_STD / np.maximum(values.std(axis=1, keepdims=True), 1.0)
    return float(np.abs(values[0] - values[1]).mean())


def compare_all_looks(ones: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``compare_looks`` of each of ``ones`` (n, 16, 16) with each of ``others`` (m, 16, 16): (n, m).

    Infinite where less than a quarter is inside both pictures, since that tells nothing.
    """
    a, b = (looks.reshape(len(looks), -1).astype(np.float32) for looks in (ones, others))
    in_a, in_b = a > 0, b > 0
    whole_a, whole_b = np.asarray(in_a.all(axis=1)), np.asarray(in_b.all(axis=1))
    equal_a, equal_b = _equalise_looks(a, in_a), _equalise_looks(b[whole_b], in_b[whole_b])
    distances = np.empty((len(a), len(b)))
    for i in range(len(a)):
        if whole_a[i]:  # most are: then each look is equalised once, not once for each pair
            distances[i, whole_b] = np.abs(equal_b - equal_a[i]).mean(axis=1)
        rest = np.flatnonzero(~whole_b if whole_a[i] else np.ones(len(b), bool))
        if not len(rest):
            continue
        inside = in_a[i] & in_b[rest]
        differences = np.abs(_equalise_looks(b[rest], inside) - _equalise_looks(a[i], inside))
        n_inside = inside.sum(axis=1)
        enough = n_inside >= a.shape[1] / 4
        distances[i, rest] = np.where(enough, differences.sum(axis=1) / np.maximum(n_inside, 1), np.inf)
    return distances


def _equalise_looks(looks: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Looks of equal brightness and contrast, (n, 256), in those pixels; 0 in the others."""
    n_inside = np.maximum(inside.sum(axis=1, keepdims=True), 1).astype(np.float32)
    values = np.where(inside, looks, 0)
    values = np.where(inside, values - values.sum(axis=1, keepdims=True) / n_inside, 0)
    std = np.sqrt((values**2).sum(axis=1, keepdims=True) / n_inside)
    return np.asarray(values * (LOOK_STD / np.maximum(std, 1.0)), np.float32)


def track_faces(faces: Iterable[Sequence[FaceDetection]], max_gap_frames: int) -> list[FaceTrack]:
    """The tracks of all faces in a video's frames, in order of appearance.

    In each frame a track takes the face whose centre is nearest to its last one, if that is within half a
    face's width. A track may miss up to ``max_gap_frames`` frames.
    """
    tracks: list[FaceTrack] = []
    live: list[FaceTrack] = []
    for k, frame_faces in enumerate(faces):
        live = [track for track in live if k - track.last <= max_gap_frames + 1]
        pairs = sorted(
            (float(np.linalg.norm(face.centre - track.detections[track.last].centre)), t, f)
            for t, track in enumerate(live)
            for f, face in enumerate(frame_faces)
        )
        matched_tracks: set[int] = set()
        matched_faces: set[int] = set()
        for distance, t, f in pairs:
            reach = live[t].detections[live[t].last].width / 2
            if t in matched_tracks or f in matched_faces or distance > reach:
                continue
            live[t].add(k, frame_faces[f])
            matched_tracks.add(t)
            matched_faces.add(f)
        for f, face in enumerate(frame_faces):
            if f not in matched_faces:
                new = FaceTrack()
                new.add(k, face)
                tracks.append(new)
                live.append(new)
    return tracks


def track_largest_face(
    faces: Sequence[Sequence[FaceDetection]], max_gap_frames: int
) -> list[FaceDetection | None]:
    """One face in every frame of a clip: the track with the greatest total width.

    So neither a larger face that appears for a moment nor a false detection makes the crop jump. Where the
    track ends and another one begins, at most ``max_gap_frames`` later, the largest of these continues it:
    after a zoom or a cut the face is elsewhere in the picture.
    """
    tracks = track_faces(faces, max_gap_frames)
    # max returns the first of equals.
    largest = max(tracks, key=lambda track: track.total_width, default=FaceTrack())
    chain = dict(largest.detections)
    for is_later in (True, False):
        track: FaceTrack | None = largest
        while track is not None and track.detections:
            track = _find_continuation(track, tracks, max_gap_frames, is_later=is_later)
            chain |= track.detections if track is not None else {}
    return [chain.get(k) for k in range(len(faces))]


def _find_continuation(
    track: FaceTrack, tracks: Sequence[FaceTrack], max_gap_frames: int, *, is_later: bool
) -> FaceTrack | None:
    """The largest track that begins just after another one's end, or ends just before it begins.

    Not one of another look that is no longer than a gap may be: it is rather a false detection than a face
    after a cut.
    """

    def count_missing(other: FaceTrack) -> int:
        """Frames between the two tracks; negative where they overlap."""
        earlier, later = (track, other) if is_later else (other, track)
        return later.first - earlier.last - 1

    def looks_alike(other: FaceTrack) -> bool:
        earlier, later = (track, other) if is_later else (other, track)
        looks = earlier.detections[earlier.last].look, later.detections[later.first].look
        return compare_looks(*looks) <= MAX_LOOK_CHANGE

    followers = [
        other
        for other in tracks
        if 0 <= count_missing(other) <= max_gap_frames
        and (len(other.detections) > max_gap_frames or looks_alike(other))
    ]
    return max(followers, key=lambda other: other.total_width, default=None)


def find_longest_gap(has_face: Sequence[bool]) -> tuple[int, int]:
    """The longest run of frames without a face: (first frame, frames); (0, 0) when there is none."""
    gaps = find_stretches([not here for here in has_face])
    first, end = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))  # the first of equals
    return first, end - first


def interpolate_gaps(points: Sequence[Points | None], jumps: Sequence[int] = ()) -> Points:
    """Fill frames without a face: linearly between neighbours, constant at the ends. (T, 478, 2).

    ``jumps`` are the frames after a cut or a zoom, in order. They are ends: nothing is interpolated across.
    """
    if len(jumps):
        bounds = [0, *jumps, len(points)]
        return np.concatenate([interpolate_gaps(points[i:j]) for i, j in pairwise(bounds)])
    indices = np.array([k for k, face in enumerate(points) if face is not None])
    assert len(indices), "a clip without any face is dropped before"
    values = np.stack([face for face in points if face is not None]).reshape(len(indices), -1)
    frames = np.arange(len(points))
    after = np.clip(np.searchsorted(indices, frames), 0, len(indices) - 1)
    before = np.clip(after - (indices[after] > frames), 0, None)
    span = indices[after] - indices[before]
    weight = np.where(span > 0, (frames - indices[before]) / np.maximum(span, 1), 0.0)
    weight = np.clip(weight, 0, 1)[:, None]
    filled = values[before] * (1 - weight) + values[after] * weight
    return np.asarray(filled.astype(np.float32).reshape(len(points), -1, 2))
