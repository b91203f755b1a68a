"""The audio encoder: a window of mel rows around a frame -> one embedding."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from model.blocks import zero_parameters
from shards.schema import MAX_MELS

# Mels are dB below the loudest value nearby; this is their floor, and the padding beyond a clip's ends.
SILENCE_DB = -80.0
MAX_ROWS = 1000  # before and after a frame: 20 s, more than a sentence
NORM_GROUPS = 8  # of 16 channels each


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AudioParams:
    """The window of mel rows, and how it is encoded."""

    n_mels: int = Field(default=256, ge=1, le=MAX_MELS)
    # The window of frame i is rows 2i - before .. 2i + after. Two and two are the paper's 120 ms, centred;
    # its code takes one row after: 100 ms, mostly in the past.
    rows_before: int = Field(default=2, ge=0, le=MAX_ROWS)
    rows_after: int = Field(default=2, ge=0, le=MAX_ROWS)
    # dB -> [-1, 1]. Raw dB make the audio branch a hundred times as large as the noise branch at the start.
    normalised: bool = True
    # `flat`: an MLP on the flattened window, as in the paper. `conv`: convolutions over time and
    # frequency first, which a wider window needs. `temporal`: dilated convolutions over time, for windows of
    # half a second and more.
    encoder: Literal["flat", "conv", "temporal"] = "flat"
    # A learned embedding for "no audio", which audio dropout and guidance need.
    null: bool = True

    @property
    def rows(self) -> int:
        """Mel rows in a window."""
        return self.rows_before + 1 + self.rows_after


class AudioEncoder(nn.Module):
    """Mels (B, rows, n_mels) in dB and ``has_audio`` (B,) bool -> (B, E).

    Samples without audio get the learned null embedding.
    """

    def __init__(self, params: AudioParams, embedding: int) -> None:
        super().__init__()
        self.params = params
        self.front = FRONTS[params.encoder](params)
        n_features = self.front.n_features
        self.embed = nn.Sequential(
            nn.Linear(n_features, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )  # fmt: skip
        self.null = nn.Parameter(torch.zeros(embedding)) if params.null else None

    def forward(self, mels: Tensor, has_audio: Tensor | None = None) -> Tensor:
        if self.params.normalised:
            mels = 1 - 2 * mels / SILENCE_DB
        embedding: Tensor = self.embed(self.front(mels))
        if self.null is None or has_audio is None:
            return embedding
        return torch.where(has_audio[:, None], embedding, self.null.to(embedding.dtype))


class _FlatFront(nn.Flatten):
    """The window itself."""

    def __init__(self, params: AudioParams) -> None:
        super().__init__()
        self.n_features = params.rows * params.n_mels


class _ConvFront(nn.Module):
    """Three convolutions; each keeps the number of rows and divides the frequencies by four."""

    def __init__(self, params: AudioParams, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        n_bands = params.n_mels
        layers = []
        for n_in, n_out in zip((1, *widths), widths, strict=False):
            layers.append(nn.Conv2d(n_in, n_out, (3, 5), stride=(1, 4), padding=(1, 2)))
            n_bands = (n_bands - 1) // 4 + 1
        self.layers = nn.ModuleList(layers)
        self.n_features = widths[-1] * params.rows * n_bands

    def forward(self, mels: Tensor) -> Tensor:
        h = mels[:, None]
        for layer in self.layers:
            h = F.silu(layer(h))
        return h.flatten(1)


class _TemporalFront(nn.Module):
    """Each row by itself, then residual convolutions over time; the features are those of the target's row.

    The dilations double until the target's row sees both ends of the window.
    """

    def __init__(self, params: AudioParams, width: int = 128) -> None:
        super().__init__()
        dilations = [1]
        while sum(dilations) < max(params.rows_before, params.rows_after):
            dilations.append(2 * dilations[-1])
        self.project = nn.Linear(params.n_mels, width)
        self.blocks = nn.Sequential(*(_DilatedBlock(width, dilation) for dilation in dilations))
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        self.target_row = params.rows_before
        self.n_features = width

    def forward(self, mels: Tensor) -> Tensor:
        h = self.blocks(self.project(mels).transpose(1, 2))
        features: Tensor = F.silu(self.norm(h)[:, :, self.target_row])
        return features


class _DilatedBlock(nn.Module):
    """A dilated convolution over time and a layer on each row, added to the input: (B, C, rows) -> same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(NORM_GROUPS, width)
        self.over_time = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm_out = nn.GroupNorm(NORM_GROUPS, width)
        self.by_row = nn.Conv1d(width, width, 1)
        zero_parameters(self.by_row)

    def forward(self, x: Tensor) -> Tensor:
        h = self.over_time(F.silu(self.norm_in(x)))
        result: Tensor = x + self.by_row(F.silu(self.norm_out(h)))
        return result


FRONTS: dict[str, type[_FlatFront | _ConvFront | _TemporalFront]] = {
    "flat": _FlatFront,
    "conv": _ConvFront,
    "temporal": _TemporalFront,
}
