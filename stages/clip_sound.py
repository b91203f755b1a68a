"""The speech of a finished clip, which shards do not hold, from the file that the clip was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.checksum import file_sha256
from shards.ledger import OK
from shards.schema import VIDEO_FPS
from stages import sandbox
from stages.audio import SAMPLES_PER_FRAME, read_channels, to_mono
from stages.cache import load_entry, save_entry
from stages.sandbox import ClipJob, LimitParams
from stages.work import Drop, Outcome

FULL_SCALE = 2**15


def clip_speech(raw: Path, info: Mapping[str, Any], limits: LimitParams) -> NDArray[np.int16]:
    """Sound of a clip of T frames on its own clock: (640 T,) at 16 kHz, mono.

    ``info`` is the clip's json in its shard; ``raw`` the folder of the corpus's files. The file is decoded
    in the sandbox. Raises Drop where it is not there, is another, or has no sound.
    """
    source = PurePosixPath(info["source"])
    if source.is_absolute() or ".." in source.parts:
        raise Drop("outside", f"its source {source} is not below {raw}")
    path = raw / source
    if not path.is_file():
        raise Drop("absent", f"{path} is no file")
    if (found := file_sha256(path)) != info["source_sha256"]:
        raise Drop("changed", f"{path} has sha256 {found}, the clip's source has {info['source_sha256']}")
    with TemporaryDirectory() as folder:
        entry = Path(folder, "sound.npz")
        args = {
            "path": str(path), "start": info["source_start"], "n_frames": info["frames"], "entry": str(entry),
        }  # fmt: skip
        job = ClipJob("stages.clip_sound:sound_of_file", args, info["frames"] / VIDEO_FPS, limits)
        outcome = sandbox.run(job)
        kept = load_entry(entry) if outcome.status == OK else None
    if kept is None:
        raise Drop(outcome.code, outcome.reason)
    return kept[1]["sound"]


def sound_of_file(path: str, start: float, n_frames: int, entry: str) -> Outcome:
    """A clip's sound as 16 bit steps, saved in a file. Runs in the sandbox."""
    mono, _ = to_mono(read_channels(Path(path), start, n_frames * SAMPLES_PER_FRAME))
    steps = np.clip(np.round(mono * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    outcome = Outcome()
    save_entry(Path(entry), outcome, {"sound": steps})
    return outcome
