"""The pieces of the U-Net: residual blocks with two FiLM branches (paper eq. 7), attention, embeddings."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.rng import kept, salt_of

GROUPS = 32
HEAD_CHANNELS = 64
Resample = Literal["none", "down", "up"]


def zeroed(module: nn.Module) -> None:
    """Set a module's weights to zero: a branch that ends in it starts as if it were not there.

    The authors' code sets these zeros and then draws them anew; here they stay.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def sinusoid(values: Tensor, channels: int, max_period: float = 1e4) -> Tensor:
    """Cosines, then sines, of each value at geometric frequencies: (B,) -> (B, channels)."""
    half = channels // 2
    ramp = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[:, None].float() * torch.exp(-math.log(max_period) * ramp)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def film(h: Tensor, scale_shift: Tensor) -> Tensor:
    """h -> h * (1 + scale) + shift, the same at every pixel: (B, C, H, W), (B or 1, 2C) -> (B, C, H, W)."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


class Dropout(nn.Module):
    """Zeroes a share of the values, chosen by each sample's key: alike in every batch, on every rank."""

    def __init__(self, share: float, *, salt: int) -> None:
        super().__init__()
        self.share = share
        self.salt = salt_of(salt)

    def forward(self, h: Tensor, words: Tensor | None) -> Tensor:
        """(B, C, H, W), the samples' keys (B,) int32, none when not training -> (B, C, H, W)."""
        if words is None or not self.share:
            return h
        channels, height, width = h.shape[1:]
        survives = kept(words, self.salt, (height, width, channels), 1 - self.share)
        # laid out as the features are, channels last
        return torch.where(survives.permute(0, 3, 1, 2), h / (1 - self.share), 0.0)


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM by noise level first and audio second between them.

    Eq. 7 as the authors' code means it: ``(GN(h) (1 + t_s) + t_b) (1 + z_s) + z_b``; as printed it lacks
    the ones and closes its brackets elsewhere. Resampling happens inside, in both branches.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: Dropout,
        resample: Resample = "none",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = nn.GroupNorm(GROUPS, channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(GROUPS, out_channels)
        # scale and shift; their inputs are the same for all blocks, and a sampler has them ahead of time
        self.by_noise = nn.Linear(embedding, 2 * out_channels)
        self.by_audio = nn.Linear(embedding, 2 * out_channels)
        self.dropout = dropout
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        zeroed(self.conv_out)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, noise: Tensor, audio: Tensor, words: Tensor | None = None) -> Tensor:
        """(B, C, H, W), scales and shifts (B, 2C') of ``by_noise`` and ``by_audio``, dropout's keys (B,)
        -> (B, C', H', W').
        """
        h = self.conv_in(self._resized(F.silu(self.norm_in(x))))
        h = film(film(self.norm_out(h), noise), audio)
        h = self.conv_out(self.dropout(F.silu(h), words))
        summed: Tensor = self.skip(self._resized(x)) + h
        return summed

    def _resized(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            halved: Tensor = F.avg_pool2d(x, 2)
            return halved
        if self.resample == "up":
            doubled: Tensor = F.interpolate(x, scale_factor=2, mode="nearest")
            return doubled
        return x


class Attention(nn.Module):
    """Self-attention over all pixels, added to the input."""

    def __init__(self, channels: int, head_channels: int = HEAD_CHANNELS) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zeroed(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)  # (B, heads, HW, C / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        summed: Tensor = x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))
        return summed
