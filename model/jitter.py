"""Jitter of training images: a similarity transform and a change of colours, each sample's own."""

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
        return warped.clamp(-1, 1)

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


def change_colours(images: Tensor, chance: Tensor, strength: float) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with other contrast, brightness and colour cast, clamped.

    ``chance`` (B, 5) in [0, 1); contrast and brightness change by up to ``strength``, each channel by half of
    it. 1/2 everywhere changes nothing.
    """
    change = strength * (2 * chance - 1)[:, :, None, None]
    gain, offset = 1 + change[:, :1], change[:, 1:2] + change[:, 2:] / 2
    return (images * gain + offset).clamp(-1, 1)
