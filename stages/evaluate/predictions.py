"""What anybody drew for a dataset's clips: our own samples, or a folder of another system's videos.

``pipeline sample`` writes crops and says itself what they were drawn to. Videos are named for the clip,
``CLIP.mp4``, or ``CLIP~SPEECH.mp4`` when CLIP was drawn to SPEECH's speech. They show the whole picture,
which the stored matrices bring into the crop, or the crop. They are strangers': only the sandbox opens them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.checksum import file_sha256
from shards.ledger import DROPPED, FAILED, OK
from shards.reader import Dataset, open_cached_dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Mapper, Outcome, StageError
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.crops import ShardParams, supersampling, warp
from stages.media.video import (
    Frame,
    frames_on_clock,
    read_on_clock,
    shown_size,
    video_span,
)
from stages.sample.pairs import (
    CROPS,
    STORY,
    TABLE,
    Pair,
    count_pair_frames,
    make_pairs,
    read_samples,
    write_crops,
)

STAGE = "generated"
VERSION = 2
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".ogv"}
)
OWN, SWAPPED = "own audio", "swapped audio"


@dataclass(frozen=True, slots=True)
class GeneratedClip:
    """One clip of one system: a tar of crops or a video; neither when there is nothing to score."""

    pair: Pair
    file: Path | None = None
    outcome: Outcome = field(default_factory=Outcome)  # why not, when there is none
    whole: Path | None = None  # the video of whole pictures that the crops were cut from


@dataclass(frozen=True, slots=True)
class GeneratedSystem:
    """What stands in one row of the table."""

    row: str
    folder: Path
    drawings: tuple[GeneratedClip, ...]
    story: Mapping[str, Any]  # what drew them, as far as the folder says
    unasked: tuple[str, ...] = ()  # files named for no clip that was asked for


def systems_of(
    name: str, folder: Path, dataset: Dataset, split: str, clips: int | None
) -> list[GeneratedSystem]:
    """The rows that a folder gives: one, or two where a folder of videos has own and swapped speech.

    Every clip that is asked for is in them, found or not. Raises StageError when it is no such folder.
    """
    if (folder / STORY).is_file() or (folder / TABLE).is_file():
        return [_samples(name or "ours", folder, dataset, split, clips)]
    return _videos(name or folder.resolve().name, folder, dataset, split, clips)


def _samples(name: str, folder: Path, dataset: Dataset, split: str, clips: int | None) -> GeneratedSystem:
    """A folder that ``pipeline sample`` wrote."""
    try:
        story = json.loads((folder / STORY).read_text())
        json.dumps(story, allow_nan=False)  # it is written down again
        audio, seed, drawn_from = story["audio"], int(story["params"]["seed"]), story["dataset"]
    except (OSError, ValueError, TypeError, KeyError) as err:
        raise StageError(f"{folder / STORY}: cannot be read ({type(err).__name__}: {err})") from err
    if drawn_from != dataset.manifest["digest"]:
        raise StageError(f"{folder} was drawn from the dataset {str(drawn_from)[:12]}, "
                         f"{dataset.place.address} is {dataset.manifest['digest'][:12]}")  # fmt: skip
    listed = {row["name"]: row for row in read_samples(folder)}
    drawings = []
    for pair in make_pairs(dataset, split, "own" if audio == "own" else "swapped", seed=seed)[:clips]:
        path = folder / CROPS / f"{pair.name}.tar"
        row = listed.get(pair.name)
        if row is None:
            drawings.append(GeneratedClip(pair, outcome=_missing(f"{TABLE} does not list {pair.name}")))
        elif not _lies_in(folder, path):
            drawings.append(GeneratedClip(pair, outcome=_missing(f"there is no {CROPS}/{path.name}")))
        elif file_sha256(path) != row["crops_sha256"]:
            reason = f"{CROPS}/{path.name} is not the file that {TABLE} names"
            drawings.append(GeneratedClip(pair, outcome=Outcome(DROPPED, "altered", reason)))
        else:
            drawings.append(GeneratedClip(pair, path))
    row_name = f"{name} ({OWN if audio == 'own' else SWAPPED})"
    return GeneratedSystem(row_name, folder, tuple(drawings), story)


def _videos(
    name: str, folder: Path, dataset: Dataset, split: str, clips: int | None
) -> list[GeneratedSystem]:
    """A folder of videos, each named for its clip or for the clip and another's speech."""
    own = make_pairs(dataset, split, "own", seed=0)[:clips]
    asked = {pair.clip_id for pair in own}
    found: dict[Pair, list[Path]] = {}
    unasked = []
    try:
        listed = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    except OSError as err:
        raise StageError(f"{folder}: cannot be listed ({err.strerror})") from err
    for path in listed:
        clip_id, tilde, speech = path.stem.partition("~")
        pair = Pair(clip_id, speech if tilde else clip_id)
        if pair.clip_id in asked and pair.audio_clip_id in dataset.clips:
            found.setdefault(pair, []).append(path)
        else:
            unasked.append(path.name)
    swapped = sorted(
        (pair for pair in found if pair.clip_id != pair.audio_clip_id), key=lambda pair: pair.name
    )
    systems = []
    if any(pair in found for pair in own):
        drawings = tuple(_video(folder, pair, found.get(pair, [])) for pair in own)
        systems.append(GeneratedSystem(name, folder, drawings, {}, tuple(unasked)))
    if swapped:
        there = {pair.clip_id for pair in swapped}
        lacking = [
            pair for pair in make_pairs(dataset, split, "swapped", seed=0) if pair.clip_id in asked - there
        ]
        drawings = tuple(_video(folder, pair, found.get(pair, [])) for pair in [*swapped, *lacking])
        systems.append(
            GeneratedSystem(f"{name} ({SWAPPED})", folder, drawings, {}, () if systems else tuple(unasked))
        )
    if not systems:
        raise StageError(f"{folder}: holds neither {TABLE} nor a video named for a clip of the split "
                         f"{split!r}, such as {own[0].clip_id}.mp4")  # fmt: skip
    return systems


def _video(folder: Path, pair: Pair, paths: Sequence[Path]) -> GeneratedClip:
    if not paths:
        return GeneratedClip(pair, outcome=_missing(f"there is no video named {pair.name}"))
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        return GeneratedClip(pair, outcome=Outcome(DROPPED, "ambiguous", f"there are several: {names}"))
    if not _lies_in(folder, paths[0]):
        return GeneratedClip(pair, outcome=_missing(f"{paths[0].name} is no file of this folder"))
    return GeneratedClip(pair, paths[0])


def _missing(reason: str) -> Outcome:
    return Outcome(DROPPED, "missing", reason)


def _lies_in(folder: Path, path: Path) -> bool:
    """Whether it is a file below the folder, and neither a name nor a link that leads out of it."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


@dataclass(frozen=True, slots=True)
class BringTask:
    """A video to be brought into crops."""

    path: Path
    clip_id: str
    n_frames: int  # that the clip and its speech share
    shards: str  # a folder, or an address
    digest: str  # of the dataset there
    entry: Path  # of the cache: what became of it; the crops lie beside it
    limits: LimitParams

    @property
    def crops(self) -> Path:
        return self.entry.with_suffix(".tar")

    def kept(self) -> Outcome | None:
        """What the cache knows of it."""
        entry = load_entry(self.entry)
        if entry is None or (entry[0].status == OK and not self.crops.is_file()):
            return None
        return entry[0]


def brought(
    systems: Sequence[GeneratedSystem],
    dataset: Dataset,
    shards: str,
    cache: Path,
    limits: LimitParams,
    mapper: Mapper,
) -> list[GeneratedSystem]:
    """The systems with a tar of crops, in the cache, in place of each video; or with why there is none.

    ``shards`` is where other processes find the dataset.
    """
    files = {drawing.file: drawing.pair for system in systems for drawing in system.drawings}
    tasks = {
        path: _task(path, pair, dataset, shards, cache, limits)
        for path, pair in files.items()
        if path is not None and path.suffix.lower() in VIDEO_SUFFIXES
    }
    outcomes = {path: task.kept() for path, task in tasks.items()}
    missing = [task for path, task in tasks.items() if outcomes[path] is None]
    sizes = [task.n_frames for task in missing]
    outcomes |= dict(mapper(bring, missing, label="evaluate: videos", sizes=sizes))

    def in_crops(drawing: GeneratedClip) -> GeneratedClip:
        if drawing.file is None or drawing.file not in tasks:
            return drawing
        outcome = outcomes[drawing.file]
        assert outcome is not None, "the cache knew it, or it was brought"
        return GeneratedClip(
            drawing.pair,
            tasks[drawing.file].crops if outcome.status == OK else None,
            outcome,
            drawing.file if outcome.facts.get("whole") else None,
        )

    return [replace(system, drawings=tuple(map(in_crops, system.drawings))) for system in systems]


def _task(
    path: Path, pair: Pair, dataset: Dataset, shards: str, cache: Path, limits: LimitParams
) -> BringTask:
    n_frames = count_pair_frames(dataset, pair)
    made_from = [file_sha256(path), dataset.clips[pair.clip_id]["sha256"], n_frames]
    key = digest(STAGE, VERSION, made_from, versions("av", "opencv-python"))
    entry = entry_path(cache, STAGE, key, ".npz")
    return BringTask(path, pair.clip_id, n_frames, shards, dataset.manifest["digest"], entry, limits)


def bring(task: BringTask) -> tuple[Path, Outcome]:
    """Bring one video into crops; the cache keeps what came of it, unless it failed."""
    words = {
        "path": os.fspath(task.path.absolute()),
        "shards": task.shards,
        "digest": task.digest,
        "clip_id": task.clip_id,
        "n_frames": task.n_frames,
        "crops": os.fspath(task.crops.absolute()),
    }
    outcome = sandbox.run(
        ClipJob("stages.evaluate.predictions:to_crops", words, task.n_frames / VIDEO_FPS, task.limits)
    )
    if outcome.status != FAILED:
        save_entry(task.entry, outcome)
    return task.path, outcome


def to_crops(path: str, shards: str, digest: str, clip_id: str, n_frames: int, crops: str) -> Outcome:
    """A video's frames on the 25 fps clock, each as the clip's crop of it. Runs in the sandbox."""
    cv2.setNumThreads(1)
    clip = read_clip(open_cached_dataset(shards, digest), clip_id)
    size = shown_size(Path(path))
    span = video_span(Path(path))
    n_frames = min(n_frames, frames_on_clock(span))
    pictures = (frame.image for frame in read_on_clock(Path(path), float(span.start), n_frames))
    write_crops(Path(crops), np.stack(list(cropped(pictures, size, clip))))
    return Outcome(facts={"whole": is_whole(size, clip)})


def is_whole(size: tuple[int, int], clip: ClipSample) -> bool:
    """Whether pictures of ``size`` (width, height) show what the clip's source shows."""
    return list(size) == clip.info.get("source_size")


def cropped(pictures: Iterable[Frame], size: tuple[int, int], clip: ClipSample) -> Iterator[Frame]:
    """Crops (S, S, 3) of pictures of ``size`` (width, height): whole ones, or crops already, which may be a
    whole number of times as large. Raises Drop on another size."""
    side = clip.frames.shape[1]
    if is_whole(size, clip):
        supersample = supersampling(clip.affine, ShardParams().max_supersample)
        for picture, matrix in zip(pictures, clip.affine, strict=False):
            yield warp(picture, matrix, side, supersample)
    elif size[0] == size[1] and size[0] % side == 0:
        for picture in pictures:
            yield np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    else:
        whole = "x".join(map(str, clip.info.get("source_size", ["?", "?"])))
        raise Drop(
            "size", f"shows {size[0]}x{size[1]}, expected the source's {whole} or the crop's {side}x{side}"
        )
