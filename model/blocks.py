"""The building blocks of the U-Net: residual blocks with two FiLM branches (paper eq. 7), and attention."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.dropout import Dropout

GROUPS = 32
HEAD_CHANNELS = 64
Resample = Literal["none", "down", "up"]


def zero_parameters(module: nn.Module) -> None:
    """Set the parameters of a module to zero: a branch that ends in it contributes nothing at the start.

    The authors' code sets these zeros and then overwrites them with random weights; here they stay.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def embed_sinusoidal(values: Tensor, channels: int, max_period: float = 1e4) -> Tensor:
    """Cosines, then sines, of each value at geometrically spaced frequencies: (B,) -> (B, channels)."""
    half = channels // 2
    ramp = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[:, None].float() * torch.exp(-math.log(max_period) * ramp)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def apply_film(h: Tensor, scale_shift: Tensor) -> Tensor:
    """h -> h * (1 + scale) + shift, the same at every pixel: (B, C, H, W), (B or 1, 2C) -> (B, C, H, W)."""
    scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, places, C) each -> the same shape.

    On a processor always in fp32: in bf16 the backward pass there takes four times as long.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions; between them FiLM by the noise level first, by the audio second.

    Eq. 7 as the authors' code implements it: ``(GN(h) (1 + t_s) + t_b) (1 + z_s) + z_b``; as printed it lacks
    the ones and has its brackets elsewhere. Both branches are resampled inside the block.
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
        # scale and shift; their inputs are the same for all blocks, so a sampler computes them ahead of time
        self.by_noise = nn.Linear(embedding, 2 * out_channels)
        self.by_audio = nn.Linear(embedding, 2 * out_channels)
        self.dropout = dropout
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        zero_parameters(self.conv_out)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(
        self, x: Tensor, noise_film: Tensor, audio_film: Tensor, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), the films of ``by_noise`` and ``by_audio`` (B, 2C'), keys (B,) -> (B, C', H', W')."""
        h = self.conv_in(self._resize(F.silu(self.norm_in(x))))
        h = apply_film(apply_film(self.norm_out(h), noise_film), audio_film)
        h = self.conv_out(self.dropout(F.silu(h), dropout_keys))
        result: Tensor = self.skip(self._resize(x)) + h
        return result

    def _resize(self, x: Tensor) -> Tensor:
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
        zero_parameters(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)  # (B, heads, HW, C / heads) each
        attended = attend(q, k, v)
        result: Tensor = x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))
        return result
