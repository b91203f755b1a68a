"""The audio encoder: windows of mel rows and of speech features around a frame -> one embedding."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from model.blocks import zero_parameters
from shards.schema import MAX_MELS, MAX_SPEECH_FEATURES

# Mels are dB below the loudest value nearby; this is their floor, and the padding beyond a clip's ends.
SILENCE_DB = -80.0
MAX_ROWS = 1000  # before and after a frame: 20 s, more than a sentence
NORM_GROUPS = 8  # of 16 channels each
SPEECH_WIDTH = 128  # values that a row of speech features is projected to


@plain_dataclass(frozen=True)
class RowWindow:
    """A window of rows around the first row of a frame, ``n_values`` numbers each."""

    before: int
    after: int
    n_values: int

    @property
    def rows(self) -> int:
        return self.before + 1 + self.after


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AudioParams:
    """What the network hears of a clip, the windows of rows, and how they are encoded."""

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
    # `mels`, as in the paper; `speech`: features of a speech encoder, which the dataset must have
    # (docs/shards.md); or `both`, whose embeddings are added. The other numbers of speech change nothing
    # where the input is mels. A dataset's mels are read whatever the input is.
    input: Literal["mels", "speech", "both"] = "mels"
    speech_size: int = Field(default=384, ge=1, le=MAX_SPEECH_FEATURES)  # of a row; Whisper tiny.en has 384
    # As rows_before and rows_after; 17 rows predict strangers better than 5 (r = 0.82, not 0.77).
    speech_rows_before: int = Field(default=8, ge=0, le=MAX_ROWS)
    speech_rows_after: int = Field(default=8, ge=0, le=MAX_ROWS)
    # As `encoder`, of speech features. There is no `conv`: neighbouring features have nothing in common.
    speech_encoder: Literal["flat", "temporal"] = "flat"

    @property
    def rows(self) -> int:
        """Mel rows in a window."""
        return self.rows_before + 1 + self.rows_after

    @property
    def speech_rows(self) -> int:
        """Rows of speech features in a window."""
        return self.speech_rows_before + 1 + self.speech_rows_after

    @property
    def takes_mels(self) -> bool:
        """Whether the embedding depends on mels."""
        return self.input != "speech"

    @property
    def takes_speech(self) -> bool:
        """Whether the embedding depends on speech features."""
        return self.input != "mels"

    @property
    def mel_window(self) -> RowWindow:
        return RowWindow(self.rows_before, self.rows_after, self.n_mels)

    @property
    def speech_window(self) -> RowWindow:
        return RowWindow(self.speech_rows_before, self.speech_rows_after, self.speech_size)


class AudioEncoder(nn.Module):
    """Mels (B, rows, n_mels) in dB, speech features (B, rows, D) and ``has_audio`` (B,) bool -> (B, E).

    Samples without audio get the learned null embedding.
    """

    def __init__(self, params: AudioParams, embedding: int) -> None:
        super().__init__()
        self.params = params
        if params.takes_mels:
            self.front = FRONTS[params.encoder](params.mel_window)
            self.embed = _make_embedding(self.front.n_features, embedding)
        if params.takes_speech:
            self.speech = SpeechEncoder(params, embedding)
        self.null = nn.Parameter(torch.zeros(embedding)) if params.null else None

    def forward(self, mels: Tensor, has_audio: Tensor | None = None, speech: Tensor | None = None) -> Tensor:
        embeddings: list[Tensor] = []
        if self.params.takes_mels:
            if self.params.normalised:
                mels = 1 - 2 * mels / SILENCE_DB
            embeddings.append(self.embed(self.front(mels)))
        if self.params.takes_speech:
            assert speech is not None, "the network takes speech features"
            embeddings.append(self.speech(speech))
        embedding = embeddings[0] if len(embeddings) == 1 else embeddings[0] + embeddings[1]
        if self.null is None or has_audio is None:
            return embedding
        return torch.where(has_audio[:, None], embedding, self.null.to(embedding.dtype))


class SpeechEncoder(nn.Module):
    """Speech features (B, rows, D) -> (B, E): each row standardised and projected, then a window as of mels.

    Some features vary ten times as much as others, so each is standardised by itself, with the mean and the
    standard deviation that it has in the training clips (``set_scale``). They are saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, params: AudioParams, embedding: int) -> None:
        super().__init__()
        window = params.speech_window
        self.register_buffer("mean", torch.zeros(window.n_values))
        self.register_buffer("std", torch.ones(window.n_values))
        self.project = nn.Linear(window.n_values, SPEECH_WIDTH)
        self.front = FRONTS[params.speech_encoder](RowWindow(window.before, window.after, SPEECH_WIDTH))
        self.embed = _make_embedding(self.front.n_features, embedding)

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Standardise features by these numbers, (D,) each."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, speech: Tensor) -> Tensor:
        rows = self.project((speech.float() - self.mean) / self.std)
        embedding: Tensor = self.embed(self.front(rows))
        return embedding


def _make_embedding(n_features: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_features, embedding), nn.SiLU(), nn.Linear(embedding, embedding))


class _FlatFront(nn.Flatten):
    """The window itself."""

    def __init__(self, window: RowWindow) -> None:
        super().__init__()
        self.n_features = window.rows * window.n_values


class _ConvFront(nn.Module):
    """Three convolutions; each keeps the number of rows and divides the frequencies by four."""

    def __init__(self, window: RowWindow, widths: tuple[int, ...] = (32, 64, 64)) -> None:
        super().__init__()
        n_bands = window.n_values
        layers = []
        for n_in, n_out in zip((1, *widths), widths, strict=False):
            layers.append(nn.Conv2d(n_in, n_out, (3, 5), stride=(1, 4), padding=(1, 2)))
            n_bands = (n_bands - 1) // 4 + 1
        self.layers = nn.ModuleList(layers)
        self.n_features = widths[-1] * window.rows * n_bands

    def forward(self, mels: Tensor) -> Tensor:
        h = mels[:, None]
        for layer in self.layers:
            h = F.silu(layer(h))
        return h.flatten(1)


class _TemporalFront(nn.Module):
    """Each row by itself, then residual convolutions over time; the features are those of the target's row.

    The dilations double until the target's row sees both ends of the window.
    """

    def __init__(self, window: RowWindow, width: int = 128) -> None:
        super().__init__()
        dilations = [1]
        while sum(dilations) < max(window.before, window.after):
            dilations.append(2 * dilations[-1])
        self.project = nn.Linear(window.n_values, width)
        self.blocks = nn.Sequential(*(_DilatedBlock(width, dilation) for dilation in dilations))
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        self.target_row = window.before
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
