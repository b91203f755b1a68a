"""SyncNet's input for the protocol ``real videos``: the square around the face in full frames.

Another system's video is used as it is. Crops are pasted into their clip's source first, as ``pipeline
edit`` does, so every row of the table, the ground truth's too, can be scored with this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sampler.paste import paste
from shards.ledger import find_decoded_seconds, is_span
from shards.schema import ClipSample, Frame, Frames
from stages import landmarks
from stages.engine import sandbox
from stages.engine.cache import read_entry, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from stages.landmarks import LandmarksParams
from stages.media.faces import DEFAULT_ENGINE, Points, load_engine, open_finder
from stages.media.presentation import read_shown_video
from stages.media.video import ClipFrames, ClockFrame, read_frames_at_25fps
from stages.metrics.face_crops import crop_faces, face_boxes


def crop_squares(path: Path, n_frames: int, landmarker: Path, limits: LimitParams) -> Frames:
    """Squares (T, 224, 224, 3) of a video's first frames. Raises Drop when no face can be tracked."""
    return _crop_squares_in_sandbox(path, {"frames": n_frames}, n_frames, None, landmarker, limits)


def crop_squares_with_crops(
    generated: Frames, clip: ClipSample, source: Path, landmarker: Path, limits: LimitParams
) -> Frames:
    """Squares of a clip's source, with generated crops (T, S, S, 3) pasted in place of the clip's own."""
    with TemporaryDirectory(prefix="redub.") as folder:
        crops = Path(folder, "crops.npz")
        save_entry(
            crops,
            Outcome(),
            {"crop": clip.frames, "redrawn": generated, "affine": clip.affine, "box": clip.boxes},
        )
        return _crop_squares_in_sandbox(source, clip.info, len(generated), crops, landmarker, limits)


def _crop_squares_in_sandbox(
    path: Path,
    info: Mapping[str, Any],
    n_frames: int,
    crops: Path | None,
    landmarker: Path,
    limits: LimitParams,
) -> Frames:
    """``info`` is the json of the clip that is shown, or only the length of a video that is no clip."""

    def make_job(entry: Path) -> ClipJob:
        return ClipJob(
            save_squares_of_file,
            path=path.absolute(),
            start=info.get("source_start"),
            n_frames=n_frames,
            crops=crops,
            is_span=is_span(info),
            landmarker=landmarker.absolute(),
            entry=entry,
        )

    return sandbox.run_for_arrays(make_job, limits, video_seconds=find_decoded_seconds(info))["squares"]


def save_squares_of_file(
    path: Path,
    start: float | None,
    n_frames: int,
    crops: Path | None,
    is_span: bool,
    landmarker: Path,
    entry: Path,
) -> Outcome:
    """Track the face, and save the square around it as a cache entry. Runs in the sandbox.

    ``start`` of None is the time of the first frame. A clip that is a span of a file shows the face that
    speaks, which is not always the largest. The video is decoded twice: a long clip's full frames do not fit
    in memory.
    """
    cv2.setNumThreads(1)
    first = float(read_shown_video(path).span.start) if start is None else start

    def read_frames() -> Iterator[ClockFrame]:
        frames = read_frames_at_25fps(path, first, n_frames)
        return frames if crops is None else _paste_crops(frames, crops)

    params = LandmarksParams(cuts="keep")  # whatever clip is scored
    finder = open_finder(landmarker, params.max_faces, params.engine)
    if crops is not None and is_span:
        crop_finder = CropFaceFinder(finder, read_entry(crops)[1])
        frames = ClipFrames(lambda: crop_finder.follow(read_frames()))
        points = landmarks.find_points(frames, crop_finder.find, params).points
    else:
        points = landmarks.find_points(ClipFrames(read_frames), finder, params).points
    try:
        squares = crop_faces((frame.image for frame in read_frames()), face_boxes(points))
    except ValueError as err:
        raise Drop("too_short", str(err)) from err
    outcome = Outcome()
    save_entry(entry, outcome, {"squares": squares})
    return outcome


class CropFaceFinder:
    """Finds the face in a clip's crop, whatever other faces its frames show."""

    def __init__(self, find_all: Callable[[Frame], list[Points]], crops: Mapping[str, NDArray[Any]]) -> None:
        centre = np.full(2, crops["crop"].shape[1] / 2)
        affine = crops["affine"].astype(np.float64)  # (T, 2, 3), source px to crop px
        self._centres = np.linalg.solve(affine[:, :, :2], (centre - affine[:, :, 2])[:, :, None])[:, :, 0]
        self._find_all = find_all
        self._frame = 0

    def follow(self, frames: Iterable[ClockFrame]) -> Iterator[ClockFrame]:
        """The clip's frames; the last one is that in which ``find`` looks."""
        for self._frame, frame in enumerate(frames):
            yield frame

    def find(self, image: Frame) -> list[Points]:
        """At most one face of the frame."""
        centre = self._centres[self._frame]
        return sorted(
            self._find_all(image), key=lambda points: float(np.linalg.norm(points.mean(axis=0) - centre))
        )[:1]


def _paste_crops(frames: Iterator[ClockFrame], crops: Path) -> Iterator[ClockFrame]:
    """Full frames with crops pasted in; the entry ``crops`` has the arguments of ``paste``, for T frames."""
    _, arrays = read_entry(crops)
    for k, frame in enumerate(frames):
        image = frame.image.copy()  # the source may show it for several instants
        patch = paste(image, **{name: values[k] for name, values in arrays.items()})
        image[patch.region] = patch.pixels
        yield replace(frame, image=image)


def warm_up(_: Mapping[str, Any]) -> None:
    """Load what finds faces before the first clip's deadline starts."""
    load_engine(DEFAULT_ENGINE)
