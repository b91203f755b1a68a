from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.media.audio import SAMPLE_RATE, mix_to_mono, read_channels
from stages.media.voice import CONTEXT_SAMPLES, WINDOW_SAMPLES, compute_voice, load_detector

# Of the published TorchScript of silero-vad 6.2.3 (torch 2.13), for s1/bbaf5a.mpg: every sixth window.
REFERENCE = (
    0.00737,
    0.00689,
    0.005,
    0.00194,
    0.96808,
    0.99574,
    0.99977,
    0.32401,
    0.95679,
    0.98331,
    0.99997,
    0.99995,
    0.20538,
    0.00536,
    0.00489,
    0.00798,
)
TOLERANCE = 1e-4  # 4e-6 is the greatest difference that was measured, on eight clips


def test_probabilities_are_those_of_the_published_network(grid: Path, voice_model: Path) -> None:
    sound, _ = mix_to_mono(read_channels(grid / "s1" / "bbaf5a.mpg", 0.0, 3 * SAMPLE_RATE))
    voice = compute_voice(sound, load_detector(voice_model))
    assert voice.shape == (-(-len(sound) // WINDOW_SAMPLES),)
    assert voice[::6] == pytest.approx(REFERENCE, abs=TOLERANCE)


def test_the_network_hears_the_same_in_batches_and_no_speech_in_silence(
    voice_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = load_detector(voice_model)
    random = np.random.default_rng(0)
    sound = (0.1 * random.standard_normal(40 * WINDOW_SAMPLES + 7)).astype(np.float32)
    whole = compute_voice(sound, detector)
    monkeypatch.setattr("stages.media.voice.WINDOWS_AT_ONCE", 3)
    assert compute_voice(sound, detector) == pytest.approx(whole, abs=1e-6)
    assert compute_voice(np.zeros(9 * WINDOW_SAMPLES, np.float32), detector).max() < 0.1
    assert compute_voice(sound[:0], detector).shape == (0,)
    assert len(compute_voice(sound[: CONTEXT_SAMPLES - 1], detector)) == 1
