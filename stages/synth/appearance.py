"""The properties that distinguish speakers: appearance and voice."""

from __future__ import annotations

from dataclasses import dataclass

from stages.synth.curves import make_rng


@dataclass(frozen=True, slots=True)
class Appearance:
    """Appearance and voice of one speaker."""

    mirrored: bool
    zoom: float
    stretch: float  # width over height; 1: as in the photograph
    gains: tuple[float, float, float]  # R, G, B
    gamma: float
    saturation: float
    backdrop: tuple[float, float, float]  # R, G, B factors of the background
    pitch_hz: float
    formant_scale: float


def sample_appearance(*, speaker: int, seed: int) -> Appearance:
    rng = make_rng(seed, speaker, 1)

    def sample(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def sample_rgb(low: float, high: float) -> tuple[float, float, float]:
        return sample(low, high), sample(low, high), sample(low, high)

    return Appearance(
        mirrored=speaker % 2 == 0,
        zoom=sample(0.93, 1.07),
        stretch=sample(0.94, 1.06),
        gains=(sample(0.95, 1.1), sample(0.85, 1.0), sample(0.75, 1.0)),  # skin stays skin-coloured
        gamma=sample(0.75, 1.35),
        saturation=sample(0.6, 1.2),
        backdrop=sample_rgb(0.35, 1.1),
        pitch_hz=sample(95, 220),
        formant_scale=sample(0.9, 1.15),
    )
