"""The network of the paper: a U-Net on [noisy current | previous | identity], by noise level and audio."""

from __future__ import annotations

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from model.blocks import GROUPS, Attention, Resample, ResidualBlock, sinusoid, zeroed


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UNetParams:
    """Shape of the network. The defaults are the authors' multi-speaker JSON: 13,698,691 parameters."""

    size: int = Field(default=128, ge=16)  # px
    in_channels: int = Field(default=9, ge=3)  # noisy current, previous, identity; one more for a mask
    out_channels: int = 3
    channels: int = Field(default=64, ge=GROUPS, multiple_of=GROUPS)
    multiples: tuple[int, ...] = (1, 2, 3)  # of channels, per resolution
    blocks: int = Field(default=2, ge=1)  # residual blocks per resolution
    attention_sizes: tuple[int, ...] = (32,)  # px of the feature maps with attention; the middle has it too
    head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    audio_values: int = Field(default=4 * 256, ge=1)  # mel values of a frame's window, flattened

    def __post_init__(self) -> None:
        steps = 2 ** (len(self.multiples) - 1)
        if self.size % steps:
            raise ValueError(f"size {self.size} cannot be halved {len(self.multiples) - 1} times")


class UNet(nn.Module):
    """x (B, 9, H, W), noise level (B,), audio (B, A) -> (B, 3, H, W)."""

    def __init__(self, params: UNetParams) -> None:
        super().__init__()
        self.params = params
        width = params.channels
        embedding = 4 * width
        self.embed_noise = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_audio = nn.Sequential(
            nn.Linear(params.audio_values, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )

        def block(channels: int, out: int, resample: Resample = "none") -> ResidualBlock:
            return ResidualBlock(channels, out, embedding, dropout=params.dropout, resample=resample)

        self.stem = nn.Conv2d(params.in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        kept = [width]  # channels of each feature map that the way up takes in
        channels, size = width, params.size
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
        self.out = nn.Conv2d(channels, params.out_channels, 3, padding=1)
        zeroed(self.out)

    def _attention(self, multiple: int, size: int) -> Attention | None:
        if size not in self.params.attention_sizes:
            return None
        return Attention(multiple * self.params.channels, self.params.head_channels)

    def forward(self, x: Tensor, noise_level: Tensor, audio: Tensor) -> Tensor:
        noise = self.embed_noise(sinusoid(noise_level, self.params.channels).to(x.dtype))
        heard = self.embed_audio(audio)
        h = self.stem(x)
        kept = [h]
        for step in self.down:
            h = step(h, noise, heard)
            kept.append(h)
        h = self.middle_out(self.middle_in(h, noise, heard), noise, heard)
        for step in self.up:
            assert isinstance(step, _Step), "self.up holds steps alone"
            if step.block.resample != "up":
                h = torch.cat([h, kept.pop()], dim=1)
            h = step(h, noise, heard)
        result: Tensor = self.out(F.silu(self.norm(h)))
        return result


class _Step(nn.Module):
    """A residual block and, at some sizes, attention after it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, noise: Tensor, audio: Tensor) -> Tensor:
        h: Tensor = self.block(x, noise, audio)
        return h if self.attention is None else self.attention(h)


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
