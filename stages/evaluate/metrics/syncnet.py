"""SyncNet (Chung & Zisserman 2016): do these lips say this speech? Both become vectors that are near if so.

The layers and their names are those of the weights that the authors published, ``syncnet_v2.model``.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.evaluate.metrics.published import select_device

N_FEATURES = 1024


class SyncNet(nn.Module):
    """Windows of 0.2 s -> vectors of 1024, not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64, 3, 1),
            nn.MaxPool2d(1),
            *_conv2d(64, 192, 3, 1),
            nn.MaxPool2d(3, (1, 2)),
            *_conv2d(192, 384, 3, 1),
            *_conv2d(384, 256, 3, 1),
            *_conv2d(256, 256, 3, 1),
            nn.MaxPool2d(3, 2),
            *_conv2d(256, 512, (5, 4), 0),
        )
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (5, 7, 7), 2, 0),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), 2, 1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_conv3d(256, 256, (1, 3, 3), 1, 1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6), 1, 0),
        )
        self.netfcaud = _head()
        self.netfclip = _head()

    def speech(self, windows: Tensor) -> Tensor:
        """20 columns of MFCC, (B, 1, 13, 20) -> (B, 1024)."""
        heard: Tensor = self.netfcaud(self.netcnnaud(windows.to(select_device(self))).flatten(1))
        return heard

    def lips(self, windows: Tensor) -> Tensor:
        """Five frames, (B, 3, 5, 224, 224) BGR in [0, 255] -> (B, 1024)."""
        seen: Tensor = self.netfclip(self.netcnnlip(windows.to(select_device(self))).flatten(1))
        return seen


def _conv2d(inside: int, out: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inside, out, kernel, padding=padding), nn.BatchNorm2d(out), nn.ReLU(inplace=True)


def _conv3d(
    inside: int, out: int, kernel: tuple[int, int, int], stride: int, padding: int
) -> tuple[nn.Module, ...]:
    """Stride and padding are those of height and width; in time every window is one."""
    convolution = nn.Conv3d(inside, out, kernel, (1, stride, stride), (0, padding, padding))
    return convolution, nn.BatchNorm3d(out), nn.ReLU(inplace=True)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, N_FEATURES))
