"""What a frame hears: a window of mel rows round it, as one embedding."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

# The mels are dB below the clip's loudest cell; this is their floor, and what lies beyond a clip's ends.
SILENCE_DB = -80.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AudioParams:
    """The window, and how it is made into an embedding."""

    n_mels: int = Field(default=256, ge=1)
    # Frame i hears the rows 2i - before .. 2i + after. Two and two are the paper's 120 ms, centred; its code
    # takes one after: 100 ms, which lie to the past.
    rows_before: int = Field(default=2, ge=0)
    rows_after: int = Field(default=2, ge=0)
    # dB -> [-1, 1]. Raw dB make the audio branch a hundred times as loud as the noise branch at the start.
    normalised: bool = True
    # `flat`: an MLP on the flattened window, as in the paper. `conv`: convolutions over time and
    # frequency first, which a wider window needs.
    encoder: Literal["flat", "conv"] = "flat"
    # A learned embedding for "not told what is heard": audio dropout and guidance need it.
    null: bool = True

    @property
    def rows(self) -> int:
        """Mel rows in a window."""
        return self.rows_before + 1 + self.rows_after


class AudioEncoder(nn.Module):
    """A window of mels (B, rows, n_mels) in dB, and which samples hear theirs, (B,) bool -> (B, E)."""

    def __init__(self, params: AudioParams, embedding: int) -> None:
        super().__init__()
        self.params = params
        self.front = _Convolutions(params) if params.encoder == "conv" else nn.Flatten()
        values = self.front.values if isinstance(self.front, _Convolutions) else params.rows * params.n_mels
        self.embed = nn.Sequential(
            nn.Linear(values, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )  # fmt: skip
        self.null = nn.Parameter(torch.zeros(embedding)) if params.null else None

    def forward(self, mels: Tensor, heard: Tensor | None = None) -> Tensor:
        if self.params.normalised:
            mels = 1 - 2 * mels / SILENCE_DB
        embedding: Tensor = self.embed(self.front(mels))
        if self.null is None or heard is None:
            return embedding
        return torch.where(heard[:, None], embedding, self.null.to(embedding.dtype))


class _Convolutions(nn.Module):
    """Three convolutions, each of which keeps the rows and takes a fourth of the frequencies."""

    def __init__(self, params: AudioParams, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        bands = params.n_mels
        layers = []
        for before, after in zip((1, *widths), widths, strict=False):
            layers.append(nn.Conv2d(before, after, (3, 5), stride=(1, 4), padding=(1, 2)))
            bands = (bands - 1) // 4 + 1
        self.layers = nn.ModuleList(layers)
        self.values = widths[-1] * params.rows * bands

    def forward(self, mels: Tensor) -> Tensor:
        h = mels[:, None]
        for layer in self.layers:
            h = F.silu(layer(h))
        return h.flatten(1)
