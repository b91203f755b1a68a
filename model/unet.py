"""The U-Net of the paper: [noisy current | previous | identity], conditioned on noise level and audio."""

from __future__ import annotations

from dataclasses import field
from itertools import count
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio import AudioEncoder, AudioParams
from model.blocks import GROUPS, Attention, Resample, ResidualBlock, embed_sinusoidal, zero_parameters
from model.dropout import Dropout
from shards.schema import MAX_SIZE

RGB = 3
# The bounds are several times what is in use; they keep a number in a stranger's file from becoming hours.
MAX_LEVELS = 8  # 1024 px halved seven times
MAX_ATTENTION_SIZE = 128  # px: 16,384 places that all look at each other; twice the size costs 16 times more

Multiple = Annotated[int, Field(ge=1, le=64)]
FeatureSize = Annotated[int, Field(ge=1, le=MAX_ATTENTION_SIZE)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UNetParams:
    """Shape of the network. With the authors' audio window, the defaults are their multi-speaker JSON."""

    size: int = Field(default=128, ge=16, le=MAX_SIZE)  # px
    # One more input channel with the mask. The paper's network has to infer it from the noise.
    mask_channel: bool = False
    channels: int = Field(default=64, ge=GROUPS, le=2048, multiple_of=GROUPS)
    multiples: tuple[Multiple, ...] = Field(
        default=(1, 2, 3), min_length=1, max_length=MAX_LEVELS
    )  # of channels, per resolution
    blocks: int = Field(default=2, ge=1, le=16)  # residual blocks per resolution
    # Widths in px of the feature maps with attention, out of ``feature_sizes``. The middle always has it.
    attention_sizes: tuple[FeatureSize, ...] = Field(default=(32,), max_length=MAX_LEVELS)
    head_channels: int = Field(default=64, ge=1, le=2048)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # Fold squares of so many px into channels (Hoogeboom et al. 2023): 2 costs a fourth. For small machines.
    patch: int = Field(default=1, ge=1, le=64)
    # Rows of px above this one are cut off: aligned mouths are below them. 56 saves 44 % of the work.
    top: int = Field(default=0, ge=0, le=MAX_SIZE)
    # Zero the last layer of each branch. The authors' code overwrites these zeros with kaiming's weights.
    zero_init: bool = True
    audio: AudioParams = field(default_factory=AudioParams)

    def __post_init__(self) -> None:
        smallest = self.patch * 2 ** (len(self.multiples) - 1)
        for name, rows in (("size", self.size), ("size - top", self.size - self.top)):
            if rows < smallest or rows % smallest:
                raise ValueError(f"{name} {rows} is no multiple of {smallest}: patch {self.patch}, "
                                 f"halved {len(self.multiples) - 1} times")  # fmt: skip
        for size in self.attention_sizes:
            if size not in self.feature_sizes:
                available = ", ".join(map(str, self.feature_sizes))
                raise ValueError(
                    f"attention_sizes {size} matches no feature map; with size {self.size} and patch "
                    f"{self.patch} they are {available} px wide"
                )
        if self.feature_sizes[-1] > MAX_ATTENTION_SIZE:
            raise ValueError(
                f"the smallest feature map is {self.feature_sizes[-1]} px wide, expected at most "
                f"{MAX_ATTENTION_SIZE}, since it has attention: use more multiples or a larger patch"
            )
        for multiple in self.multiples:
            if multiple * self.channels % self.head_channels:
                raise ValueError(
                    f"head_channels {self.head_channels} do not divide {multiple * self.channels} channels"
                )

    @property
    def in_channels(self) -> int:
        """Noisy current, previous and identity frame, and the mask if ``mask_channel``."""
        return 3 * RGB + self.mask_channel

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Widths in px of the feature maps, from the first resolution to the last."""
        return tuple(self.size // self.patch // 2**level for level in range(len(self.multiples)))


class UNet(nn.Module):
    """x (B, 9 or 10, H, W), noise level (B,), mels (B, rows, n_mels) in dB -> (B, 3, H, W).

    Speech features (B, rows, D) as well, or in place of the mels, as ``params.audio.input`` says.
    """

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.params = params
        width = params.channels
        embedding = 4 * width
        self.embed_noise = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_audio = AudioEncoder(params.audio, embedding)
        layer_numbers = count()

        def block(channels: int, out: int, resample: Resample = "none") -> ResidualBlock:
            dropout = Dropout(params.dropout, layer=next(layer_numbers))
            return ResidualBlock(channels, out, embedding, dropout=dropout, resample=resample)

        def attention(level: int, channels: int) -> Attention | None:
            if params.feature_sizes[level] not in params.attention_sizes:
                return None
            return Attention(channels, params.head_channels)

        self.stem = nn.Conv2d(params.in_channels * params.patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        skip_channels = [width]
        channels = width
        last_level = len(params.multiples) - 1
        for level, multiple in enumerate(params.multiples):
            for _ in range(params.blocks):
                out = multiple * width
                self.down.append(_UNetLayer(block(channels, out), attention(level, out)))
                channels = out
                skip_channels.append(channels)
            if level < last_level:
                self.down.append(_UNetLayer(block(channels, channels, "down"), None))
                skip_channels.append(channels)
        self.middle_in = _UNetLayer(block(channels, channels), Attention(channels, params.head_channels))
        self.middle_out = _UNetLayer(block(channels, channels), None)
        self.up = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(params.multiples))):
            for _ in range(params.blocks + 1):
                out = multiple * width
                self.up.append(_UNetLayer(block(channels + skip_channels.pop(), out), attention(level, out)))
                channels = out
            if level:
                self.up.append(_UNetLayer(block(channels, channels, "up"), None))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.out = nn.Conv2d(channels, RGB * params.patch**2, 3, padding=1)
        zero_parameters(self.out)
        if not params.zero_init:
            self._init_kaiming()

    def _init_kaiming(self) -> None:
        """As the authors' code does: every weight by Kaiming's rule, every bias zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None, "every layer here has a bias"
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        mels: Tensor,
        *,
        speech: Tensor | None = None,
        has_audio: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or v, (B, 3, H, W).

        ``has_audio`` (B,) bool: samples where it is False get the null embedding instead of their sound.
        ``dropout_keys`` (B,) int32: None switches dropout off.
        """
        noise_films = self.compute_noise_films(noise_level)
        audio_films = self.compute_audio_films(mels, has_audio, speech)
        return self.forward_with_films(x, noise_films, audio_films, dropout_keys)

    def layers(self) -> list[_UNetLayer]:
        """All layers, in the order of the forward pass."""
        return [module for module in self.modules() if isinstance(module, _UNetLayer)]

    def compute_noise_films(self, noise_level: Tensor) -> list[Tensor]:
        """Scale and shift of each layer by noise level: (B,) -> (B, 2C) each. A step's samples share it."""
        embedding = F.silu(self.embed_noise(embed_sinusoidal(noise_level, self.params.channels)))
        return [layer.block.by_noise(embedding) for layer in self.layers()]

    def compute_audio_films(
        self, mels: Tensor, has_audio: Tensor | None = None, speech: Tensor | None = None
    ) -> list[Tensor]:
        """Scale and shift of each layer by audio, (B, 2C) each. A frame's steps share it."""
        embedding = F.silu(self.embed_audio(mels, has_audio, speech))
        return [layer.block.by_audio(embedding) for layer in self.layers()]

    def forward_with_films(
        self,
        x: Tensor,
        noise_films: list[Tensor],
        audio_films: list[Tensor],
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """``forward`` with the scales and shifts of all layers computed ahead of time."""
        films = zip(noise_films, audio_films, strict=True)
        patch = self.params.patch
        x = x[:, :, self.params.top :]
        h = self.stem(x if patch == 1 else F.pixel_unshuffle(x, patch))
        skips = [h]
        for layer in self.down:
            h = layer(h, *next(films), dropout_keys)
            skips.append(h)
        h = self.middle_in(h, *next(films), dropout_keys)
        h = self.middle_out(h, *next(films), dropout_keys)
        for layer in self.up:
            assert isinstance(layer, _UNetLayer), "self.up holds nothing else"
            if layer.block.resample != "up":
                h = torch.cat([h, skips.pop()], dim=1)
            h = layer(h, *next(films), dropout_keys)
        prediction: Tensor = self.out(F.silu(self.norm(h)))
        prediction = prediction if patch == 1 else F.pixel_shuffle(prediction, patch)
        return F.pad(prediction, (0, 0, self.params.top, 0))


class _UNetLayer(nn.Module):
    """A residual block and, at some resolutions, attention after it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(
        self, x: Tensor, noise_film: Tensor, audio_film: Tensor, dropout_keys: Tensor | None
    ) -> Tensor:
        h: Tensor = self.block(x, noise_film, audio_film, dropout_keys)
        return h if self.attention is None else self.attention(h)


def make_empty_network(params: UNetParams) -> UNet:
    """A network on the meta device: no initial weights, which would advance the caller's generator."""
    with torch.device("meta"):
        return UNet(params)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
