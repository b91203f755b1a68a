"""LPIPS 0.1 with AlexNet: perceptual distance of two images (Zhang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.metrics.published import get_device

CHANNELS = (64, 192, 384, 256, 256)  # of AlexNet's five layers
MIN_PX = 31  # a smaller image is empty after AlexNet's second pooling
EPSILON = 1e-10
# ImageNet's mean and standard deviation of each channel, for images in [-1, 1].
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BATCH = 64


class AlexNet(nn.Module):
    """The five convolutional layers of torchvision's AlexNet, with its names, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of each of the five layers."""
        outputs = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                outputs.append(x)
        return outputs


class Heads(nn.Module):
    """A weight for each channel of each layer, which the authors fitted to human judgements."""

    def __init__(self) -> None:
        super().__init__()
        for k, channels in enumerate(CHANNELS):
            # The names are the file's: lin0.model.1.weight. Module 0 was dropout, used in training only.
            weigh = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": weigh}))

    def forward(self, squares: list[Tensor]) -> Tensor:
        """Squared differences of the layers, (B, C, h, w) each -> (B,)."""
        means = [
            self.get_submodule(f"lin{k}.model")(square).mean(dim=(1, 2, 3))
            for k, square in enumerate(squares)
        ]
        return torch.stack(means).sum(dim=0)


@dataclass(frozen=True, slots=True)
class Lpips:
    """The distance, with the two networks that it needs."""

    alexnet: AlexNet
    heads: Heads

    def __call__(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Distance of each image of ``a`` from that of ``b``, both (T, H, W, 3) RGB: (T,), 0 if equal.

        H and W are at least MIN_PX.
        """
        distances = []
        with torch.inference_mode():
            for first in range(0, len(a), BATCH):
                layers = [self._extract_features(x[first : first + BATCH]) for x in (a, b)]
                squares = [(one - other).square() for one, other in zip(*layers, strict=True)]
                distances.append(self.heads(squares).cpu().numpy())
        return np.concatenate(distances)

    def _extract_features(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Each layer's output, (B, C, h, w), with the channels of every pixel normalised to length 1."""
        x = _normalise_images(images).to(get_device(self.alexnet))
        return [
            layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + EPSILON) for layer in self.alexnet(x)
        ]


def _normalise_images(images: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std
