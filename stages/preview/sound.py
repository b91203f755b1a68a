"""What mels sound like, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shards.index import DATASET_NAME
from shards.reader import Dataset
from shards.schema import ShardError
from stages.preview.drawing import FLOOR_DB

if TYPE_CHECKING:
    from stages.mels import MelsParams

GRIFFIN_LIM_STEPS = 64
PEAK = 0.7  # of full scale: the mels know loudness only against the clip's loudest cell


def sound_of(mels: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """What mels (2T, M) sound like: (640 T,) at 16 kHz, peak at PEAK, by Griffin and Lim 1984.

    Sample 0 is the centre of row 0, as in librosa's padded frames that made the rows. Phases are guessed,
    so it sounds hollow; times are kept.
    """
    import librosa  # takes two seconds, and a sheet needs no sound

    from stages.media.audio import SAMPLE_RATE
    from stages.mels import HOP_SAMPLES

    # Silence behind the end, so that a short clip fills a whole window.
    silent_rows = -(-params.n_fft // HOP_SAMPLES)
    padded = np.pad(mels, ((0, silent_rows), (0, 0)), constant_values=min(FLOOR_DB, float(mels.min())))
    magnitudes = librosa.feature.inverse.mel_to_stft(
        librosa.db_to_power(padded.T), sr=SAMPLE_RATE, n_fft=params.n_fft, fmax=params.fmax
    )
    sound = librosa.griffinlim(
        magnitudes,
        n_iter=GRIFFIN_LIM_STEPS,
        hop_length=HOP_SAMPLES,
        win_length=params.win_length,
        n_fft=params.n_fft,
        random_state=0,
    )[: len(mels) * HOP_SAMPLES]
    return np.asarray(PEAK * sound / max(float(np.abs(sound).max()), 1e-9), np.float32)


def mels_params(dataset: Dataset) -> MelsParams:
    """The params that made the mels, by the manifest; without them no sound can be made."""
    from stages.mels import MelsParams

    path = f"{dataset.storage.address}/{DATASET_NAME}"
    params = dataset.manifest.get("params")
    told = params.get("mels") if isinstance(params, Mapping) else None
    if not isinstance(told, Mapping):
        raise ShardError(f"{path}: names no params.mels, without which mels cannot be made to sound")
    try:
        return MelsParams(**told)
    except ValidationError as err:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ShardError(f"{path}: params.mels are not those of this redub ({wrong})") from err
