"""The network of the paper: a U-Net on [noisy current | previous | identity], by noise level and audio."""

from __future__ import annotations

from dataclasses import field
from itertools import count

import torch
from pydantic import ConfigDict, Field, PositiveInt
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
    multiples: tuple[PositiveInt, ...] = Field(default=(1, 2, 3), min_length=1)  # of channels, per resolution
    blocks: int = Field(default=2, ge=1)  # residual blocks per resolution
    attention_sizes: tuple[int, ...] = (32,)  # px of the feature maps with attention; the middle has it too
    head_channels: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    # Work on squares of this many px (Hoogeboom et al. 2023): a 2 costs a fourth. For small machines.
    patch: int = Field(default=1, ge=1)
    # Rows of px above this one are not looked at: aligned mouths lie below. 56 saves 44 % of the work.
    top: int = Field(default=0, ge=0)
    # Branches that start as if they were not there. The authors' code draws these zeros anew (kaiming).
    zero_init: bool = True
    audio: AudioParams = field(default_factory=AudioParams)

    def __post_init__(self) -> None:
        smallest = self.patch * 2 ** (len(self.multiples) - 1)
        for name, rows in (("size", self.size), ("size - top", self.size - self.top)):
            if rows < smallest or rows % smallest:
                raise ValueError(f"{name} {rows} is no multiple of {smallest}: patch {self.patch}, "
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
        return self.given(x, self.noise_films(noise_level), self.audio_films(mels, heard), words)

    def steps(self) -> list[_Step]:
        """All residual blocks, in the order they are passed."""
        return [step for step in self.modules() if isinstance(step, _Step)]

    def noise_films(self, noise_level: Tensor) -> list[Tensor]:
        """Scale and shift of each block by noise level: (B,) -> (B, 2C) each. A step's samples share it."""
        embedding = F.silu(self.embed_noise(sinusoid(noise_level, self.params.channels)))
        return [step.block.by_noise(embedding) for step in self.steps()]

    def audio_films(self, mels: Tensor, heard: Tensor | None = None) -> list[Tensor]:
        """Scale and shift of each block by audio, (B, 2C) each. A frame's steps share it."""
        embedding = F.silu(self.embed_audio(mels, heard))
        return [step.block.by_audio(embedding) for step in self.steps()]

    def given(
        self, x: Tensor, by_noise: list[Tensor], by_audio: list[Tensor], words: Tensor | None = None
    ) -> Tensor:
        """The network once its embeddings are known."""
        films = zip(by_noise, by_audio, strict=True)
        patch = self.params.patch
        x = x[:, :, self.params.top :]
        h = self.stem(x if patch == 1 else F.pixel_unshuffle(x, patch))
        kept = [h]
        for step in self.down:
            h = step(h, *next(films), words)
            kept.append(h)
        h = self.middle_in(h, *next(films), words)
        h = self.middle_out(h, *next(films), words)
        for step in self.up:
            assert isinstance(step, _Step), "self.up holds steps alone"
            if step.block.resample != "up":
                h = torch.cat([h, kept.pop()], dim=1)
            h = step(h, *next(films), words)
        said: Tensor = self.out(F.silu(self.norm(h)))
        said = said if patch == 1 else F.pixel_shuffle(said, patch)
        return F.pad(said, (0, 0, self.params.top, 0))


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
