"""Silero VAD (version 6, 16 kHz): how probable it is that somebody speaks, for every 32 ms of sound.

The network is that of the package silero-vad 6.2 (MIT licence), written anew and given the published weights:
a spectrum, four convolutions, and an LSTM that remembers what was heard before. docs/cutting.md says how far
it agrees with the published TorchScript.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW_SAMPLES = 512  # 32 ms at 16 kHz; one probability each
CONTEXT_SAMPLES = 64  # of the window before, that the network hears too
PAD_SAMPLES = 64  # the window's own last samples, mirrored
N_FFT, HOP_SAMPLES, N_BINS = 256, 128, 129
WIDTH = 128
WINDOWS_AT_ONCE = 512  # 16 s: memory does not grow with the sound

State = tuple[Tensor, Tensor]  # what the LSTM remembers, (1, 1, WIDTH) each


class VoiceDetector(nn.Module):
    """Consecutive windows (N, CONTEXT_SAMPLES + WINDOW_SAMPLES) -> probabilities (N,) and the state after."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 2 * N_BINS, N_FFT, stride=HOP_SAMPLES, bias=False)
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(N_BINS, WIDTH, 3, padding=1),
                nn.Conv1d(WIDTH, WIDTH // 2, 3, stride=2, padding=1),
                nn.Conv1d(WIDTH // 2, WIDTH // 2, 3, stride=2, padding=1),
                nn.Conv1d(WIDTH // 2, WIDTH, 3, padding=1),
            ]
        )
        self.memory = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.output = nn.Conv1d(WIDTH, 1, 1)

    def forward(self, windows: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        parts = self.spectrum(F.pad(windows[:, None], (0, PAD_SAMPLES), mode="reflect"))
        x = (parts[:, :N_BINS].square() + parts[:, N_BINS:].square()).sqrt()
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        x, state = self.memory(x.transpose(0, 2).transpose(1, 2), state)  # the windows are the steps in time
        return torch.sigmoid(self.output(F.relu(x).transpose(1, 2)))[0, 0], state


# Where each tensor lies in the published file, an ONNX graph of known sha256: bytes from its start. So the
# graph needs no reader, and nothing in it is executed.
PLACES = {
    "spectrum.weight": 50_235,
    "convolutions.0.weight": 314_482,
    "convolutions.0.bias": 512_672,
    "convolutions.1.weight": 513_238,
    "convolutions.1.bias": 611_587,
    "convolutions.2.weight": 611_896,
    "convolutions.2.bias": 661_093,
    "convolutions.3.weight": 661_403,
    "convolutions.3.bias": 759_753,
    "memory.weight_ih_l0": 760_310,
    "memory.weight_hh_l0": 1_022_499,
    "memory.bias_ih_l0": 1_284_681,
    "memory.bias_hh_l0": 1_286_767,
    "output.weight": 1_288_862,
    "output.bias": 1_289_412,
}


@functools.lru_cache(maxsize=1)
def load_detector(path: Path) -> VoiceDetector:
    """The network with the weights of a file that ``weights.find`` has checked; loaded once for a process."""
    content = path.read_bytes()
    detector = VoiceDetector()
    tensors: dict[str, Tensor] = {}
    for name, own in detector.state_dict().items():
        values = np.frombuffer(content, "<f4", own.numel(), PLACES[name])
        tensors[name] = torch.from_numpy(values.astype(np.float32)).reshape(own.shape)
    detector.load_state_dict(tensors)
    return detector.eval().requires_grad_(False)


def compute_voice(sound: NDArray[np.float32], detector: VoiceDetector) -> NDArray[np.float32]:
    """Mono sound at 16 kHz, (n,) -> the probability of speech in each 32 ms, (ceil(n / 512),).

    The first window begins with the sound. Before it, and after the sound's end, is silence.
    """
    n_windows = -(-len(sound) // WINDOW_SAMPLES)
    probabilities = np.empty(n_windows, np.float32)
    state: State | None = None
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more change the order of sums
    try:
        for first in range(0, n_windows, WINDOWS_AT_ONCE):
            last = min(first + WINDOWS_AT_ONCE, n_windows)
            begin, end = first * WINDOW_SAMPLES - CONTEXT_SAMPLES, last * WINDOW_SAMPLES
            samples = sound[max(begin, 0) : end]
            padded = np.pad(samples, (max(-begin, 0), max(end - len(sound), 0)))
            windows = torch.from_numpy(padded).unfold(0, CONTEXT_SAMPLES + WINDOW_SAMPLES, WINDOW_SAMPLES)
            batch, state = detector(windows, state)
            probabilities[first:last] = batch.numpy()
    finally:
        torch.set_num_threads(n_threads)
    return probabilities
