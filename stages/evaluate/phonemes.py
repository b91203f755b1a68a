"""When p, b and m are said in clips without word times, by a phoneme recogniser: the package `hama`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset, read_info
from shards.schema import VIDEO_FPS
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from stages.engine.stage import Mapper
from stages.evaluate.clip_sound import decode_clip_sound, find_source
from stages.media.audio import SAMPLE_RATE

STAGE = "phonemes"
VERSION = 1
PACKAGE = "hama"
CLOSED = frozenset({"p", "b", "m"})
# The recogniser marks the burst, which ends the closure. In true clips of GRID the mean opening is least two
# frames before it.
BURST_FRAMES = 2


def is_installed() -> bool:
    """Whether there is a recogniser: the extra ``phonemes``."""
    return importlib.util.find_spec(PACKAGE) is not None


@dataclass(frozen=True, slots=True)
class RecogniseTask:
    """A clip in which p, b and m are to be found."""

    clip_id: str
    raw: Path  # folder of the corpus's files
    info: Mapping[str, Any]  # the clip's json in its shard
    cache_entry: Path
    limits: LimitParams


def find_closures_by_sound(
    dataset: Dataset,
    clip_ids: list[str],
    raw: Path,
    cache: Path,
    limits: LimitParams,
    map_tasks: Mapper,
) -> dict[str, list[int]]:
    """Frames in which p, b and m close the lips, by clip id. Clips whose sound cannot be read are left out.

    Needs the package (``is_installed``). Results are cached by the source's bytes and the library versions.
    """
    tasks = []
    for clip_id in clip_ids:
        info = read_info(dataset, clip_id)
        place = [info["source_sha256"], info["source_start"], info["frames"]]
        key = digest(STAGE, VERSION, place, versions(PACKAGE, "av", "numpy", "soxr"))
        entry = entry_path(cache, STAGE, key, ".npz")
        tasks.append(RecogniseTask(clip_id, raw.absolute(), info, entry.absolute(), limits))
    missing = [task for task in tasks if load_entry(task.cache_entry) is None]
    sizes = [task.info["frames"] for task in missing]
    for _ in map_tasks(recognise_clip, missing, label="evaluate: phonemes", sizes=sizes):
        pass
    entries = {task.clip_id: load_entry(task.cache_entry) for task in tasks}
    return {clip_id: entry[1]["closures"].tolist() for clip_id, entry in entries.items() if entry is not None}


def recognise_clip(task: RecogniseTask) -> None:
    """Find a clip's closures and cache them; no entry when its sound cannot be read."""
    try:
        source = find_source(task.raw, task.info)
    except Drop:
        return
    n_frames = task.info["frames"]
    job = ClipJob(
        save_closures,
        path=source,
        start=task.info["source_start"],
        n_frames=n_frames,
        entry=task.cache_entry,
    )
    sandbox.run(job, task.limits, video_seconds=n_frames / VIDEO_FPS)


def save_closures(path: Path, start: float, n_frames: int, entry: Path) -> Outcome:
    """Save the frames in which p, b and m close the lips in a cache entry. Runs in the sandbox."""
    outcome = Outcome()
    closures = recognise_closures(decode_clip_sound(path, start, n_frames))
    save_entry(entry, outcome, {"closures": np.array(closures, np.int64)})
    return outcome


def recognise_closures(sound: NDArray[np.int16]) -> list[int]:
    """Frames in which p, b and m close the lips, in order: (N,) at 16 kHz, mono."""
    model = _load_model()
    spans = model.phoneme_spans(model.transcribe_waveform(sound, SAMPLE_RATE))
    bursts = [span.start_ms for span in spans if span.phoneme in CLOSED]
    return [max(0, round(burst * VIDEO_FPS / 1000) - BURST_FRAMES) for burst in bursts]


@functools.cache
def _load_model() -> Any:
    from hama.asr import ASRModel  # an extra

    return ASRModel()
