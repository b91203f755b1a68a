"""The Inception network that defines FID, with the layers and names of pytorch-fid's weights.

It is TensorFlow's network of 2015-12-05, not torchvision's: average pooling ignores the padding, and the
last block uses max pooling. Implemented here because pytorch-fid depends on torchvision, which must match
the build of torch exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stages.metrics.published import get_device

PICTURE_PX = 299
BATCH = 16

Pool = Callable[[Tensor], Tensor]


class Inception(nn.Module):
    """Images -> feature vectors (B, 2048). The classifier, ``fc``, is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormRelu(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB()
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280, _pool_average)
        self.Mixed_7c = MixedE(2048, _pool_max)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [-1, 1] -> (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features


class ConvNormRelu(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MixedA(nn.Module):
    """Branches at 35 x 35: 1x1, 5x5, 3x3 twice, average pooling."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormRelu(in_channels, 64, 1)
        self.branch5x5_1 = ConvNormRelu(in_channels, 48, 1)
        self.branch5x5_2 = ConvNormRelu(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, padding=1)
        self.branch_pool = ConvNormRelu(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_pool_average(x))], 1)


class MixedB(nn.Module):
    """Downsamples 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = ConvNormRelu(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormRelu(288, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """Branches at 17 x 17: 1x1, a factorised 7x7, two of them, average pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        across, along = ((1, 7), (0, 3)), ((7, 1), (3, 0))
        self.branch1x1 = ConvNormRelu(768, 192, 1)
        self.branch7x7_1 = ConvNormRelu(768, width, 1)
        self.branch7x7_2 = ConvNormRelu(width, width, across[0], padding=across[1])
        self.branch7x7_3 = ConvNormRelu(width, 192, along[0], padding=along[1])
        self.branch7x7dbl_1 = ConvNormRelu(768, width, 1)
        self.branch7x7dbl_2 = ConvNormRelu(width, width, along[0], padding=along[1])
        self.branch7x7dbl_3 = ConvNormRelu(width, width, across[0], padding=across[1])
        self.branch7x7dbl_4 = ConvNormRelu(width, width, along[0], padding=along[1])
        self.branch7x7dbl_5 = ConvNormRelu(width, 192, across[0], padding=across[1])
        self.branch_pool = ConvNormRelu(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_pool_average(x))], 1)


class MixedD(nn.Module):
    """Downsamples 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNormRelu(768, 192, 1)
        self.branch3x3_2 = ConvNormRelu(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormRelu(768, 192, 1)
        self.branch7x7x3_2 = ConvNormRelu(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormRelu(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormRelu(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_2(self.branch7x7x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(large))
        return torch.cat([small, large, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module):
    """Branches at 8 x 8: 1x1, 3x3 split in two, 3x3 twice split in two, ``pool``."""

    def __init__(self, in_channels: int, pool: Pool) -> None:
        super().__init__()
        self.branch1x1 = ConvNormRelu(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormRelu(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormRelu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNormRelu(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormRelu(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormRelu(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNormRelu(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNormRelu(in_channels, 192, 1)
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


def _pool_average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _pool_max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def extract_features(network: Inception, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Inception's features of RGB images (H, W, 3) of any sizes: (n, 2048).

    Each is resized to 299 x 299 by bilinear interpolation without antialiasing, as in pytorch-fid; clean-fid
    uses antialiasing and gives other values.
    """
    features = []
    with torch.inference_mode():
        for first in range(0, len(images), BATCH):
            batch = torch.stack([_resize_image(image) for image in images[first : first + BATCH]])
            features.append(network(batch.to(get_device(network))).cpu().numpy())
    return np.concatenate(features)


def _resize_image(image: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return 2 * F.interpolate(x, (PICTURE_PX, PICTURE_PX), mode="bilinear", align_corners=False)[0] - 1
