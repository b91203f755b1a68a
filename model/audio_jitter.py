"""Jitter of training sound: each sample's loudness and tone colour, as another recording would have them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from model.audio import SILENCE_DB

N_KNOTS = 6  # of the curve over the mel bands: too few to make or move a formant
N_MEL_UNIFORMS = 1 + N_KNOTS


def change_loudness(mels: Tensor, chance: Tensor, *, gain_db: float, band_db: float) -> Tensor:
    """Mels (B, rows, n_mels) in dB, each sample lowered as a whole and filtered by a smooth curve.

    ``chance`` (B, N_MEL_UNIFORMS) in [0, 1): a sample is lowered by up to ``gain_db``, as in a recording with
    a louder moment, and each band changes by up to ``band_db`` either way. No value falls below
    SILENCE_DB, and those at it stay there. A band that rises may exceed 0 dB.
    """
    gain = -gain_db * chance[:, :1, None]  # (B, 1, 1)
    knots = band_db * (2 * chance[:, None, 1:] - 1)
    curve = F.interpolate(knots, size=mels.shape[-1], mode="linear", align_corners=True)  # (B, 1, n_mels)
    changed = (mels + gain + curve).clamp(min=SILENCE_DB)
    return changed.where(mels > SILENCE_DB, mels)
