"""What one clip's frames show beside the truth: series over time, kept by what they were made from.

All that is shown of a clip is measured in one job, in the sandbox, where the truth is decoded once. When the
job fails, each part has one of its own: so a file that brings a decoder down costs its own row and no other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.ledger import FAILED
from shards.reader import Dataset, open_cached_dataset, read_clip
from shards.schema import MELS_PER_FRAME, VIDEO_FPS, ClipSample, ShardError
from stages.engine import sandbox
from stages.engine.cache import load_entry, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from stages.evaluate.baselines import Bank, held, nearest, previous
from stages.evaluate.metrics.cpbd import cpbd
from stages.evaluate.metrics.identity import identity_distances
from stages.evaluate.metrics.motion import smoothness
from stages.evaluate.metrics.pixels import squared_errors, ssim_by_frame
from stages.evaluate.mouths import mouths_of
from stages.sample.pairs import Frames, read_crops

VERSION = 1
MIN_SHARE = 0.9  # of a clip's frames, that must be there to be scored

Kind = Literal["truth", "held", "previous", "nearest", "crops"]


@dataclass(frozen=True, slots=True)
class MeasureItem:
    """Frames to measure, and the entry of the cache that what is found goes to."""

    kind: Kind
    clip_id: str
    audio_clip_id: str
    n_frames: int  # that the clip and the speech share
    crops: str  # a tar of frames, where the kind is that
    entry: str
    whole: str = ""  # the video of whole pictures that the crops were cut from, if there is one


@dataclass(frozen=True, slots=True)
class MeasureTools:
    """What measuring needs besides the frames."""

    shards: str  # a folder, or an address
    digest: str  # of the dataset there
    cache: str
    bank: str  # entry of the cache; empty without training clips
    landmarker: str  # empty: mouths are not looked at
    landmarker_sha256: str


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """Items of one clip."""

    items: tuple[MeasureItem, ...]
    tools: MeasureTools
    limits: LimitParams


# Of T frames. Always: identity_distances, cpbd_box, cpbd_frame, all (T,), and smoothness (). Of a clip with
# its own speech, since the truth shows no other: errors_box, errors_frame (squared, each frame's mean),
# ssim_box, ssim_frame, all (T,).
# With a landmarker: lips (T, 40, 2), pupils (T, 2, 2).
Measured = dict[str, NDArray[Any]]


def compute(task: MeasureTask) -> dict[str, Outcome]:
    """Measure a task's items; returns the failures, by entry. The cache keeps everything else."""
    seconds = sum(item.n_frames for item in task.items) / VIDEO_FPS
    words = {"items": [asdict(item) for item in task.items], "tools": asdict(task.tools)}
    outcome = sandbox.run(ClipJob("stages.evaluate.measure:measure_items", words, seconds, task.limits))
    if outcome.status != FAILED:
        return {}
    left = [item for item in task.items if not Path(item.entry).is_file()]
    if len(task.items) == 1:
        return {item.entry: outcome for item in left}
    failed: dict[str, Outcome] = {}
    for item in left:
        failed |= compute(replace(task, items=(item,)))
    return failed


def measure_items(items: Sequence[dict[str, Any]], tools: dict[str, Any]) -> Outcome:
    """Measure items of one clip, each into its entry. Runs in the sandbox."""
    cv2.setNumThreads(1)
    kit = MeasureTools(**tools)
    dataset = open_cached_dataset(kit.shards, kit.digest)
    clip = read_clip(dataset, items[0]["clip_id"])
    for words in items:
        item = MeasureItem(**words)
        try:
            save_entry(Path(item.entry), Outcome(), measure(clip, item, dataset, kit))
        except Drop as drop:
            save_entry(Path(item.entry), Outcome.dropped(drop))
    return Outcome()


@functools.lru_cache(maxsize=1)
def _bank(path: str) -> Bank:
    entry = load_entry(Path(path))
    assert entry is not None, f"{path}: the bank is made before it is asked for"
    return Bank(**entry[1])


def measure(clip: ClipSample, item: MeasureItem, dataset: Dataset, tools: MeasureTools) -> Measured:
    """Measure one item against its clip. Raises Drop when there is too little to score."""
    truth = cut_to(clip, item.n_frames)
    drawn = frames_of(truth, item, dataset, tools)
    if len(drawn) < MIN_SHARE * item.n_frames:
        raise Drop("too_short", f"has {len(drawn)} frames, the clip and its speech share {item.n_frames}")
    n_frames = min(len(drawn), item.n_frames)
    truth, drawn = cut_to(truth, n_frames), drawn[:n_frames]
    sharpness = cpbd(drawn, truth.boxes)
    found: Measured = {
        "cpbd_box": sharpness.box,
        "cpbd_frame": sharpness.frame,
        "identity_distances": identity_distances(drawn, truth.frames[0], truth.boxes),
        "smoothness": np.array(smoothness(drawn, truth.frames, truth.boxes)),
    }
    if item.clip_id == item.audio_clip_id:
        found["errors_box"] = squared_errors(drawn, truth.frames, truth.boxes)
        found["errors_frame"] = squared_errors(drawn, truth.frames)
        found["ssim_frame"], found["ssim_box"] = ssim_by_frame(drawn, truth.frames, truth.boxes)
    if tools.landmarker:
        mouths = mouths_of(drawn, Path(tools.landmarker), tools.landmarker_sha256, Path(tools.cache))
        found |= {"lips": mouths.lips, "pupils": mouths.pupils}
    return found


def frames_of(clip: ClipSample, item: MeasureItem, dataset: Dataset, tools: MeasureTools) -> Frames:
    """The frames of an item, for the clip cut to its length. Raises Drop when a file has none."""
    if item.kind == "truth":
        return clip.frames
    if item.kind == "held":
        return held(clip)
    if item.kind == "previous":
        return previous(clip)
    if item.kind == "nearest":
        own = item.audio_clip_id == item.clip_id
        speech = clip if own else read_clip(dataset, item.audio_clip_id)
        return nearest(clip, speech.mels[: MELS_PER_FRAME * item.n_frames], _bank(tools.bank))
    assert item.kind == "crops", item.kind
    try:
        return read_crops(Path(item.crops), clip.frames.shape[1])
    except ShardError as err:
        raise Drop("unreadable", str(err)) from err


def cut_to(clip: ClipSample, n_frames: int) -> ClipSample:
    """The first frames of a clip."""
    return replace(
        clip,
        frames=clip.frames[:n_frames],
        boxes=clip.boxes[:n_frames],
        mels=clip.mels[: MELS_PER_FRAME * n_frames],
        affine=clip.affine[:n_frames],
    )


def load_measured(path: Path) -> Measured | Outcome:
    """What an entry of the cache holds: series, or why there are none."""
    entry = load_entry(path)
    if entry is None:
        return Outcome(FAILED, "gone", f"{path}: the cache's entry is gone or damaged; run again")
    outcome, arrays = entry
    return arrays or outcome
