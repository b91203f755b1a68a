"""Compares the engines that find faces, litert and mediapipe, on every clip of a folder.

    python benchmarks/landmarks.py data/crema-d data/grid --frames 25 --json landmarks.json

Both see the same decoded frames, in turns of five in one process, so that what else runs on the machine
meets both. CPU is that of the engine alone. Distances are between the same points of the same faces; crops
are made as for a dataset, of the largest face, and compared as PSNR. Every clip with another number of faces
is named, and so is the worst one of each figure.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.schema import Frame
from stages.align import AlignParams, align_clip
from stages.engine.outcome import Drop
from stages.landmarks import LandmarksParams, find_points
from stages.media import weights
from stages.media.crops import MAX_SUPERSAMPLE, compute_supersample, crop_frames
from stages.media.faces import Engine, FaceFinder, Points
from stages.media.presentation import read_shown_video
from stages.media.video import ClockFrame, count_frames_at_25fps, read_frames_at_25fps

ENGINES: tuple[Engine, Engine] = ("litert", "mediapipe")
TURN = 5  # frames
SUFFIXES = {".mpg", ".mpeg", ".mp4", ".flv", ".mov", ".mkv", ".avi", ".webm"}
PARAMS = LandmarksParams(cuts="keep", max_gap_frames=100_000, min_face_pixels=0)


@dataclass(frozen=True)
class ClipComparison:
    """Of one clip: distances in px, decibels, CPU milliseconds a frame."""

    clip: str
    frames: int
    faces: int
    other_counts: int  # frames in which the engines see different numbers of faces
    mean_px: float
    p99_px: float
    max_px: float
    psnr_db: float  # infinite for identical crops; nan without crops
    litert_ms: float
    mediapipe_ms: float


class Comparison:
    """Both engines, opened once."""

    def __init__(self, finders: dict[Engine, FaceFinder], max_frames: int | None) -> None:
        self.finders = finders
        self.max_frames = max_frames
        self.turn = 0

    def compare_clip(self, path: Path, name: str) -> ClipComparison:
        frames = self.read_frames(path)
        images = list({id(frame.image): frame.image for frame in frames}.values())
        faces: dict[Engine, dict[int, list[Points]]] = {engine: {} for engine in ENGINES}
        seconds = dict.fromkeys(ENGINES, 0.0)
        for start in range(0, len(images), TURN):
            self.turn += 1
            for engine in ENGINES if self.turn % 2 else ENGINES[::-1]:
                begin = time.process_time()
                for image in images[start : start + TURN]:
                    faces[engine][id(image)] = self.finders[engine](image)
                seconds[engine] += time.process_time() - begin
        distances, others = [], 0
        for image in images:
            one, other = (faces[engine][id(image)] for engine in ENGINES)
            if len(one) == len(other):
                distances += [np.linalg.norm(a - b, axis=1) for a, b in zip(one, other, strict=True)]
            else:
                others += 1
        points = np.concatenate(distances) if distances else np.full(1, math.nan)
        crops = [make_crops(frames, faces[engine]) for engine in ENGINES]
        return ClipComparison(
            clip=name,
            frames=len(images),
            faces=len(distances),
            other_counts=others,
            mean_px=float(points.mean()),
            p99_px=float(np.quantile(points, 0.99)),
            max_px=float(points.max()),
            psnr_db=compute_psnr(crops[0], crops[1]),
            litert_ms=1000 * seconds["litert"] / len(images),
            mediapipe_ms=1000 * seconds["mediapipe"] / len(images),
        )

    def read_frames(self, path: Path) -> list[ClockFrame]:
        """A clip's frames, or as many as are asked for from its middle."""
        span = read_shown_video(path).span
        n_frames = count_frames_at_25fps(span)
        most = self.max_frames or n_frames
        frames: Iterator[ClockFrame] = read_frames_at_25fps(path, float(span.start), n_frames)
        return list(islice(frames, max(0, (n_frames - most) // 2), (n_frames + most) // 2))


def make_crops(frames: list[ClockFrame], faces: dict[int, list[Points]]) -> np.ndarray[Any, Any] | None:
    """The crops of the largest face, or None where there is none."""
    finds: dict[int, list[Points]] = dict(faces)

    def find(image: Frame) -> list[Points]:
        return finds[id(image)]

    try:
        clip = find_points(frames, find, PARAMS)
        matrices, _ = align_clip(clip.points, AlignParams(), clip.jumps)
    except Drop:
        return None
    supersample = compute_supersample(matrices, MAX_SUPERSAMPLE)
    return np.stack(list(crop_frames(iter(frames), matrices, AlignParams().size, supersample)))


def compute_psnr(one: np.ndarray[Any, Any] | None, other: np.ndarray[Any, Any] | None) -> float:
    """Of all the crops of a clip, dB; 0 when only one engine gives crops."""
    if one is None or other is None:
        return math.nan if one is other else 0.0
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def list_clips(paths: list[Path]) -> list[tuple[Path, str]]:
    """Video files of folders, with their names; files as they are."""
    clips = []
    for path in paths:
        if path.is_file():
            clips.append((path, path.name))
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                clips.append((file, f"{path.name}/{file.relative_to(path)}"))
    return clips


def print_results(results: list[ClipComparison]) -> None:
    n_frames = np.array([each.frames for each in results], float)
    ours, theirs = (
        float((np.array([getattr(each, name) for each in results]) * n_frames).sum() / n_frames.sum())
        for name in ("litert_ms", "mediapipe_ms")
    )
    seen = [each for each in results if each.faces]
    cropped = [each for each in results if not math.isnan(each.psnr_db)]
    faces = np.array([each.faces for each in seen], float)
    mean = float((np.array([each.mean_px for each in seen]) * faces).sum() / faces.sum())
    print(f"{len(results)} clips, {n_frames.sum():.0f} frames, {faces.sum():.0f} faces in {len(seen)} clips")
    print(f"mean distance     {mean:.4f} px")
    for title, worst, figure in (
        ("largest p99", max(seen, key=lambda each: each.p99_px), "p99_px"),
        ("largest distance", max(seen, key=lambda each: each.max_px), "max_px"),
        ("lowest PSNR", min(cropped, key=lambda each: each.psnr_db), "psnr_db"),
    ):
        print(f"{title:<18}{getattr(worst, figure):.4g} {figure.split('_')[1]} in {worst.clip}")
    others = [each for each in results if each.other_counts]
    print(f"other numbers of faces in {sum(each.other_counts for each in others)} frames")
    for each in others:
        print(f"  {each.clip}: {each.other_counts} of {each.frames} frames")
    ratios = [each.litert_ms / each.mediapipe_ms for each in results]
    print(f"CPU ms a frame    litert {ours:.2f}, mediapipe {theirs:.2f}: {ours / theirs:.3f}; "
          f"median of the clips' ratios {np.median(ratios):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", type=Path, nargs="+", help="video files, or folders of them")
    parser.add_argument("--frames", type=int, help="of each clip, from its middle; by default all")
    parser.add_argument("--landmarker", default="", help="MediaPipe's face_landmarker.task")
    parser.add_argument("--json", type=Path, help="file for every clip's figures")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    model = weights.find(weights.LANDMARKER, args.landmarker)
    results: list[ClipComparison] = []
    with FaceFinder(model, 4, "litert") as litert, FaceFinder(model, 4, "mediapipe") as mediapipe:
        comparison = Comparison({"litert": litert, "mediapipe": mediapipe}, args.frames)
        for path, name in list_clips(args.paths):
            try:
                results.append(comparison.compare_clip(path, name))
            except (Drop, OSError, ValueError) as err:  # a damaged file of a corpus
                print(f"left out: {name}: {err}")
    print_results(results)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in results], indent=1))


if __name__ == "__main__":
    main()
