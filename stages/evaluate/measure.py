"""Metrics of one clip's frames against the ground truth, as series over time, cached by what they depend on.

All versions of a clip are measured in one sandbox job, which decodes the ground truth once. When the job
fails, each version gets a job of its own, so a file that crashes a decoder costs its own row and no other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.ledger import FAILED
from shards.reader import Dataset, open_cached_dataset, read_clip
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME, VIDEO_FPS, ClipSample, Frames, ShardError
from stages.engine import sandbox
from stages.engine.cache import load_entry, read_entry, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from stages.evaluate.baselines import MouthBank, find_nearest_mouths, freeze_mouth, repeat_previous_frame
from stages.media.pauses import find_silent_frames
from stages.mels import find_reference
from stages.metrics import sync
from stages.metrics.border import border_distances
from stages.metrics.cpbd import cpbd
from stages.metrics.identity import identity_distances
from stages.metrics.motion import smoothness
from stages.metrics.mouth_finder import find_mouths_cached
from stages.metrics.pixels import squared_errors, ssim_by_frame
from stages.sample.pairs import read_crops

VERSION = 4
MIN_SHARE = 0.9  # of a clip's frames that a file must have to be scored

Kind = Literal["truth", "mouths", "held", "previous", "nearest", "crops"]


@dataclass(frozen=True, slots=True)
class MeasureItem:
    """Frames to measure, and the cache entry for the result."""

    kind: Kind
    clip_id: str
    audio_clip_id: str
    n_frames: int  # that the clip and the speech share
    crops: Path | None  # a tar of frames, for the kind ``crops``
    cache_entry: Path
    full_frame_video: Path | None = None  # that the crops were cut from, if there is one


@dataclass(frozen=True, slots=True)
class MeasureTools:
    """What measuring needs besides the frames."""

    shards: str  # a folder or a web address
    digest: str  # of the dataset there
    cache: Path
    bank: Path | None  # its cache entry; None without training clips
    landmarker: Path | None  # None: no mouth metrics
    landmarker_sha256: str
    mouths_only: bool = False  # neither SSIM nor CPBD


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """Items of one clip."""

    items: tuple[MeasureItem, ...]
    tools: MeasureTools
    limits: LimitParams


# Arrays of T frames. Always: identity_distances, border_distances (T,) and smoothness (); cpbd_box,
# cpbd_frame (T,) unless mouths_only. With the clip's own speech, as there is no ground truth for another:
# errors_box, errors_frame (squared, the mean of each frame), and ssim_box, ssim_frame unless mouths_only, all
# (T,). With a landmarker: lips (T, 40, 2), pupils (T, 2, 2). Of the ground truth, from its speech: is_silent
# (T,), and mouth_by_speech (T, 2) if the dataset has speech features. The kind "mouths" has landmarks of the
# clip's own frames alone.
Measurements = dict[str, NDArray[Any]]


def measure_task(task: MeasureTask) -> dict[Path, Outcome]:
    """Measure a task's items into the cache. Returns the failures by cache entry."""
    seconds = sum(item.n_frames for item in task.items) / VIDEO_FPS
    job = ClipJob(measure_items, items=task.items, tools=task.tools)
    outcome = sandbox.run(job, task.limits, video_seconds=seconds)
    if outcome.status != FAILED:
        return {}
    remaining = [item for item in task.items if not item.cache_entry.is_file()]
    if len(task.items) == 1:
        return {item.cache_entry: outcome for item in remaining}
    failures: dict[Path, Outcome] = {}
    for item in remaining:
        failures |= measure_task(replace(task, items=(item,)))
    return failures


def measure_items(items: tuple[MeasureItem, ...], tools: MeasureTools) -> Outcome:
    """Measure items of one clip, each into its cache entry. Runs in the sandbox."""
    cv2.setNumThreads(1)
    dataset = open_cached_dataset(tools.shards, tools.digest)
    clip = read_clip(dataset, items[0].clip_id)
    for item in items:
        try:
            save_entry(item.cache_entry, Outcome(), measure_item(clip, item, dataset, tools))
        except Drop as drop:
            save_entry(item.cache_entry, Outcome.from_drop(drop))
    return Outcome()


@functools.lru_cache(maxsize=1)
def _load_bank(path: Path) -> MouthBank:
    return MouthBank(**read_entry(path)[1])


def measure_item(clip: ClipSample, item: MeasureItem, dataset: Dataset, tools: MeasureTools) -> Measurements:
    """Measure one item against its clip. Raises Drop when there are too few frames."""
    truth = cut_clip(clip, item.n_frames)
    generated = load_item_frames(truth, item, dataset, tools)
    if len(generated) < MIN_SHARE * item.n_frames:
        raise Drop("too_short", f"has {len(generated)} frames, the clip and its speech share {item.n_frames}")
    n_frames = min(len(generated), item.n_frames)
    truth, generated = cut_clip(truth, n_frames), generated[:n_frames]
    measurements: Measurements = (
        {} if item.kind == "mouths" else _measure_pixels(generated, truth, item, tools)
    )
    if item.kind == "truth":
        measurements["is_silent"] = find_silent_frames(truth.mels, find_reference(dataset))
        has_features = sync.has_features(dataset.manifest)
        if has_features and truth.speech is not None and truth.speech.shape[1] == sync.N_FEATURES:
            measurements["mouth_by_speech"] = sync.predict_mouth(truth.speech)
    if tools.landmarker is not None:
        mouths = find_mouths_cached(generated, tools.landmarker, tools.landmarker_sha256, tools.cache)
        measurements |= {"lips": mouths.lips, "pupils": mouths.pupils}
    return measurements


def _measure_pixels(
    generated: Frames, truth: ClipSample, item: MeasureItem, tools: MeasureTools
) -> Measurements:
    """What needs no landmarks."""
    measurements: Measurements = {
        "identity_distances": identity_distances(generated, truth.frames[0], truth.boxes),
        "border_distances": border_distances(generated, truth.frames, truth.boxes),
        "smoothness": np.array(smoothness(generated, truth.frames, truth.boxes)),
    }
    own = item.clip_id == item.audio_clip_id
    if own:
        measurements |= {
            "errors_box": squared_errors(generated, truth.frames, truth.boxes),
            "errors_frame": squared_errors(generated, truth.frames),
        }
    if tools.mouths_only:
        return measurements
    sharpness = cpbd(generated, truth.boxes)
    measurements |= {"cpbd_box": sharpness.box, "cpbd_frame": sharpness.frame}
    if own:
        frame_ssim, box_ssim = ssim_by_frame(generated, truth.frames, truth.boxes)
        measurements |= {"ssim_frame": frame_ssim, "ssim_box": box_ssim}
    return measurements


def load_item_frames(clip: ClipSample, item: MeasureItem, dataset: Dataset, tools: MeasureTools) -> Frames:
    """The frames of an item, for the clip cut to its length. Raises Drop when a file cannot be read."""
    if item.kind in ("truth", "mouths"):
        return clip.frames
    if item.kind == "held":
        return freeze_mouth(clip)
    if item.kind == "previous":
        return repeat_previous_frame(clip)
    if item.kind == "nearest":
        assert tools.bank is not None, "without a bank there are no such items"
        own = item.audio_clip_id == item.clip_id
        speech = clip if own else read_clip(dataset, item.audio_clip_id)
        mels = speech.mels[: MELS_PER_FRAME * item.n_frames]
        return find_nearest_mouths(clip, mels, _load_bank(tools.bank))
    assert item.kind == "crops" and item.crops is not None, item.kind
    try:
        return read_crops(item.crops, clip.frames.shape[1])
    except ShardError as err:
        raise Drop("unreadable", str(err)) from err


def cut_clip(clip: ClipSample, n_frames: int) -> ClipSample:
    """The first frames of a clip."""
    return replace(
        clip,
        frames=clip.frames[:n_frames],
        boxes=clip.boxes[:n_frames],
        mels=clip.mels[: MELS_PER_FRAME * n_frames],
        speech=None if clip.speech is None else clip.speech[: SPEECH_PER_FRAME * n_frames],
        affine=clip.affine[:n_frames],
    )


def load_measurements(path: Path) -> Measurements | Outcome:
    """What a cache entry holds: series, or why there are none."""
    entry = load_entry(path)
    if entry is None:
        return Outcome(FAILED, "gone", f"{path}: the cache's entry is gone or damaged; run again")
    outcome, arrays = entry
    return arrays or outcome
