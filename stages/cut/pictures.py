"""What is seen in a chunk of a video: every face of every frame, and how much each picture changes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.schema import VIDEO_FPS
from stages.cut import blends
from stages.cut.quality import measure_face
from stages.cut.shots import ContentComparison
from stages.engine.cache import read_entry, save_entry
from stages.engine.outcome import Outcome
from stages.landmarks import LandmarksParams
from stages.media.faces import (
    LEFT_PUPIL,
    LOWER_LIP_INNER,
    N_POINTS,
    RIGHT_PUPIL,
    UPPER_LIP_INNER,
    USED_POINTS,
    FaceDetection,
    Points,
    load_engine,
    open_finder,
)
from stages.media.jumps import LOOK_SIDE, PictureComparison, detect_faces
from stages.media.video import ClockFrame, read_frames_at_25fps

# What was shown before tells a flash from a cut; what is shown on both sides, a dissolve from movement.
FRAMES_AROUND = blends.MAX_FRAMES
N_QUALITIES = 4  # of stages.cut.quality.FaceQuality


def see_chunk(
    path: Path,
    start: float,
    first: int,
    n_frames: int,
    params: LandmarksParams,
    model: Path,
    entry: Path,
) -> Outcome:
    """Find the faces in ``n_frames`` frames of a video from frame ``first`` on; save them as a cache entry.

    ``start`` is the video's start on the container's clock, seconds. Some frames before and after are read
    too, since pictures are compared with those. Runs in the sandbox.
    """
    find = open_finder(model, params.max_faces, params.engine)
    compare_content, compare_picture = ContentComparison(), PictureComparison()
    n_before = min(first, FRAMES_AROUND)
    seconds, contents, changes, counts = [], [], [], []
    same: list[int] = []
    thumbnails: list[blends.Thumbnail] = []
    points: list[Points] = []
    looks: list[NDArray[np.uint8]] = []
    qualities: list[tuple[float, ...]] = []
    faces: list[FaceDetection] = []
    face_qualities: list[tuple[float, ...]] = []
    last: ClockFrame | None = None
    is_seen = False  # whether ``faces`` are those of the last picture
    offset = (first - n_before) / VIDEO_FPS
    # After the file's last frame it is read again: nothing changes there.
    n_read = n_before + n_frames + FRAMES_AROUND
    for k, frame in enumerate(read_frames_at_25fps(path, start + offset, n_read), -n_before):
        is_repeat = frame is last
        thumbnails.append(thumbnails[-1] if is_repeat else blends.shrink(frame.image))
        if k >= n_frames:
            last = frame
            continue
        content, change = (
            (0.0, 0.0) if is_repeat else (compare_content(frame.image), compare_picture(frame.image))
        )
        if k >= 0:
            if not (is_repeat and is_seen):
                faces = detect_faces(frame.image, find)
                face_qualities = [tuple(measure_face(frame.image, face.points)) for face in faces]
            is_seen = True
            seconds.append(frame.seconds + offset)
            contents.append(content)
            changes.append(change)
            # Of a slide of a minute, each picture would be compared with all before it.
            is_equal = bool(same) and np.array_equal(thumbnails[-2], thumbnails[-1])
            same.append(same[-1] + 1 if is_equal else blends.count_same_before(thumbnails, k + n_before))
            counts.append(len(faces))
            points += [face.points for face in faces]
            looks += [face.look for face in faces]
            qualities += face_qualities
        last = frame
    stretches = blends.find_blends(np.stack(thumbnails), n_before, n_before + n_frames)
    arrays: dict[str, NDArray[Any]] = {
        "blends": np.array(stretches, np.int64).reshape(-1, 2) - n_before,
        "same": np.array(same, np.int64),  # pictures before it, down to the first that is read
        "seconds": np.array(seconds),
        "contents": np.array(contents, np.float32),
        "changes": np.array(changes, np.float32),
        "counts": np.array(counts, np.uint8),
        "points": np.array(points, np.float32).reshape(-1, N_POINTS, 2),
        "looks": np.array(looks, np.uint8).reshape(-1, LOOK_SIDE, LOOK_SIDE),
        "qualities": np.array(qualities, np.float32).reshape(-1, N_QUALITIES),
    }
    save_entry(entry, Outcome(), arrays)
    return Outcome()


def warm_up(arguments: Mapping[str, Any]) -> None:
    """Load what finds faces before the first chunk's deadline starts."""
    load_engine(arguments["params"]["engine"])


@dataclass(frozen=True, slots=True)
class FacePlace:
    """Where the mesh of a face is stored."""

    chunk: int  # of the file
    index: int  # among all faces of the chunk


@dataclass(frozen=True, slots=True)
class SeenFace:
    """A face in one frame: enough to follow it, and what its quality is judged by."""

    detection: FaceDetection  # its points are USED_POINTS alone
    place: FacePlace
    opening: float  # of the mouth, in distances of the pupils
    quality: NDArray[np.float32]  # (N_QUALITIES,)


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """What is seen in one frame on the 25 fps clock."""

    seconds: float  # the source frame's own time stamp
    change: float  # of the picture, as PictureComparison measures it
    faces: tuple[SeenFace, ...]


def read_seen_frames(entries: Sequence[Path | None], lengths: Sequence[int]) -> Iterator[SeenFrame]:
    """The frames of a file from the entries of its chunks, of which one is in memory at a time.

    A chunk that could not be read has no entry: nothing is seen in its frames.
    """
    for chunk, (entry, n_frames) in enumerate(zip(entries, lengths, strict=True)):
        if entry is None:
            yield from [SeenFrame(0.0, 0.0, ())] * n_frames
            continue
        _, arrays = read_entry(entry)
        points = arrays["points"]
        pupils = np.linalg.norm(points[:, RIGHT_PUPIL] - points[:, LEFT_PUPIL], axis=-1)
        lips = np.linalg.norm(points[:, UPPER_LIP_INNER] - points[:, LOWER_LIP_INNER], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            openings = lips / pupils
        used = points[:, USED_POINTS].copy()  # so that the chunk's meshes can be freed
        centres, widths = points.mean(axis=1), np.ptp(points[..., 0], axis=1)
        at = 0
        for k, count in enumerate(arrays["counts"].tolist()):
            faces = tuple(
                SeenFace(
                    FaceDetection(used[i], centres[i], float(widths[i]), arrays["looks"][i]),
                    FacePlace(chunk, i),
                    float(openings[i]),
                    arrays["qualities"][i],
                )
                for i in range(at, at + count)
            )
            yield SeenFrame(float(arrays["seconds"][k]), float(arrays["changes"][k]), faces)
            at += count


class MeshReader:
    """Reads the meshes of faces from the entries of a file's chunks; the last two are kept."""

    def __init__(self, entries: Sequence[Path | None]) -> None:
        self._entries = entries
        self._load = functools.lru_cache(maxsize=2)(self._load_chunk)

    def __getitem__(self, place: FacePlace) -> Points:
        points: Points = self._load(place.chunk)[place.index]
        return points

    def _load_chunk(self, chunk: int) -> NDArray[np.float32]:
        entry = self._entries[chunk]
        assert entry is not None, "nothing is seen in a chunk without one"
        return read_entry(entry)[1]["points"]
