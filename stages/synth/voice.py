"""A synthetic voice whose loudness follows the mouth opening."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, sosfilt

from stages.synth.appearance import Appearance
from stages.synth.curves import Curve, make_slow_curve
from stages.synth.spec import SAMPLE_RATE, Floats

LOUDNESS_RANGE_DB = 40.0  # between opening 0 and 1; decibels are linear in the opening
MAX_RMS = 0.14
VOWELS_HZ = [(700, 1200, 2600), (350, 2000, 2800)]  # "ah" and "ee", 3 formants each
FORMANT_WIDTH_HZ = 130.0
MAX_HARMONIC_HZ = 5000.0


def synthesize_speech(
    rng: np.random.Generator, appearance: Appearance, opening: Curve, *, n_samples: int, offset_s: float
) -> Floats:
    """Harmonics between two vowels, with some breath noise: (n_samples,) in [-1, 1] at SAMPLE_RATE.

    At time t the level is LOUDNESS_RANGE_DB * (1 - opening(t - offset_s)) below its maximum.
    """
    t = np.arange(n_samples) / SAMPLE_RATE
    semitones = 3 * make_slow_curve(rng, low_hz=0.3, high_hz=1.5)(t)
    f0 = appearance.pitch_hz * 2 ** (semitones / 12)
    rotation = np.exp(2j * np.pi * np.cumsum(f0) / SAMPLE_RATE)
    vowel = 0.5 + 0.5 * make_slow_curve(rng, low_hz=1.0, high_hz=3.0)(t)

    pitch, scale = appearance.pitch_hz, appearance.formant_scale
    voice, harmonic = np.zeros(n_samples), np.ones(n_samples, dtype=np.complex128)
    for k in range(1, int(MAX_HARMONIC_HZ / pitch) + 1):
        harmonic *= rotation
        ah, ee = (
            sum(1 / (1 + ((k * pitch - scale * formant) / FORMANT_WIDTH_HZ) ** 2) for formant in vowel_hz)
            for vowel_hz in VOWELS_HZ
        )
        voice += (ee + vowel * (ah - ee)) * harmonic.imag
    breath = sosfilt(butter(2, 2500, "highpass", fs=SAMPLE_RATE, output="sos"), rng.normal(size=n_samples))
    source = voice / voice.std() + 0.15 * breath / breath.std()
    # Normalize the level of the source, so that loudness depends only on the opening.
    source /= np.sqrt(uniform_filter1d(source**2, int(0.03 * SAMPLE_RATE), mode="reflect"))
    gain_db = LOUDNESS_RANGE_DB * (opening(t - offset_s) - 1)
    return np.asarray(np.clip(MAX_RMS * source * 10 ** (gain_db / 20), -0.99, 0.99))
