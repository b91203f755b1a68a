"""Stage 4: the sound as mel rows, exactly two for each video frame.

Row j is centred on j / 50 s of the clip's clock. librosa with the paper's parameters; docs/dataset.md says
what the paper's code does with them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as params_dataclass

from shards.index import DATASET_NAME, get_params_section
from shards.ledger import find_sound_start
from shards.reader import Dataset
from shards.schema import MAX_MELS, MEL_FPS, MELS_PER_FRAME, ShardError
from shards.table import Row
from stages.engine.cache import digest, save_entry, versions
from stages.engine.outcome import Outcome
from stages.engine.parts import Part
from stages.engine.per_clip import run_per_clip
from stages.engine.sandbox import ClipJob
from stages.engine.stage import Context, Report, Work
from stages.media.audio import (
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SILENCE_PEAK,
    measure_peak,
    mix_to_mono,
    read_channels,
)
from stages.media.reference import Reference, compute_reference

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

STAGE = "mels"
VERSION = 1
# That decide the rows: librosa's transform is SciPy's, and NumPy's BLAS applies its filters.
LIBRARIES = ("av", "librosa", "numpy", "scipy", "soxr")
COLUMNS = {"mels": np.float32}  # (2T, n_mels), dB
HOP_SAMPLES = SAMPLE_RATE // MEL_FPS
MIN_POWER = 1e-10  # as in librosa.power_to_db
SILENT_WAIT_SECONDS = 20.0  # for the first use of librosa by other processes: once compiled it takes 2 s each
ROWS_AT_ONCE = 4096  # 82 s; a multiple of 16, so that BLAS adds in the same order as for the whole


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MelsParams:
    """The spectrogram, as in the paper's section 3.3.2 and its code."""

    n_fft: int = Field(default=2048, ge=64, le=2**16)  # samples: 4 s are no spectrum of a moment
    win_length: int = Field(default=640, ge=16, le=2**16)  # samples: 40 ms
    n_mels: int = Field(default=256, ge=8, le=MAX_MELS)
    fmax: float = Field(default=8000.0, gt=0, le=SAMPLE_RATE / 2)  # Hz
    # The floor, below the reference. float32 power spans 380 dB.
    top_db: float = Field(default=80.0, gt=0, le=380)
    # 0 dB is the loudest cell of the whole clip, as in the paper, or of a window around each row. Clips that
    # are not longer than the window have the same mels by both. In a long recording the same words keep
    # their level by the window alone: docs/performance.md has the measurement.
    reference: Literal["clip", "windowed"] = "windowed"
    window_seconds: float = Field(default=3.0, ge=1, le=60)
    # How far the reference may fall below the loudest cell of the recording, dB: more would make the noise
    # of a long pause as loud as speech.
    max_boost_db: float = Field(default=20.0, ge=0, le=380)

    def __post_init__(self) -> None:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}")


def load_mels_params(section: Mapping[str, Any]) -> MelsParams:
    """The params of a dataset's mels from its manifest. Raises pydantic's ValidationError.

    Datasets that do not name their reference were made when the whole clip was the only one.
    """
    return MelsParams(**{"reference": "clip", **section})


def read_mels_params(dataset: Dataset) -> MelsParams:
    """The params of the dataset's mels, from its manifest. Raises ShardError if it has none."""
    path = f"{dataset.storage.address}/{DATASET_NAME}"
    section = get_params_section(dataset.manifest, "mels")
    if not section:
        raise ShardError(f"{path}: has no params.mels")
    try:
        return load_mels_params(section)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ShardError(f"{path}: params.mels are not those of this version of redub ({problems})") from err


def get_reference(params: MelsParams) -> Reference | None:
    """What 0 dB is, if it follows the sound; None if it is the loudest cell of the whole clip."""
    if params.reference == "clip":
        return None
    return Reference(round(params.window_seconds * MEL_FPS), params.max_boost_db)


def find_reference(dataset: Dataset) -> Reference | None:
    """``get_reference`` of a dataset's mels; None if it says nothing of them. Raises ShardError."""
    has_params = get_params_section(dataset.manifest, "mels")
    return get_reference(read_mels_params(dataset)) if has_params else None


def compute_mel_rows(sound: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """Mono sound of 640 T - 1 samples at 16 kHz -> (2T, n_mels) dB in [-top_db, 0].

    One sample less than T frames, as in the paper's code: librosa then returns 2T rows and not one more.
    """
    import librosa  # takes two seconds: only for code that computes mels

    power = compute_mel_power(sound, params)
    reference = get_reference(params)
    if reference is None or power.shape[1] <= reference.window_rows:
        whole: NDArray[np.float32] = librosa.power_to_db(power, ref=np.max, top_db=params.top_db)
        return np.ascontiguousarray(whole.T, dtype=np.float32)
    # In place: the mels of an hour are 180 MB.
    decibel: NDArray[np.float32] = np.maximum(power, MIN_POWER, out=power)
    np.log10(decibel, out=decibel)
    decibel *= 10
    decibel -= compute_reference(decibel.max(axis=0), reference)
    np.clip(decibel, -params.top_db, 0, out=decibel)
    return np.ascontiguousarray(decibel.T, dtype=np.float32)


def compute_mel_power(sound: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """Power in each mel band, (n_mels, rows): bit for bit librosa's result, computed some rows at a time.

    The spectrum itself is eight times larger, and that of an hour does not fit in memory. One BLAS thread:
    the number of threads changes the order of sums, and so the last bits.
    """
    import librosa

    n_rows = 1 + len(sound) // HOP_SAMPLES
    padded = np.pad(sound, params.n_fft // 2)
    power = np.empty((params.n_mels, n_rows), np.float32)
    # The last block takes the remainder: BLAS adds in another order when it has few columns.
    bounds = [*range(0, max(n_rows - ROWS_AT_ONCE, 1), ROWS_AT_ONCE), n_rows]
    with _find_blas().limit(limits=1, user_api="blas"):
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


@functools.cache
def _find_blas() -> ThreadpoolController:
    """NumPy's BLAS among the loaded libraries, which takes as long to find as the mels of a second."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def count_samples(n_frames: int) -> int:
    """Samples of sound that belong to ``n_frames``."""
    return n_frames * SAMPLES_PER_FRAME - 1


def compute_mels_of_file(
    path: Path, start: float, n_frames: int, params: MelsParams, entry: Path, *, may_be_silent: bool = False
) -> Outcome:
    """Compute the mel rows of a file's sound and save them as a cache entry. Runs in the sandbox.

    Raises Drop on silence, which is no example to learn from; for an edit it is sound like any other.
    """
    channels, expected = read_channels(path, start, count_samples(n_frames)), n_frames * MELS_PER_FRAME
    if may_be_silent and measure_peak(channels) < SILENCE_PEAK:
        rows = np.full((expected, params.n_mels), -params.top_db, np.float32)
        notes: list[str] = []
    else:
        sound, notes = mix_to_mono(channels)
        rows = compute_mel_rows(sound, params)
    assert len(rows) == expected, f"{n_frames} frames need {expected} mel rows, librosa returned {len(rows)}"
    outcome = Outcome(notes=tuple(notes))
    save_entry(entry, outcome, {"mels": rows})
    return outcome


def warm_up(_: Mapping[str, Any]) -> None:
    """Load librosa before the first clip's deadline starts.

    On a new machine its first use compiles for half a minute into numba's cache. Two processes that write
    that cache at the same time can crash each other (librosa#1998), so a lock keeps them apart.
    """
    import platformdirs
    from filelock import FileLock

    from shards.locks import hold_lock

    lock = FileLock(platformdirs.user_cache_path("redub", ensure_exists=True) / "librosa.lock")
    message = f"waiting for another process that prepares librosa; it has locked {lock.lock_file}"
    with hold_lock(lock, message, silent_seconds=SILENT_WAIT_SECONDS):
        compute_mel_rows(np.zeros(count_samples(2), np.float32) + 0.5, MelsParams())


def make_params_digest(params: MelsParams | Mapping[str, Any]) -> str:
    """Digest of everything that decides a clip's mels besides its sound."""
    return digest(STAGE, VERSION, params, versions(*LIBRARIES))


def run(work: Work, parts: Sequence[Part], params: MelsParams, context: Context) -> Report:
    """Write ``mels/<part>.parquet``: the mel rows of every usable clip."""

    def make_job(row: Row, entry: Path) -> ClipJob:
        return ClipJob(
            compute_mels_of_file,
            path=work.raw.resolve() / row["path"],
            start=find_sound_start(row),
            n_frames=row["frames"],
            params=params,
            entry=entry,
        )

    return run_per_clip(
        STAGE,
        work,
        parts,
        context,
        params_digest=make_params_digest(params),
        make_job=make_job,
        columns=COLUMNS,
    )
