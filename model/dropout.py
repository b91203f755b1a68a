"""Dropout by hashing instead of a generator: which values are zeroed depends on each sample's key alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from shards.rng import Keys, derive_key


class Dropout(nn.Module):
    """Zeroes a share of the values, chosen by each sample's key: the same in any batch, on any rank."""

    def __init__(self, share: float, *, layer: int) -> None:
        super().__init__()
        self.share = share
        self.salt = layer_salt(layer)

    def forward(self, h: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """(B, C, H, W), the samples' keys (B,) int32 or None outside training -> (B, C, H, W)."""
        if dropout_keys is None or not self.share:
            return h
        channels, height, width = h.shape[1:]
        mask = dropout_mask(dropout_keys, self.salt, (height, width, channels), 1 - self.share)
        # the mask has the memory layout of the features, channels last
        return torch.where(mask.permute(0, 3, 1, 2), h / (1 - self.share), 0.0)


def keys_to_int32(keys: Keys, device: torch.device) -> Tensor:
    """The low 32 bits of each key, (B,) int32, for ``dropout_mask``."""
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
    return torch.from_numpy(low).to(device, non_blocking=True)


def layer_salt(layer: int) -> int:
    """A number that differs between layers, for ``dropout_mask``. A compiler cannot trace this function."""
    return _as_int32(derive_key(layer))


def dropout_mask(dropout_keys: Tensor, salt: int, shape: Sequence[int], share: float) -> Tensor:
    """True for ``share`` of a sample's values, which are not zeroed: (B,) int32 -> (B, *shape) bool.

    A hash of (seed, sample, layer, place) in integers that wrap around: the same on every device, and a
    compiler fuses it into its neighbours. The hash is Wellons' lowbias32.
    """
    n = 1
    for side in shape:
        n *= side
    place = torch.arange(n, dtype=torch.int32, device=dropout_keys.device)
    h: Tensor = place[None, :] * _as_int32(0x9E3779B1) ^ (dropout_keys ^ salt)[:, None]
    h = (h ^ _shift_right(h, 16)) * _as_int32(0x7FEB352D)
    h = (h ^ _shift_right(h, 15)) * _as_int32(0x846CA68B)
    h = h ^ _shift_right(h, 16)
    return (h < min(int(share * 2**32) - 2**31, 2**31 - 1)).view(len(dropout_keys), *shape)


def _as_int32(number: int) -> int:
    """The low 32 bits as a signed number."""
    return (number + 2**31) % 2**32 - 2**31


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: int32 has the arithmetic one only."""
    shifted: Tensor = (values >> bits) & (2 ** (32 - bits) - 1)
    return shifted
