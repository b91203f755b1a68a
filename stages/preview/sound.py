"""Audio from mels by Griffin-Lim, without a network."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.preview.drawing import FLOOR_DB

if TYPE_CHECKING:
    from stages.mels import MelsParams

_IMPORT_LOCK = threading.Lock()
GRIFFIN_LIM_STEPS = 64
PEAK = 0.7  # of full scale: mels are relative to the loudest cell nearby, so the absolute level is lost


def synthesise_audio(mels: NDArray[np.float32], params: MelsParams) -> NDArray[np.float32]:
    """Audio of mels (2T, M): (640 T,) samples at 16 kHz, peak at PEAK, by Griffin and Lim 1984.

    Sample 0 is at the centre of row 0, as in librosa's padded frames that the rows are computed from. Phases
    are estimated, so it sounds hollow; its timing is exact.
    """
    # Parts of librosa are imported when they are first used, which two threads must not do at once.
    with _IMPORT_LOCK:
        import librosa  # takes two seconds, and a contact sheet needs no audio

        mel_to_stft, griffinlim = librosa.feature.inverse.mel_to_stft, librosa.griffinlim
    from stages.media.audio import SAMPLE_RATE
    from stages.mels import HOP_SAMPLES

    # Silence after the end, so that a short clip fills a whole window.
    silent_rows = -(-params.n_fft // HOP_SAMPLES)
    padded = np.pad(mels, ((0, silent_rows), (0, 0)), constant_values=min(FLOOR_DB, float(mels.min())))
    magnitudes = mel_to_stft(
        librosa.db_to_power(padded.T), sr=SAMPLE_RATE, n_fft=params.n_fft, fmax=params.fmax
    )
    samples = griffinlim(
        magnitudes,
        n_iter=GRIFFIN_LIM_STEPS,
        hop_length=HOP_SAMPLES,
        win_length=params.win_length,
        n_fft=params.n_fft,
        random_state=0,
    )[: len(mels) * HOP_SAMPLES]
    return np.asarray(PEAK * samples / max(float(np.abs(samples).max()), 1e-9), np.float32)
