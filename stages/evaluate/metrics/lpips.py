"""LPIPS 0.1 with AlexNet (Zhang et al. 2018): how far apart two pictures are to an eye."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.evaluate.metrics.published import select_device

CHANNELS = (64, 192, 384, 256, 256)  # of AlexNet's five layers
MIN_PX = 31  # below it nothing is left after AlexNet's second pool
EPSILON = 1e-10
# Pictures in [-1, 1] as AlexNet was trained on them: ImageNet's mean and spread of each channel.
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BATCH = 64


class AlexNet(nn.Module):
    """The five layers of torchvision's AlexNet, with its names; the classifier is not there."""

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
        """What each layer gives."""
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


class Heads(nn.Module):
    """A weight for each channel of each layer, as the authors fitted them to people's judgement."""

    def __init__(self) -> None:
        super().__init__()
        for k, channels in enumerate(CHANNELS):
            # The names are the file's: lin0.model.1.weight. What stood at 0 served the fitting alone.
            weigh = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{k}", nn.ModuleDict({"model": weigh}))

    def forward(self, squares: list[Tensor]) -> Tensor:
        """Squared differences of the layers, (B, C, h, w) each -> (B,)."""
        weighed = [
            self.get_submodule(f"lin{k}.model")(square).mean(dim=(1, 2, 3))
            for k, square in enumerate(squares)
        ]
        return torch.stack(weighed).sum(dim=0)


@dataclass(frozen=True, slots=True)
class Lpips:
    """The distance, with the two networks that it needs."""

    alexnet: AlexNet
    heads: Heads

    def __call__(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of each picture of ``a`` from that of ``b``, both (T, H, W, 3) RGB: (T,), 0 for the same.

        Sides are MIN_PX or more.
        """
        found = []
        with torch.inference_mode():
            for first in range(0, len(a), BATCH):
                layers = [self._directions(x[first : first + BATCH]) for x in (a, b)]
                squares = [(one - other).square() for one, other in zip(*layers, strict=True)]
                found.append(self.heads(squares).cpu().numpy())
        return np.concatenate(found)

    def _directions(self, pictures: NDArray[np.uint8]) -> list[Tensor]:
        """Each layer, (B, C, h, w), every pixel's channels as a vector of length 1."""
        x = _scaled(pictures).to(select_device(self.alexnet))
        return [
            layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + EPSILON) for layer in self.alexnet(x)
        ]


def _scaled(pictures: NDArray[np.uint8]) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    mean, spread = (torch.tensor(values)[:, None, None] for values in (MEAN, SPREAD))
    return (x - mean) / spread
