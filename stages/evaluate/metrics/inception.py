"""The Inception network that FID is defined by, with the layers and names of pytorch-fid's weights.

It is TensorFlow's of 2015-12-05 and not torchvision's: averages leave the padding out, and the last block
pools by the maximum. Written here because torchvision, on which pytorch-fid stands, would have to be of
the very build of torch beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stages.evaluate.metrics.published import select_device

PICTURE_PX = 299
BATCH = 16

Pool = Callable[[Tensor], Tensor]


class Inception(nn.Module):
    """Pictures -> vectors of 2048. The classifier behind them, ``fc``, is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB()
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280, _average)
        self.Mixed_7c = MixedE(2048, _greatest)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [-1, 1] -> (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pictures)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features


class Unit(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(
        self,
        inside: int,
        out: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, twice 3x3, average."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inside, 64, 1)
        self.branch5x5_1 = Unit(inside, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inside, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average(x))], 1)


class MixedB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Unit(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(288, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """17 x 17: 1x1, a 7x7 taken apart, two of them, average."""

    def __init__(self, width: int) -> None:
        super().__init__()
        across, along = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, width, 1)
        self.branch7x7_2 = Unit(width, width, across[0], padding=across[1])
        self.branch7x7_3 = Unit(width, 192, along[0], padding=along[1])
        self.branch7x7dbl_1 = Unit(768, width, 1)
        self.branch7x7dbl_2 = Unit(width, width, along[0], padding=along[1])
        self.branch7x7dbl_3 = Unit(width, width, across[0], padding=across[1])
        self.branch7x7dbl_4 = Unit(width, width, along[0], padding=along[1])
        self.branch7x7dbl_5 = Unit(width, 192, across[0], padding=across[1])
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class MixedD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(768, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(768, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_2(self.branch7x7x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(large))
        return torch.cat([small, large, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module):
    """8 x 8: 1x1, 3x3 split in two, twice 3x3 split in two, pooled."""

    def __init__(self, inside: int, pool: Pool) -> None:
        super().__init__()
        self.branch1x1 = Unit(inside, 320, 1)
        self.branch3x3_1 = Unit(inside, 384, 1)
        self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Unit(inside, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Unit(inside, 192, 1)
        self._pool = pool

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        ]
        return torch.cat(branches, 1)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _greatest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def features(network: Inception, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """What Inception sees in RGB pictures (H, W, 3) of any sizes: (n, 2048).

    Each is stretched to 299 x 299 by bilinear interpolation without smoothing, as pytorch-fid does it;
    clean-fid, which smooths, gives other figures.
    """
    found = []
    with torch.inference_mode():
        for first in range(0, len(pictures), BATCH):
            batch = torch.stack([_stretched(picture) for picture in pictures[first : first + BATCH]])
            found.append(network(batch.to(select_device(network))).cpu().numpy())
    return np.concatenate(found)


def _stretched(picture: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return 2 * F.interpolate(x, (PICTURE_PX, PICTURE_PX), mode="bilinear", align_corners=False)[0] - 1
