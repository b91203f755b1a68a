"""The network of the paper: a U-Net on [noisy current | previous | identity], by noise level and audio."""

from __future__ import annotations

from dataclasses import field
from itertools import count

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from model.audio import AudioEncoder, AudioParams
from model.blocks import GROUPS, Attention, Dropout, Resample, ResidualBlock, sinusoid, zeroed

RGB = 3


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UNetParams:
    """Shape of the network. With the authors' audio window, the defaults are their multi-speaker JSON."""

    size: int = Field(default=128, ge=16)  # px
    # One more input channel that tells where to draw. The paper's network has to guess it from the noise.
    mask_channel: bool = False
    channels: int = Field(default=64, ge=GROUPS, multiple_of=GROUPS)
    multiples: tuple[int, ...] = (1, 2, 3)  # of channels, per resolution
    blocks: int = Field(default=2, ge=1)  # residual blocks per resolution
    attention_sizes: tuple[int, ...] = (32,)  # px of the feature maps with attention; the middle has it too
    head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # Work on squares of this many px (Hoogeboom et al. 2023): a 2 costs a fourth. For small machines.
    patch: int = Field(default=1, ge=1)
    # Branches that start as if they were not there. The authors' code draws these zeros anew (kaiming).
    zero_init: bool = True
    audio: AudioParams = field(default_factory=AudioParams)

    def __post_init__(self) -> None:
        smallest = self.patch * 2 ** (len(self.multiples) - 1)
        if self.size % smallest:
            raise ValueError(f"size {self.size} is no multiple of {smallest}: patch {self.patch}, "
                             f"halved {len(self.multiples) - 1} times")  # fmt: skip
        for multiple in self.multiples:
            if multiple * self.channels % self.head_channels:
                raise ValueError(
                    f"head_channels {self.head_channels} do not divide {multiple * self.channels} channels"
                )

    @property
    def in_channels(self) -> int:
        """Noisy current, previous and identity frame, perhaps the mask."""
        return 3 * RGB + self.mask_channel


class UNet(nn.Module):
    """x (B, 9 or 10, H, W), noise level (B,), mels (B, rows, n_mels) in dB -> (B, 3, H, W)."""

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.params = params
        width = params.channels
        embedding = 4 * width
        self.embed_noise = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_audio = AudioEncoder(params.audio, embedding)
        salts = count()

        def block(channels: int, out: int, resample: Resample = "none") -> ResidualBlock:
            dropout = Dropout(params.dropout, salt=next(salts))
            return ResidualBlock(channels, out, embedding, dropout=dropout, resample=resample)

        self.stem = nn.Conv2d(params.in_channels * params.patch**2, width, 3, padding=1)
        self.down = nn.ModuleList()
        kept = [width]  # channels of each feature map that the way up takes in
        channels, size = width, params.size // params.patch
        for level, multiple in enumerate(params.multiples):
            for _ in range(params.blocks):
                self.down.append(_Step(block(channels, multiple * width), self._attention(multiple, size)))
                channels = multiple * width
                kept.append(channels)
            if level < len(params.multiples) - 1:
                self.down.append(_Step(block(channels, channels, "down"), None))
                kept.append(channels)
                size //= 2
        self.middle_in = _Step(block(channels, channels), Attention(channels, params.head_channels))
        self.middle_out = _Step(block(channels, channels), None)
        self.up = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(params.multiples))):
            for _ in range(params.blocks + 1):
                step = _Step(block(channels + kept.pop(), multiple * width), self._attention(multiple, size))
                self.up.append(step)
                channels = multiple * width
            if level:
                self.up.append(_Step(block(channels, channels, "up"), None))
                size *= 2
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.out = nn.Conv2d(channels, RGB * params.patch**2, 3, padding=1)
        zeroed(self.out)
        if not params.zero_init:
            self._drawn_anew()

    def _attention(self, multiple: int, size: int) -> Attention | None:
        if size not in self.params.attention_sizes:
            return None
        return Attention(multiple * self.params.channels, self.params.head_channels)

    def _drawn_anew(self) -> None:
        """As the authors' code does: every weight by Kaiming's rule, every bias zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None, "no layer here goes without"
                nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        mels: Tensor,
        *,
        heard: Tensor | None = None,
        words: Tensor | None = None,
    ) -> Tensor:
        """``heard`` (B,) bool: which samples are told their audio. ``words`` (B,) int32: dropout's keys."""
        return self.given(x, noise_level, self.embed_audio(mels, heard), words)

    def given(self, x: Tensor, noise_level: Tensor, audio: Tensor, words: Tensor | None = None) -> Tensor:
        """The same from an audio embedding (B, E), which a sampler makes once per frame."""
        noise = self.embed_noise(sinusoid(noise_level, self.params.channels).to(audio.dtype))
        patch = self.params.patch
        h = self.stem(x if patch == 1 else F.pixel_unshuffle(x, patch))
        kept = [h]
        for step in self.down:
            h = step(h, noise, audio, words)
            kept.append(h)
        h = self.middle_out(self.middle_in(h, noise, audio, words), noise, audio, words)
        for step in self.up:
            assert isinstance(step, _Step), "self.up holds steps alone"
            if step.block.resample != "up":
                h = torch.cat([h, kept.pop()], dim=1)
            h = step(h, noise, audio, words)
        said: Tensor = self.out(F.silu(self.norm(h)))
        return said if patch == 1 else F.pixel_shuffle(said, patch)


class _Step(nn.Module):
    """A residual block and, at some sizes, attention after it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, noise: Tensor, audio: Tensor, words: Tensor | None) -> Tensor:
        h: Tensor = self.block(x, noise, audio, words)
        return h if self.attention is None else self.attention(h)


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
