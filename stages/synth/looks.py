"""What tells one speaker from another, to the eye and to the ear."""

from __future__ import annotations

from dataclasses import dataclass

from stages.synth.curves import generator


@dataclass(frozen=True, slots=True)
class Look:
    """What tells one speaker from another."""

    mirrored: bool
    zoom: float
    stretch: float  # width over height, 1 is the photograph's
    gains: tuple[float, float, float]  # R, G, B
    gamma: float
    saturation: float
    backdrop: tuple[float, float, float]  # R, G, B that the background is multiplied with
    pitch_hz: float
    formant_scale: float


def draw_look(*, speaker: int, seed: int) -> Look:
    rng = generator(seed, speaker, 1)

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def draw_rgb(low: float, high: float) -> tuple[float, float, float]:
        return draw(low, high), draw(low, high), draw(low, high)

    return Look(
        mirrored=speaker % 2 == 0,
        zoom=draw(0.93, 1.07),
        stretch=draw(0.94, 1.06),
        gains=(draw(0.95, 1.1), draw(0.85, 1.0), draw(0.75, 1.0)),  # skin stays skin
        gamma=draw(0.75, 1.35),
        saturation=draw(0.6, 1.2),
        backdrop=draw_rgb(0.35, 1.1),
        pitch_hz=draw(95, 220),
        formant_scale=draw(0.9, 1.15),
    )
