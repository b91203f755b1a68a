"""Stretches of frames that follow each other: [first, end)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Stretch = tuple[int, int]  # the first frame, and the one after the last


def find_stretches(flags: NDArray[np.bool_] | Sequence[bool]) -> list[Stretch]:
    """The stretches in which flags (T,) are True, in order; each is as long as it can be."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(first, end) for first, end in edges.reshape(-1, 2).tolist()]
