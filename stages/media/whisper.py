"""The encoder of Whisper tiny.en: 16 kHz sound into 384 features, 50 times a second.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", sections 2.2 and A.
docs/dataset.md says how far it agrees with other implementations.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stages.media.audio import SAMPLE_RATE
from stages.media.whisper_weights import N_BLOCKS, N_MELS, WIDTH

N_FFT = 400  # samples: 25 ms
HOP_SAMPLES = 160  # 100 mel rows a second
N_HEADS = 6
ROWS_PER_FEATURE = 2  # mel rows in a row of features
MIN_POWER = 1e-10
RANGE = 8.0  # decades below the loudest cell that are kept


class AttentionBlock(nn.Module):
    """Self-attention over all rows, then two layers on each row; both are added to their input."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, C) -> (B, R, C)."""
        heads = self.query_key_value(self.norm_1(x)).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, R, C / heads)
        attention = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)
        x = x + self.projection(attention)
        result: Tensor = x + self.contract(F.gelu(self.expand(self.norm_2(x))))
        return result


class WhisperEncoder(nn.Module):
    """Log-mels (B, 80, 2R) at 100 Hz -> features (B, R, 384) at 50 Hz; row j is centred on mel row 2j."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(N_MELS, WIDTH, 3, padding=1)
        self.conv_2 = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, stride=ROWS_PER_FEATURE)
        self.blocks = nn.ModuleList(AttentionBlock(WIDTH, N_HEADS) for _ in range(N_BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, log_mels: Tensor) -> Tensor:
        x = F.gelu(self.conv_1(log_mels))
        x = F.gelu(self.conv_2(x)).transpose(1, 2)
        x = x + compute_positions(x.shape[1], WIDTH)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features


@functools.lru_cache(maxsize=4)
def compute_positions(n_rows: int, width: int) -> Tensor:
    """Sinusoidal positions, (n_rows, width): sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    n_waves = width // 2
    frequencies = torch.exp(-math.log(10_000) / (n_waves - 1) * torch.arange(n_waves))
    angles = torch.arange(n_rows)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def load_whisper(path: Path) -> WhisperEncoder:
    """The encoder with the weights of a file that ``weights.find`` has checked."""
    from safetensors.torch import load_file

    encoder = WhisperEncoder()
    encoder.load_state_dict(load_file(path))
    return encoder.eval().requires_grad_(False)


@functools.lru_cache(maxsize=1)
def make_mel_filters() -> NDArray[np.float32]:
    """Slaney's triangles, (80, 201): librosa's ``mel`` as the published code calls it."""
    from librosa.filters import mel

    filters: NDArray[np.float32] = mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS)
    return filters


def compute_log_power(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """log10 of the power in each mel band, (rows, 80), before its range is cut.

    ``sound`` begins 200 samples before the centre of the first row and ends 200 after that of the last. One
    BLAS thread gives the same bits on any machine of a kind: callers limit them.
    """
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)  # periodic
    spectrum = np.fft.rfft(sliding_window_view(sound, N_FFT)[::HOP_SAMPLES] * window)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    log_power: NDArray[np.float32] = np.log10(np.maximum(power @ make_mel_filters().T, MIN_POWER))
    return log_power


def scale_log_power(
    log_power: NDArray[np.float32], loudest: NDArray[np.float32] | float
) -> NDArray[np.float32]:
    """The encoder's input, some -1 to 1: what lies further below ``loudest`` than its range is cut."""
    scaled = (np.maximum(log_power, loudest - RANGE) + 4) / 4
    return scaled.astype(np.float32, copy=False)
