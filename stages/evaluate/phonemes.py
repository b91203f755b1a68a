"""When p, b and m are said, by a phoneme recogniser: the package `hama`, for clips without word times."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.ledger import FAILED, OK, find_decoded_seconds
from shards.reader import Dataset, open_cached_dataset, read_info
from shards.schema import VIDEO_FPS, ShardError
from stages.engine import sandbox
from stages.engine.cache import digest, entry_path, load_entry, save_entry, versions
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import LimitParams
from stages.engine.stage import Mapper
from stages.evaluate.measure import MeasureTools
from stages.media.audio import SAMPLE_RATE
from stages.media.clip_sound import decode_clip_sound, find_source, make_sound_job

STAGE = "phonemes"
VERSION = 1
PACKAGE = "hama"
CLOSED = frozenset({"p", "pʰ", "p͈", "b", "m"})
# The recogniser marks a sound about two frames after the lips close: there the mean opening of true clips of
# GRID is least.
DELAY_FRAMES = 2


def is_installed() -> bool:
    """Whether there is a recogniser: the extra ``phonemes``."""
    try:
        return bool(metadata.version(PACKAGE))
    except metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class RecogniseTask:
    """A clip in which p, b and m are to be found."""

    clip_id: str
    tools: MeasureTools  # the dataset
    raw: Path  # folder of the corpus's files
    cache_entry: Path
    limits: LimitParams


def find_closures_by_sound(
    dataset: Dataset,
    clip_ids: Sequence[str],
    raw: Path,
    tools: MeasureTools,
    limits: LimitParams,
    map_tasks: Mapper,
) -> dict[str, list[int] | Outcome]:
    """Frames in which p, b and m close the lips, by clip id, or why they are not known.

    Needs the package (``is_installed``). What was found is cached.
    """
    tasks = []
    for clip_id in clip_ids:
        libraries = versions(PACKAGE, "av", "numpy", "soxr")
        key = digest(STAGE, VERSION, dataset.clips[clip_id]["sha256"], libraries)  # it covers the source's
        entry = entry_path(tools.cache, STAGE, key, ".npz")
        tasks.append(RecogniseTask(clip_id, tools, raw.absolute(), entry, limits))
    found = {task.clip_id: _load_closures(task.cache_entry) for task in tasks}
    missing = [task for task in tasks if found[task.clip_id] is None]
    sizes = [dataset.clips[task.clip_id]["frames"] for task in missing]
    outcomes = dict(map_tasks(recognise_clip, missing, label="evaluate: phonemes", sizes=sizes))
    for task in missing:
        found[task.clip_id] = _load_closures(task.cache_entry)
        if found[task.clip_id] is None and outcomes[task.clip_id].status == OK:
            gone = f"{task.cache_entry}: the cache's entry is gone; run again"
            outcomes[task.clip_id] = Outcome(FAILED, "gone", gone)
    return {clip_id: outcomes[clip_id] if each is None else each for clip_id, each in found.items()}


def _load_closures(path: Path) -> list[int] | None:
    entry = load_entry(path)
    return None if entry is None else entry[1]["closures"].tolist()


def recognise_clip(task: RecogniseTask) -> tuple[str, Outcome]:
    """Find a clip's closures and cache them; says why there are none."""
    try:
        info = read_info(open_cached_dataset(task.tools.shards, task.tools.digest), task.clip_id)
        job = make_sound_job(save_closures, find_source(task.raw, info), info, task.cache_entry)
    except Drop as drop:
        return task.clip_id, Outcome.from_drop(drop)
    except (ShardError, OSError) as err:
        return task.clip_id, Outcome(FAILED, "unreadable", str(err))
    return task.clip_id, sandbox.run(job, task.limits, video_seconds=find_decoded_seconds(info))


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
    marks = (round(span.start_ms * VIDEO_FPS / 1000) for span in spans if span.phoneme in CLOSED)
    return sorted({mark - DELAY_FRAMES for mark in marks if mark >= DELAY_FRAMES})


@functools.cache
def _load_model() -> Any:
    from hama.asr import ASRModel  # an extra

    return ASRModel()
