"""How often a covered mouth is found, and how often a free one is called covered.

    python benchmarks/covers.py data/grid/raw data/crema-d/raw --drawn 3

Looks at all clips as they are, then at ``--drawn`` clips of each folder with an object drawn before the mouth
for some frames: it comes in five frames, stays for a second and leaves. A hand has exactly the colour of the
clip's own cheek.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Frame
from stages.edit.mouth_cover import crop_lower_face, find_covered_mouths
from stages.media import weights
from stages.media.container import find_video_stream, open_media
from stages.media.faces import LOWER_LIP_INNER, UPPER_LIP_INNER, FaceFinder, LowerFace, Points
from stages.media.presentation import decode_frames
from stages.media.video import RgbConverter

SUFFIXES = (".mpg", ".mp4", ".flv", ".mkv", ".mov")
COMES, STAYS, LEAVES, GONE = 25, 30, 50, 55  # instants
CHEEK = 280  # of the face mesh
OBJECTS = ("microphone", "cup", "hand", "object on the lower lip")
Floats = NDArray[np.float32]


def read_images(path: Path) -> list[Frame]:
    with open_media(path) as container:
        convert = RgbConverter(find_video_stream(container))
        return [convert(frame) for _, frame in decode_frames(container)]


def find_largest(find: Callable[[Frame], list[Points]], image: Frame) -> Points | None:
    return max(find(image), key=lambda points: float(np.ptp(points[:, 0])), default=None)


def draw_object(image: Frame, kind: str, centre: Floats, width: float, cheek: Floats) -> Frame:
    """An object before the point ``centre`` (x, y) of a face ``width`` px wide; ``cheek`` (n, n, 3)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
    x, y = (columns - centre[0]) / width, (rows - centre[1]) / width
    if kind == "microphone":
        inside = (np.hypot(x, y - 0.05) < 0.22) | ((abs(x) < 0.1) & (y > 0.05))
        colour = np.full(3, 31.0, np.float32)
    elif kind == "cup":
        inside = (abs(x) < 0.26) & (abs(y - 0.1) < 0.28)
        colour = np.full(3, 232.0, np.float32)
    elif kind == "hand":
        inside = (abs(x) < 0.38) & (abs(y - 0.03) < 0.25)
        tile = np.concatenate([cheek, cheek[::-1]])
        tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
        repeats = (image.shape[0] // len(tile) + 1, image.shape[1] // tile.shape[1] + 1, 1)
        fingers = 1 - 0.25 * np.exp(-60 * ((y - 0.03) / 0.25 * 2 % 1 - 0.5) ** 2)
        colour = np.tile(tile, repeats)[: len(rows), : rows.shape[1]] * fingers[..., None]
    else:
        inside = np.hypot(x, y - 0.16) < 0.16
        colour = np.full(3, 38.0, np.float32)
    edge = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 1.0)[..., None]
    return np.rint(image * (1 - edge) + colour * edge).astype(np.uint8)


def cover_mouth(images: list[Frame], points: list[Points], kind: str) -> list[Frame]:
    """The clip with an object that comes from below at COMES, stays until LEAVES, and is gone at GONE."""
    face = points[COMES]
    width, (x, y) = float(np.ptp(face[:, 0])), face[CHEEK].astype(int)
    reach = max(6, int(0.08 * width))
    cheek = images[COMES][max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach].astype(np.float32)
    covered = []
    for k, image in enumerate(images):
        away = np.clip(max((STAYS - k) / (STAYS - COMES), (k - LEAVES + 1) / (GONE - LEAVES)), 0, 1)
        if away < 1:
            centre = points[k][[UPPER_LIP_INNER, LOWER_LIP_INNER]].mean(axis=0)
            image = draw_object(image, kind, centre + np.float32([0, 1.2 * width * away]), width, cheek)
        covered.append(image)
    return covered


def judge(images: list[Frame], find: Callable[[Frame], list[Points]]) -> NDArray[np.bool_]:
    """Where the rule finds the mouth covered."""
    faces: list[LowerFace | None] = []
    for image in images:
        points = find_largest(find, image)
        faces.append(None if points is None else crop_lower_face(image, points))
    return find_covered_mouths(faces, [])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("folders", nargs="+", type=Path, help="of clips, searched with their subfolders")
    options.add_argument("--drawn", type=int, default=3, help="clips of each folder that get an object")
    options.add_argument("--landmarker", default="")
    args = options.parse_args()
    cv2.setNumThreads(1)
    by_folder: dict[Path, list[Path]] = {}
    for folder in args.folders:
        for path in sorted(each for each in folder.rglob("*") if each.suffix in SUFFIXES):
            by_folder.setdefault(path.parent, []).append(path)
    n_clips = n_frames = 0
    found: dict[str, list[float]] = {kind: [] for kind in OBJECTS}
    n_false = 0
    with FaceFinder(weights.find(weights.LANDMARKER, args.landmarker), max_faces=4) as find:
        for paths in by_folder.values():
            for number, path in enumerate(paths):
                images = read_images(path)
                n_clips, n_frames = n_clips + 1, n_frames + len(images)
                if (is_covered := judge(images, find)).any():
                    print(
                        f"{path}: as it is, called covered at {np.flatnonzero(is_covered).tolist()}",
                        flush=True,
                    )
                if number >= args.drawn or len(images) < GONE + 5:
                    continue
                images = images[:75]
                points = [find_largest(find, image) for image in images]
                whole = [each for each in points if each is not None]
                if len(whole) < len(points):
                    continue
                for kind in OBJECTS:
                    is_covered = judge(cover_mouth(images, whole, kind), find)
                    found[kind].append(float(is_covered[STAYS + 1 : LEAVES - 1].mean()))
                    n_false += int(is_covered[: COMES - 4].sum() + is_covered[GONE + 4 :].sum())
    print(f"\n{n_clips} clips as they are, {n_frames} frames\n")
    print(
        "| object | clips | frames found | clips found wholly | not at all |\n| --- | --- | --- | --- | --- |"
    )
    for kind, shares in found.items():
        if shares:
            whole_share, none = (np.mean([share == value for share in shares]) for value in (1, 0))
            print(f"| {kind} | {len(shares)} | {np.mean(shares):.1%} | {whole_share:.0%} | {none:.0%} |")
    print(f"\nframes called covered before and after an object: {n_false}")


if __name__ == "__main__":
    main()
