"""SyncNet (Chung & Zisserman 2016): embeds lips and speech as vectors that are close when they are in sync.

Layers and names are those of the weights that the authors published, ``syncnet_v2.model``.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.metrics.published import get_device

N_FEATURES = 1024


class SyncNet(nn.Module):
    """Windows of 0.2 s -> embeddings (B, 1024), not normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_make_conv2d(1, 64, 3, 1),
            nn.MaxPool2d(1),
            *_make_conv2d(64, 192, 3, 1),
            nn.MaxPool2d(3, (1, 2)),
            *_make_conv2d(192, 384, 3, 1),
            *_make_conv2d(384, 256, 3, 1),
            *_make_conv2d(256, 256, 3, 1),
            nn.MaxPool2d(3, 2),
            *_make_conv2d(256, 512, (5, 4), 0),
        )
        self.netcnnlip = nn.Sequential(
            *_make_conv3d(3, 96, (5, 7, 7), 2, 0),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_make_conv3d(96, 256, (1, 5, 5), 2, 1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_make_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_make_conv3d(256, 256, (1, 3, 3), 1, 1),
            *_make_conv3d(256, 256, (1, 3, 3), 1, 1),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_make_conv3d(256, 512, (1, 6, 6), 1, 0),
        )
        self.netfcaud = _make_head()
        self.netfclip = _make_head()

    def embed_speech(self, windows: Tensor) -> Tensor:
        """Windows of 20 MFCC columns, (B, 1, 13, 20) -> (B, 1024)."""
        embedding: Tensor = self.netfcaud(self.netcnnaud(windows.to(get_device(self))).flatten(1))
        return embedding

    def embed_lips(self, windows: Tensor) -> Tensor:
        """Windows of five frames, (B, 3, 5, 224, 224) BGR in [0, 255] -> (B, 1024)."""
        embedding: Tensor = self.netfclip(self.netcnnlip(windows.to(get_device(self))).flatten(1))
        return embedding


def _make_conv2d(
    in_channels: int, out_channels: int, kernel: int | tuple[int, int], padding: int
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _make_conv3d(
    in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int, padding: int
) -> tuple[nn.Module, ...]:
    """``stride`` and ``padding`` apply to height and width; in time both are 1 and 0."""
    convolution = nn.Conv3d(in_channels, out_channels, kernel, (1, stride, stride), (0, padding, padding))
    return convolution, nn.BatchNorm3d(out_channels), nn.ReLU(inplace=True)


def _make_head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, N_FEATURES))
