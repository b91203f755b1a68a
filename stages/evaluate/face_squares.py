"""What SyncNet sees of whole pictures by the protocol ``real videos``: the square about the face in each.

Another system's video is looked at as it came. Crops are put into their clip's source first, as ``pipeline
edit`` does, so that every row of the table, the truth's too, can stand under this protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sampler.paste import paste
from shards.schema import VIDEO_FPS, ClipSample
from stages import landmarks
from stages.engine import sandbox
from stages.engine.cache import load_entry, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import LimitParams
from stages.evaluate.metrics.face_crops import face_boxes, face_crops
from stages.landmarks import LandmarksParams
from stages.media.video import ClockFrame, read_on_clock, video_span

Frames = NDArray[np.uint8]  # (T, H, W, 3), RGB


def squares_of_video(path: Path, n_frames: int, landmarker: Path, limits: LimitParams) -> Frames:
    """Squares (T, 224, 224, 3) of a video's first frames. Raises Drop where no face can be followed."""
    return _squares(path, None, n_frames, None, landmarker, limits)


def squares_with(
    drawn: Frames, clip: ClipSample, source: Path, landmarker: Path, limits: LimitParams
) -> Frames:
    """The same of a clip's source, with what was drawn in the place of the clip's own crops (T, S, S, 3)."""
    with TemporaryDirectory() as folder:
        crops = Path(folder, "crops.npz")
        save_entry(
            crops,
            Outcome(),
            {"crop": clip.frames, "redrawn": drawn, "affine": clip.affine, "box": clip.boxes},
        )
        return _squares(source, clip.info["source_start"], len(drawn), crops, landmarker, limits)


def _squares(
    path: Path,
    start: float | None,
    n_frames: int,
    crops: Path | None,
    landmarker: Path,
    limits: LimitParams,
) -> Frames:
    args = {
        "path": str(path.absolute()), "start": start, "n_frames": n_frames,
        "crops": None if crops is None else str(crops), "landmarker": str(landmarker.absolute()),
    }  # fmt: skip
    function = "stages.evaluate.face_squares:squares_of_file"
    return sandbox.run_for_arrays(function, args, n_frames / VIDEO_FPS, limits)["squares"]


def squares_of_file(
    path: str, start: float | None, n_frames: int, crops: str | None, landmarker: str, entry: str
) -> Outcome:
    """Find and follow the face, and save the square about it. Runs in the sandbox.

    ``start`` of None is the first frame's. Everything is decoded twice: a long clip's whole pictures do not
    fit in memory.
    """
    cv2.setNumThreads(1)
    first = float(video_span(Path(path)).start) if start is None else start

    def shown() -> Iterator[ClockFrame]:
        frames = read_on_clock(Path(path), first, n_frames)
        return frames if crops is None else _with_crops(frames, Path(crops))

    rules = LandmarksParams()
    points, _, _ = landmarks.find_points(shown(), landmarks.open_finder(landmarker, rules.max_faces), rules)
    try:
        squares = face_crops((frame.image for frame in shown()), face_boxes(points))
    except ValueError as err:
        raise Drop("too_short", str(err)) from err
    outcome = Outcome()
    save_entry(Path(entry), outcome, {"squares": squares})
    return outcome


def _with_crops(frames: Iterator[ClockFrame], crops: Path) -> Iterator[ClockFrame]:
    """Whole pictures with crops put in; ``crops`` holds what ``paste`` asks for, each of T."""
    entry = load_entry(crops)
    assert entry is not None, f"{crops}: was written for this"
    arrays: dict[str, NDArray[Any]] = entry[1]
    for k, frame in enumerate(frames):
        image = frame.image.copy()  # the source may show it for several instants
        patch = paste(image, **{name: values[k] for name, values in arrays.items()})
        image[patch.where] = patch.pixels
        yield replace(frame, image=image)


def warm_up() -> None:
    """Load MediaPipe before the deadline runs."""
    landmarks.warm_up()
