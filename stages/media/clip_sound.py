"""The sound of a clip, which shards do not contain, read from the raw file that the clip was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.ledger import find_decoded_seconds
from stages.engine import sandbox
from stages.engine.cache import hash_file_once, save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.audio import SAMPLES_PER_FRAME, mix_to_mono, read_channels

FULL_SCALE = 2**15


def read_clip_sound(raw: Path, info: Mapping[str, Any], limits: LimitParams) -> NDArray[np.int16]:
    """Sound of a clip of T frames on its own clock: (640 T,) at 16 kHz, mono.

    ``info`` is the clip's json in its shard, ``raw`` the folder of the corpus's files. The file is decoded
    in the sandbox. Raises Drop when the file is missing, is not the clip's source, or has no sound.
    """
    path = find_source(raw, info)
    arrays = sandbox.run_for_arrays(
        lambda entry: make_sound_job(save_clip_sound, path, info, entry),
        limits,
        video_seconds=find_decoded_seconds(info),
    )
    return arrays["sound"]


class SoundWork(Protocol):
    """A module-level function that works on the part of a file that a clip was made from."""

    def __call__(self, path: Path, start: float, n_frames: int, entry: Path) -> Outcome: ...


def make_sound_job(work: SoundWork, path: Path, info: Mapping[str, Any], entry: Path) -> ClipJob:
    """A call of ``work`` in the sandbox. ``info`` is the clip's json, ``entry`` the cache entry to write.

    The sound of a clip that was cut out of a file may be late there: it begins ``sound_shift`` seconds later.
    """
    start = info["source_start"] + (info.get("sound_shift") or 0.0)
    return ClipJob(work, path=path, start=start, n_frames=info["frames"], entry=entry)


def find_source(raw: Path, info: Mapping[str, Any]) -> Path:
    """The file that a clip was made from. Raises Drop when it is missing or is another file."""
    source = PurePosixPath(info["source"])
    if source.is_absolute() or ".." in source.parts:
        raise Drop("outside", f"its source {source} is not below {raw}")
    path = raw / source
    if not path.is_file():
        raise Drop("absent", f"{path} is no file")
    sha256 = hash_file_once(path)  # hundreds of clips may have been cut from it
    if sha256 != info["source_sha256"]:
        raise Drop("changed", f"{path} has sha256 {sha256}, the clip's source has {info['source_sha256']}")
    return path


def save_clip_sound(path: Path, start: float, n_frames: int, entry: Path) -> Outcome:
    """Save a clip's sound as 16 bit samples in a cache entry. Runs in the sandbox."""
    outcome = Outcome()
    save_entry(entry, outcome, {"sound": decode_clip_sound(path, start, n_frames)})
    return outcome


def decode_clip_sound(path: Path, start: float, n_frames: int) -> NDArray[np.int16]:
    """Sound from ``start`` seconds on, (640 n_frames,) at 16 kHz, mono. Raises Drop."""
    mono, _ = mix_to_mono(read_channels(path, start, n_frames * SAMPLES_PER_FRAME))
    return np.clip(np.round(mono * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
