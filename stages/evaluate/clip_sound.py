"""The speech of a finished clip, which shards do not hold, from the file that the clip was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.checksum import file_sha256
from shards.schema import VIDEO_FPS
from stages.engine import sandbox
from stages.engine.cache import save_entry
from stages.engine.outcome import Drop, Outcome
from stages.engine.sandbox import LimitParams
from stages.media.audio import SAMPLES_PER_FRAME, read_channels, to_mono

FULL_SCALE = 2**15


def clip_speech(raw: Path, info: Mapping[str, Any], limits: LimitParams) -> NDArray[np.int16]:
    """Sound of a clip of T frames on its own clock: (640 T,) at 16 kHz, mono.

    ``info`` is the clip's json in its shard; ``raw`` the folder of the corpus's files. The file is decoded
    in the sandbox. Raises Drop where it is not there, is another, or has no sound.
    """
    args = {
        "path": str(source_of(raw, info)), "start": info["source_start"], "n_frames": info["frames"],
    }  # fmt: skip
    seconds = info["frames"] / VIDEO_FPS
    return sandbox.run_for_arrays("stages.evaluate.clip_sound:sound_of_file", args, seconds, limits)["sound"]


def source_of(raw: Path, info: Mapping[str, Any]) -> Path:
    """The file that a clip was made of. Raises Drop where it is not there, or is another."""
    source = PurePosixPath(info["source"])
    if source.is_absolute() or ".." in source.parts:
        raise Drop("outside", f"its source {source} is not below {raw}")
    path = raw / source
    if not path.is_file():
        raise Drop("absent", f"{path} is no file")
    if (found := file_sha256(path)) != info["source_sha256"]:
        raise Drop("changed", f"{path} has sha256 {found}, the clip's source has {info['source_sha256']}")
    return path


def sound_of_file(path: str, start: float, n_frames: int, entry: str) -> Outcome:
    """A clip's sound as 16 bit steps, saved in a file. Runs in the sandbox."""
    mono, _ = to_mono(read_channels(Path(path), start, n_frames * SAMPLES_PER_FRAME))
    steps = np.clip(np.round(mono * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    outcome = Outcome()
    save_entry(Path(entry), outcome, {"sound": steps})
    return outcome
