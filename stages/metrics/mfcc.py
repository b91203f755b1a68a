"""MFCC as SyncNet was trained on them: those of python_speech_features 0.6 with its defaults.

Implemented here because that package has had no release since 2017; the tests compare with its numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

SAMPLE_RATE = 16_000
WINDOW, STEP = 400, 160  # samples: 25 ms and 10 ms
N_FFT = 512
N_FILTERS = 26
N_CEPSTRA = 13
PRE_EMPHASIS = 0.97
LIFTER = 22
TINY = np.finfo(np.float64).eps  # replaces zero before a logarithm


def mfcc(samples: NDArray[np.int16]) -> NDArray[np.float64]:
    """16 bit sound at 16 kHz, not scaled to 1 -> (columns, 13), the first the log energy.

    Windows are not tapered. There are 1 + ceil((samples - 400) / 160) of them; the last is padded with zeros.
    """
    sound = samples.astype(np.float64)
    sound[1:] -= PRE_EMPHASIS * samples[:-1]
    n_windows = 1 + math.ceil(max(len(sound) - WINDOW, 0) / STEP)
    sound = np.pad(sound, (0, (n_windows - 1) * STEP + WINDOW - len(sound)))
    windows = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::STEP]
    power = np.abs(np.fft.rfft(windows, N_FFT)) ** 2 / N_FFT
    bands = _replace_zeros(power @ _make_filters().T)
    cepstra = dct(np.log(bands), type=2, axis=1, norm="ortho")[:, :N_CEPSTRA]
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(N_CEPSTRA) / LIFTER)
    cepstra[:, 0] = np.log(_replace_zeros(power.sum(axis=1)))
    return np.asarray(cepstra)


def _make_filters() -> NDArray[np.float64]:
    """Triangular filters, evenly spaced in mel, with their corners on whole bins: (26, 257)."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, highest, N_FILTERS + 2) / 2595) - 1)
    corners = np.floor((N_FFT + 1) * corners_hz / SAMPLE_RATE)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    bins = np.arange(N_FFT // 2 + 1)
    rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.asarray(np.clip(np.minimum(rise, fall), 0, None))


def _replace_zeros(power: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(power == 0, TINY, power)
