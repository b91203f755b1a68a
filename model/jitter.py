"""Changes of training images, each sample's own: a similarity transform, colours, appearance, side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Similarity:
    """A rotation and scaling about the centre of each image, then a shift. In px, x before y."""

    matrix: Tensor  # (B, 2, 2)
    shift: Tensor  # (B, 2)
    size: int  # px of the images' side

    def warp(self, images: Tensor) -> Tensor:
        """Images (B, C, size, size) in [-1, 1], moved; what comes in from outside repeats the border."""
        inverse = torch.linalg.inv(self.matrix)
        shift = -inverse @ self.shift[:, :, None] * 2 / self.size  # grids are in units of half a side
        grid = F.affine_grid(torch.cat([inverse, shift], dim=2), list(images.shape), align_corners=False)
        # bicubic: the network would learn the blur of a bilinear target
        warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return warped.clamp_(-1, 1)

    def move_boxes(self, boxes: Tensor) -> Tensor:
        """The upright boxes around the moved ones, within the image: x0 y0 x1 y1, (B, 4) -> (B, 4) float.

        x1 and y1 are exclusive; pixel k covers k - 1/2 to k + 1/2.
        """
        edges = boxes.float() - 0.5
        corners = edges[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]  # (B, 4, 2)
        centre = (self.size - 1) / 2
        moved = (corners - centre) @ self.matrix.mT + centre + self.shift[:, None]
        low, high = torch.aminmax(moved, dim=1)
        return torch.cat([(low + 0.5).floor(), (high + 0.5).ceil()], dim=1).clamp(0, self.size)


def draw_similarity(chance: Tensor, size: int, *, shift: float, rotation: float, scale: float) -> Similarity:
    """A transform for each row of ``chance`` (B, 4) in [0, 1).

    Up to ``shift`` px along each axis, ``rotation`` degrees either way, and 1 - ``scale`` to 1 + ``scale``
    times the size. 1/2 everywhere is the identity.
    """
    strength = 2 * chance - 1
    angle = math.radians(rotation) * strength[:, 2]
    factor = 1 + scale * strength[:, 3]
    cos, sin = factor * angle.cos(), factor * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
    return Similarity(matrix, shift * strength[:, :2], size)


@dataclass(frozen=True)
class ColourTransform:
    """Another skin and another light: pixels in [0, 1] to a power, then their channels mixed."""

    exponent: Tensor  # (B,)
    matrix: Tensor  # (B, 3, 3)
    offset: Tensor  # (B,)

    def apply(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], changed and clamped."""
        powers = (images + 1).pow_(self.exponent[:, None, None, None])  # 2**exponent times those of [0, 1]
        matrix = self.matrix * (2 ** (1 - self.exponent))[:, None, None]
        mixed = torch.baddbmm((2 * self.offset - 1)[:, None, None], matrix, powers.flatten(2))
        return mixed.clamp_(-1, 1).view(images.shape)


def draw_colour_transform(
    chance: Tensor, *, gamma: float, contrast: float, hue: float, colour: float
) -> ColourTransform:
    """A change for each row of ``chance`` (B, 6) in [0, 1). 1/2 everywhere changes nothing.

    The exponent is between 2**-``gamma`` and 2**``gamma``. The contrast, about middle grey, and the gain of
    each channel change by up to the shares ``contrast`` and ``colour``. Hues turn by up to ``hue`` degrees
    either way, about the grey axis: greys stay grey.
    """
    strength = 2 * chance - 1
    gain = 1 + contrast * strength[:, 1]
    angle = math.radians(hue) * strength[:, 2]
    # Rodrigues' formula about (1, 1, 1) / sqrt(3)
    identity, mean = torch.eye(3, device=chance.device), torch.full((3, 3), 1 / 3, device=chance.device)
    cross = (identity.roll(-1, dims=0) - identity.roll(1, dims=0)) / -math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turn = cos * identity + sin * cross + (1 - cos) * mean
    channel_gain = 1 + colour * strength[:, 3:]
    matrix = gain[:, None, None] * channel_gain[:, :, None] * turn
    return ColourTransform(2 ** (gamma * strength[:, 0]), matrix, (1 - gain) / 2)


def mirror_pixels(pixels: Tensor, is_mirrored: Tensor) -> Tensor:
    """Pixels (..., B, H, W, 3), left and right exchanged where ``is_mirrored`` (B,)."""
    return torch.where(is_mirrored[:, None, None, None], pixels.flip(-2), pixels)


def mirror_boxes(boxes: Tensor, is_mirrored: Tensor, size: int) -> Tensor:
    """Boxes x0 y0 x1 y1 (B, 4) of images of ``size`` px that are mirrored; the same pixels are inside."""
    x0, y0, x1, y1 = boxes.ceil().unbind(dim=1)  # an edge between two pixels is the next pixel's
    return torch.where(is_mirrored[:, None], torch.stack([size - x1, y0, size - x0, y1], dim=1), boxes)


def change_colours(images: Tensor, chance: Tensor, strength: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with other contrast, brightness and colour cast, clamped.

    ``chance`` (B, 5) in [0, 1); contrast and brightness change by up to ``strength``, each channel by half of
    it. 1/2 everywhere changes nothing.
    """
    change = strength * (2 * chance - 1)[:, :, None, None]
    gain, offset = 1 + change[:, :1], change[:, 1:2] + change[:, 2:] / 2
    return (images * gain).add_(offset).clamp_(-1, 1)
