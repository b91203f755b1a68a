"""IMAGE against VIDEO mode of the face landmarker: time, jitter, and whether company changes the result.

    python benchmarks/landmarks.py data/grid/raw/s1/*.mpg

Jitter is the mean second difference of the points in px, after alignment's 7-frame mean too. "Order" is
how far the points of one clip move when the same landmarker has seen another clip first.
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
from stages.media.faces import FaceFinder
from stages.media.video import count_frames_at_25fps, read_frames_at_25fps, read_video_span

Frames = list[np.ndarray[Any, Any]]


def load(path: Path) -> Frames:
    span = read_video_span(path)
    return [frame.image for frame in read_frames_at_25fps(path, float(span.start), count_frames_at_25fps(span))]


def video_mode(model: Path) -> vision.FaceLandmarker:
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=os.fspath(model)), running_mode=vision.RunningMode.VIDEO
    )
    return vision.FaceLandmarker.create_from_options(options)


def by_video(landmarker: vision.FaceLandmarker, frames: Frames, first: int = 0) -> np.ndarray[Any, Any]:
    height, width = frames[0].shape[:2]
    points = []
    for k, frame in enumerate(frames, start=first):
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame)
        (face,) = landmarker.detect_for_video(image, k * 1000 // VIDEO_FPS).face_landmarks
        points.append([(point.x * width, point.y * height) for point in face])
    return np.array(points)


def jitter(points: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1).mean())


def timed(work: Callable[[], np.ndarray[Any, Any]], n_frames: int) -> tuple[np.ndarray[Any, Any], float]:
    started = time.process_time()
    result = work()
    return result, 1000 * (time.process_time() - started) / n_frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--landmarker", default="")
    asked = parser.parse_args()
    model = weights.find(weights.LANDMARKER, asked.landmarker)
    clips = [load(path) for path in asked.clips]
    rows: dict[str, list[tuple[float, float, float, float]]] = {"IMAGE": [], "VIDEO": []}
    for i, frames in enumerate(clips):
        other = clips[i - 1]
        with FaceFinder(model, max_faces=1) as find:
            find(frames[0])
            alone, cost = timed(lambda f=frames: np.array([find(frame)[0] for frame in f]), len(frames))
            find(other[0])
            after = np.array([find(frame)[0] for frame in frames])
        smooth = centred_mean(alone.astype(np.float64), 7)
        rows["IMAGE"].append((cost, jitter(alone), jitter(smooth), float(np.abs(after - alone).max())))
        with video_mode(model) as landmarker:
            alone, cost = timed(lambda f=frames: by_video(landmarker, f), len(frames))
        with video_mode(model) as landmarker:
            by_video(landmarker, other)
            after = by_video(landmarker, frames, first=len(other))
        smooth = centred_mean(alone, 7)
        rows["VIDEO"].append((cost, jitter(alone), jitter(smooth), float(np.abs(after - alone).max())))
    print(f"{len(clips)} clips, {sum(map(len, clips))} frames")
    print(f"{'mode':<8}{'CPU ms/frame':>14}{'jitter px':>12}{'after mean':>12}{'order, max px':>15}")
    for mode, values in rows.items():
        cost, raw, smooth_jitter, order = np.array(values).T
        print(
            f"{mode:<8}{np.median(cost):>14.1f}{raw.mean():>12.3f}{smooth_jitter.mean():>12.3f}"
            f"{order.max():>15.2f}"
        )


if __name__ == "__main__":
    main()
