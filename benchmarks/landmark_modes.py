"""Compares IMAGE and VIDEO mode of MediaPipe's landmarker: CPU, jitter, dependence on earlier clips.

    python benchmarks/landmark_modes.py data/grid/raw/s1/*.mpg

Jitter is the mean second difference of the points in px, also after the 7-frame mean of the alignment.
"Order" is the largest shift of a clip's points if the same landmarker has processed another clip before.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mediapipe
import numpy as np
from mediapipe.tasks.python import vision
from mediapipe.tasks.python.core.base_options import BaseOptions

from shards.schema import VIDEO_FPS
from stages.align import centred_mean
from stages.media import weights
from stages.media.mediapipe_faces import MediaPipeFaces
from stages.media.presentation import read_shown_video
from stages.media.video import count_frames_at_25fps, read_frames_at_25fps

Array = np.ndarray[Any, Any]
Frames = list[Array]


def read_frames(path: Path) -> Frames:
    span = read_shown_video(path).span
    n_frames = count_frames_at_25fps(span)
    return [frame.image for frame in read_frames_at_25fps(path, float(span.start), n_frames)]


def open_video_landmarker(model: Path) -> vision.FaceLandmarker:
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=os.fspath(model)), running_mode=vision.RunningMode.VIDEO
    )
    return vision.FaceLandmarker.create_from_options(options)


def detect_in_video_mode(landmarker: vision.FaceLandmarker, frames: Frames, first: int = 0) -> Array:
    """Points in px, (T, 478, 2). ``first`` is the number of the first frame, for its time stamp."""
    height, width = frames[0].shape[:2]
    points = []
    for k, frame in enumerate(frames, start=first):
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame)
        (face,) = landmarker.detect_for_video(image, k * 1000 // VIDEO_FPS).face_landmarks
        points.append([(point.x * width, point.y * height) for point in face])
    return np.array(points)


def compute_jitter(points: Array) -> float:
    return float(np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1).mean())


def measure_cpu_ms(detect: Callable[[], Array], n_frames: int) -> tuple[Array, float]:
    """The result of ``detect``, and its CPU ms per frame."""
    start = time.process_time()
    result = detect()
    return result, 1000 * (time.process_time() - start) / n_frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="+", help="video files")
    parser.add_argument("--landmarker", default="", help="MediaPipe's face_landmarker.task")
    args = parser.parse_args()
    model = weights.find(weights.LANDMARKER, args.landmarker)
    clips = [read_frames(path) for path in args.clips]
    rows: dict[str, list[tuple[float, float, float, float]]] = {"IMAGE": [], "VIDEO": []}
    for i, frames in enumerate(clips):
        other = clips[i - 1]
        with MediaPipeFaces(model, max_faces=1) as find:
            find(frames[0])
            points, cost = measure_cpu_ms(
                lambda f=frames: np.array([find(frame)[0] for frame in f]), len(frames)
            )
            find(other[0])
            points_after_other = np.array([find(frame)[0] for frame in frames])
        rows["IMAGE"].append(make_row(points, points_after_other, cost))
        with open_video_landmarker(model) as landmarker:
            points, cost = measure_cpu_ms(lambda f=frames: detect_in_video_mode(landmarker, f), len(frames))
        with open_video_landmarker(model) as landmarker:
            detect_in_video_mode(landmarker, other)
            points_after_other = detect_in_video_mode(landmarker, frames, first=len(other))
        rows["VIDEO"].append(make_row(points, points_after_other, cost))
    print(f"{len(clips)} clips, {sum(map(len, clips))} frames")
    print(f"{'mode':<8}{'CPU ms/frame':>14}{'jitter px':>12}{'after mean':>12}{'order, max px':>15}")
    for mode, values in rows.items():
        cost, jitter, smooth_jitter, order = np.array(values).T
        print(
            f"{mode:<8}{np.median(cost):>14.1f}{jitter.mean():>12.3f}{smooth_jitter.mean():>12.3f}"
            f"{order.max():>15.2f}"
        )


def make_row(points: Array, points_after_other: Array, cost: float) -> tuple[float, float, float, float]:
    """Cost, jitter, jitter after the 7-frame mean, and the largest shift by another clip."""
    smooth = centred_mean(points.astype(np.float64), 7)
    order = float(np.abs(points_after_other - points).max())
    return cost, compute_jitter(points), compute_jitter(smooth), order


if __name__ == "__main__":
    main()
