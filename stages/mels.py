"""Stage 4: the sound as mel rows, exactly two for each video frame.

Row j is centred on j / 50 s of the clip's clock. librosa with the paper's parameters; see docs/mels.md
for what its code really does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.schema import MEL_FPS, MELS_PER_FRAME
from shards.table import Row
from stages.clips import carry_ledger
from stages.engine import per_clip as clipwise
from stages.engine.cache import digest, save_entry, versions
from stages.engine.outcome import Mapper, Outcome, Report, Work
from stages.engine.parts import Part
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, read_channels, to_mono

STAGE = "mels"
VERSION = 1
COLUMNS = {"mels": np.float32}  # (2T, n_mels), dB
HOP_SAMPLES = SAMPLE_RATE // MEL_FPS
ROWS_AT_ONCE = 4096  # 82 s; a multiple of 16, so that BLAS adds in the same order as in the whole


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MelsParams:
    """The spectrogram, as in the paper's section 3.3.2 and its code."""

    n_fft: int = Field(default=2048, ge=64)
    win_length: int = Field(default=640, ge=16)  # samples: 40 ms
    n_mels: int = Field(default=256, ge=8)
    fmax: float = Field(default=8000.0, gt=0, le=SAMPLE_RATE / 2)  # Hz
    top_db: float = Field(default=80.0, gt=0)  # below the clip's loudest cell everything is floor

    def __post_init__(self) -> None:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}")


def mel_rows(sound: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """Mono sound of 640 T - 1 samples at 16 kHz -> (2T, n_mels) dB in [-top_db, 0].

    One sample less than T frames, as in the paper's code: librosa then gives 2T rows and not one more.
    """
    import librosa  # takes two seconds: only who computes mels pays them

    decibel = librosa.power_to_db(mel_power(sound, params), ref=np.max, top_db=params.top_db)
    return np.ascontiguousarray(decibel.T, dtype=np.float32)


def mel_power(sound: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """Power in each mel band, (n_mels, rows): librosa's of the whole, bit for bit, some rows at a time.

    The spectrum itself is eight times larger, and an hour's does not fit in memory.
    """
    import librosa

    n_rows = 1 + len(sound) // HOP_SAMPLES
    padded = np.pad(sound, params.n_fft // 2)
    power = np.empty((params.n_mels, n_rows), np.float32)
    # The last stretch takes the rest: BLAS adds otherwise where it has few columns.
    bounds = [*range(0, max(n_rows - ROWS_AT_ONCE, 1), ROWS_AT_ONCE), n_rows]
    for first, last in pairwise(bounds):
        power[:, first:last] = librosa.feature.melspectrogram(
            y=padded[first * HOP_SAMPLES : (last - 1) * HOP_SAMPLES + params.n_fft],
            sr=SAMPLE_RATE,
            n_fft=params.n_fft,
            win_length=params.win_length,
            hop_length=HOP_SAMPLES,
            n_mels=params.n_mels,
            fmax=params.fmax,
            center=False,
        )
    return power


def samples_for(n_frames: int) -> int:
    """How much sound goes with ``n_frames``."""
    return n_frames * SAMPLES_PER_FRAME - 1


def mels_of_file(path: str, start: float, n_frames: int, params: dict[str, Any], entry: str) -> Outcome:
    """Mel rows of a video's sound, saved in the cache. Runs in the sandbox."""
    sound, notes = to_mono(read_channels(Path(path), start, samples_for(n_frames)))
    rows = mel_rows(sound, MelsParams(**params))
    expected = n_frames * MELS_PER_FRAME
    assert len(rows) == expected, f"{n_frames} frames need {expected} mel rows, librosa gave {len(rows)}"
    outcome = Outcome(notes=tuple(notes))
    save_entry(Path(entry), outcome, {"mels": rows})
    return outcome


def warm_up() -> None:
    """Load librosa before the first clip's deadline runs.

    On a new machine its first use compiles for half a minute into numba's cache. Two processes that
    write that cache at once have crashed each other (librosa#1998), so they take turns.
    """
    import platformdirs
    from filelock import FileLock

    folder = platformdirs.user_cache_path("redub", ensure_exists=True)
    with FileLock(folder / "librosa.lock"):
        mel_rows(np.zeros(samples_for(2), np.float32) + 0.5, MelsParams())


def run(
    work: Work,
    params: MelsParams,
    parts: Sequence[Part],
    limits: LimitParams,
    mapper: Mapper,
) -> Report:
    """Write ``mels/<part>.parquet``: mel rows of every usable clip."""
    known = digest(STAGE, VERSION, params, versions("librosa", "soxr", "av"))

    def job(row: Row, entry: Path) -> ClipJob:
        args = clipwise.clip_args(work, row, entry) | {"params": asdict(params)}
        return ClipJob("stages.mels:mels_of_file", args, row["video_seconds"], limits)

    report = clipwise.run(STAGE, work, parts, known, job, COLUMNS, mapper)
    carry_ledger(work, ("landmarks", "align", STAGE), parts)
    return report
