"""Generated clips to score: folders of ``pipeline sample``, or of another system's videos.

A folder of samples holds crops and says which speech each was generated from. Videos are named for the clip,
``CLIP.mp4``, or ``CLIP~SPEECH.mp4`` for CLIP with SPEECH's speech. They show the full frame, which the
stored matrices map to the crop, or the crop. They are untrusted: only the sandbox opens them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.checksum import file_sha256
from shards.errors import shorten
from shards.files import is_regular_file
from shards.ledger import DROPPED, FAILED, OK
from shards.reader import Dataset, open_cached_dataset, read_clip
from shards.schema import VIDEO_FPS, ClipSample, Frame
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.sandbox import ClipJob, LimitParams
from stages.engine.stage import Mapper
from stages.media.crops import MAX_SUPERSAMPLE, compute_supersample, warp
from stages.media.presentation import read_shown_video
from stages.media.video import count_frames_at_25fps, read_frames_at_25fps
from stages.sample.pairs import (
    CROPS,
    RUN_INFO,
    TABLE,
    Audio,
    Pair,
    count_pair_frames,
    make_pairs,
    read_sample_info,
    read_samples,
    write_crops,
)

STAGE = "generated"
VERSION = 3
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ts", ".wmv", ".ogv"}
)
OWN, SWAPPED = "own audio", "swapped audio"


@dataclass(frozen=True, slots=True)
class GeneratedClip:
    """One clip of one system: a tar of crops or a video, or why there is nothing to score."""

    pair: Pair
    file: Path | None = None
    outcome: Outcome = field(default_factory=Outcome)  # the reason, when there is no file
    full_frame_video: Path | None = None  # that the crops were cut from


@dataclass(frozen=True, slots=True)
class GeneratedSystem:
    """One row of the table."""

    row: str
    folder: Path
    clips: tuple[GeneratedClip, ...]
    description: Mapping[str, Any]  # what generated them, as far as the folder says
    unmatched_files: tuple[str, ...] = ()  # videos whose name matches no clip to score

    @property
    def name(self) -> str:
        """What both rows of a system have in common, with own and with swapped audio."""
        return self.row.removesuffix(f" ({OWN})").removesuffix(f" ({SWAPPED})")

    @property
    def audio(self) -> Audio:
        """Whose speech the clips have."""
        is_own = all(clip.pair.clip_id == clip.pair.audio_clip_id for clip in self.clips)
        return "own" if is_own else "swapped"


def find_systems(
    name: str, folder: Path, dataset: Dataset, split: str, n_clips: int | None
) -> list[GeneratedSystem]:
    """The rows of a folder: one, or two for a folder of videos with own and with swapped speech.

    Each has every clip to score, whether the folder has it or not. Raises StageError when the folder holds
    neither samples nor videos.
    """
    if (folder / RUN_INFO).exists() or (folder / TABLE).exists():
        return [_read_sample_folder(name or "ours", folder, dataset, split, n_clips)]
    return _read_video_folder(name or folder.resolve().name, folder, dataset, split, n_clips)


def _read_sample_folder(
    name: str, folder: Path, dataset: Dataset, split: str, n_clips: int | None
) -> GeneratedSystem:
    """The row of a folder that ``pipeline sample`` wrote."""
    description = read_sample_info(folder)
    audio, seed = description["audio"], description["params"]["seed"]
    sampled_dataset = description["dataset"]
    if sampled_dataset != dataset.manifest["digest"]:
        raise StageError(
            f"{folder} was generated from the dataset {sampled_dataset[:12]}, "
            f"{dataset.storage.address} is {dataset.manifest['digest'][:12]}"
        )
    rows = {row["name"]: row for row in read_samples(folder)}
    splits = sorted({row["split"] for row in rows.values()})
    if splits and split not in splits:
        raise StageError(f"{folder}: was sampled from the split {shorten(splits[0])}, not {shorten(split)}; "
                         f"--split {shorten(splits[0])}")  # fmt: skip
    pairs = make_pairs(dataset, split, "own" if audio == "own" else "swapped", seed=seed)[:n_clips]
    clips = tuple(_select_crops(folder, pair, rows.get(pair.name)) for pair in pairs)
    return GeneratedSystem(f"{name} ({OWN if audio == 'own' else SWAPPED})", folder, clips, description)


def _select_crops(folder: Path, pair: Pair, row: Mapping[str, Any] | None) -> GeneratedClip:
    """The crops of a pair, checked against the folder's table, of which ``row`` is the pair's."""
    path = folder / CROPS / f"{pair.name}.tar"
    if row is None:
        return _make_missing(pair, f"{TABLE} does not list {pair.name}")
    if row["reason"] is not None:
        return GeneratedClip(pair, outcome=Outcome(FAILED, "not_sampled", row["reason"]))
    if not is_regular_file(path, inside=folder):
        return _make_missing(pair, f"there is no {CROPS}/{path.name}")
    if file_sha256(path) != row["crops_sha256"]:
        reason = f"{CROPS}/{path.name} is not the file that {TABLE} names"
        return GeneratedClip(pair, outcome=Outcome(DROPPED, "altered", reason))
    return GeneratedClip(pair, path)


def _read_video_folder(
    name: str, folder: Path, dataset: Dataset, split: str, n_clips: int | None
) -> list[GeneratedSystem]:
    """The rows of a folder of videos: one for own speech and one for swapped speech, where it has any."""
    own = make_pairs(dataset, split, "own", seed=0)[:n_clips]
    clip_ids = {pair.clip_id for pair in own}
    videos, unmatched_files = _match_videos(_list_videos(folder), clip_ids, dataset)
    systems = []
    if any(pair in videos for pair in own):
        clips = _select_videos(folder, own, videos)
        systems.append(GeneratedSystem(name, folder, clips, {}, unmatched_files))
    if swapped := _list_swapped_pairs(videos, clip_ids, dataset, split):
        clips = _select_videos(folder, swapped, videos)
        row = f"{name} ({SWAPPED})"
        systems.append(GeneratedSystem(row, folder, clips, {}, () if systems else unmatched_files))
    if not systems:
        raise StageError(f"{folder}: holds neither {TABLE} nor a video named for a clip of the split "
                         f"{split!r}, such as {own[0].clip_id}.mp4")  # fmt: skip
    return systems


def _list_videos(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    except OSError as err:
        raise StageError(f"{folder}: cannot be listed ({err.strerror})") from err


def _match_videos(
    paths: Iterable[Path], clip_ids: Collection[str], dataset: Dataset
) -> tuple[dict[Pair, list[Path]], tuple[str, ...]]:
    """Videos by the pair that their name says, and the names of files that match no clip to score."""
    videos: dict[Pair, list[Path]] = {}
    unmatched_files = []
    for path in paths:
        clip_id, tilde, speech = path.stem.partition("~")
        pair = Pair(clip_id, speech if tilde else clip_id)
        if pair.clip_id in clip_ids and pair.audio_clip_id in dataset.clips:
            videos.setdefault(pair, []).append(path)
        else:
            unmatched_files.append(path.name)
    return videos, tuple(unmatched_files)


def _list_swapped_pairs(
    videos: Collection[Pair], clip_ids: Collection[str], dataset: Dataset, split: str
) -> list[Pair]:
    """Pairs with a swapped video, then a pair for every other clip; none when there is no such video."""
    swapped = [pair for pair in videos if pair.clip_id != pair.audio_clip_id]
    if not swapped:
        return []
    missing = set(clip_ids) - {pair.clip_id for pair in swapped}
    return [
        *sorted(swapped, key=lambda pair: pair.name),
        *(pair for pair in make_pairs(dataset, split, "swapped", seed=0) if pair.clip_id in missing),
    ]


def _select_videos(
    folder: Path, pairs: Sequence[Pair], videos: Mapping[Pair, Sequence[Path]]
) -> tuple[GeneratedClip, ...]:
    return tuple(_select_video(folder, pair, videos.get(pair, [])) for pair in pairs)


def _select_video(folder: Path, pair: Pair, paths: Sequence[Path]) -> GeneratedClip:
    """The one video of a pair, or why it cannot be used."""
    if not paths:
        return _make_missing(pair, f"there is no video named {pair.name}")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        return GeneratedClip(pair, outcome=Outcome(DROPPED, "ambiguous", f"there are several: {names}"))
    if not is_regular_file(paths[0], inside=folder):
        return _make_missing(pair, f"{paths[0].name} is not a file in this folder")
    return GeneratedClip(pair, paths[0])


def _make_missing(pair: Pair, reason: str) -> GeneratedClip:
    return GeneratedClip(pair, outcome=Outcome(DROPPED, "missing", reason))


@dataclass(frozen=True, slots=True)
class CropTask:
    """A video to cut crops from."""

    path: Path
    clip_id: str
    n_frames: int  # that the clip and its speech share
    shards: str  # a folder or a web address
    digest: str  # of the dataset there
    cache_entry: Path  # its outcome; the crops are beside it
    limits: LimitParams

    @property
    def crops(self) -> Path:
        return self.cache_entry.with_suffix(".tar")

    def load_outcome(self) -> Outcome | None:
        """The outcome in the cache, if it is complete."""
        entry = load_entry(self.cache_entry)
        if entry is None or (entry[0].status == OK and not self.crops.is_file()):
            return None
        return entry[0]


def crop_videos(
    systems: Sequence[GeneratedSystem],
    dataset: Dataset,
    shards: str,
    cache: Path,
    limits: LimitParams,
    map_tasks: Mapper,
) -> list[GeneratedSystem]:
    """The systems with each video replaced by a tar of crops in the cache, or by why there is none.

    ``shards`` is where other processes find the dataset.
    """
    pairs = {clip.file: clip.pair for system in systems for clip in system.clips}
    tasks = {
        path: _make_crop_task(path, pair, dataset, shards, cache, limits)
        for path, pair in pairs.items()
        if path is not None and path.suffix.lower() in VIDEO_SUFFIXES
    }
    outcomes = {path: task.load_outcome() for path, task in tasks.items()}
    missing = [task for path, task in tasks.items() if outcomes[path] is None]
    sizes = [task.n_frames for task in missing]
    outcomes |= dict(map_tasks(crop_video, missing, label="evaluate: videos", sizes=sizes))

    def replace_video(clip: GeneratedClip) -> GeneratedClip:
        if clip.file is None or clip.file not in tasks:
            return clip
        outcome = outcomes[clip.file]
        assert outcome is not None, "it was in the cache, or its task has run"
        return GeneratedClip(
            clip.pair,
            tasks[clip.file].crops if outcome.status == OK else None,
            outcome,
            clip.file if outcome.facts.get("whole") else None,
        )

    return [replace(system, clips=tuple(map(replace_video, system.clips))) for system in systems]


def _make_crop_task(
    path: Path, pair: Pair, dataset: Dataset, shards: str, cache: Path, limits: LimitParams
) -> CropTask:
    n_frames = count_pair_frames(dataset, pair)
    inputs = [file_sha256(path), dataset.clips[pair.clip_id]["sha256"], n_frames]
    key = digest(STAGE, VERSION, inputs, versions("av", "opencv-python"))
    entry = entry_path(cache, STAGE, key, ".npz")
    return CropTask(path, pair.clip_id, n_frames, shards, dataset.manifest["digest"], entry, limits)


def crop_video(task: CropTask) -> tuple[Path, Outcome]:
    """Cut crops from one video in the sandbox. The outcome is cached unless the job failed."""
    job = ClipJob(
        write_crops_of_video,
        path=task.path.absolute(),
        shards=task.shards,
        dataset_digest=task.digest,
        clip_id=task.clip_id,
        n_frames=task.n_frames,
        crops=task.crops.absolute(),
    )
    outcome = sandbox.run(job, task.limits, video_seconds=task.n_frames / VIDEO_FPS)
    if outcome.status != FAILED:
        save_entry(task.cache_entry, outcome)
    return task.path, outcome


def write_crops_of_video(
    path: Path, shards: str, dataset_digest: str, clip_id: str, n_frames: int, crops: Path
) -> Outcome:
    """Write a tar of the clip's crop of each frame of a video, at 25 fps. Runs in the sandbox."""
    cv2.setNumThreads(1)
    clip = read_clip(open_cached_dataset(shards, dataset_digest), clip_id)
    shown = read_shown_video(path)
    size, span = shown.form.size, shown.span
    n_frames = min(n_frames, count_frames_at_25fps(span))
    images = (frame.image for frame in read_frames_at_25fps(path, float(span.start), n_frames))
    write_crops(crops, np.stack(list(crop_images(images, size, clip))))
    return Outcome(facts={"whole": is_full_frame(size, clip)})


def is_full_frame(size: tuple[int, int], clip: ClipSample) -> bool:
    """Whether images of ``size`` (width, height) are full frames, as large as the clip's source."""
    return list(size) == clip.info.get("source_size")


def crop_images(images: Iterable[Frame], size: tuple[int, int], clip: ClipSample) -> Iterator[Frame]:
    """Crops (S, S, 3) of images of ``size`` (width, height).

    Images are full frames, or crops already, S or a whole multiple of it on each side. Raises Drop for
    another size.
    """
    side = clip.frames.shape[1]
    if is_full_frame(size, clip):
        supersample = compute_supersample(clip.affine, MAX_SUPERSAMPLE)
        for image, matrix in zip(images, clip.affine, strict=False):
            yield warp(image, matrix, side, supersample)
    elif size[0] == size[1] and size[0] % side == 0:
        for image in images:
            yield np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    else:
        source_size = "x".join(map(str, clip.info.get("source_size", ["?", "?"])))
        raise Drop(
            "size",
            f"shows {size[0]}x{size[1]}, expected the source's {source_size} or the crop's {side}x{side}",
        )
