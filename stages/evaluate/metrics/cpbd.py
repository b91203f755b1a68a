"""CPBD: how sharp a picture is, from the widths of its edges (Narvekar & Karam 2011).

A blurred edge is wide. Up to a width that hangs on the contrast round about, nobody sees the blur; CPBD is
the share of edges that are no wider. The paper weighs a width w by P = 1 - exp(-(w / w_jnb)^3.6) and counts
P <= 63 %; P grows with w and is 1 - 1/e = 63 % at w = w_jnb, so that is w <= w_jnb and needs no exponent.

Numbers are those of the authors' program as the package cpbd 1.0.7 has it, where a picture's sides are
multiples of 64, but for two things. Which blocks hold edges is asked of the same Sobel edges whose widths are
measured, not of a second, Canny's set. And other sides are cut in blocks of equal size, so that nothing is
left out and a mouth smaller than 64 pixels is one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK_PX = 64
EDGE_SHARE = 0.002  # a block with no more edge pixels than this is not looked at
LOW_CONTRAST = 50  # of 255, within a block
JNB_WIDTH_PX = {True: 5, False: 3}  # just noticeable, by whether the contrast is low
AT_ONCE = 16  # frames; what is made of more leaves the processor's cache
LEVEL = np.tan(np.pi / 8)  # |dy / dx| of a gradient that counts as horizontal


@dataclass(frozen=True, slots=True)
class Sharpness:
    """CPBD in [0, 1] of each frame, (T,); nan where there is no edge."""

    frame: NDArray[np.float64]
    box: NDArray[np.float64]


def cpbd(frames: NDArray[np.uint8], boxes: NDArray[np.integer]) -> Sharpness:
    """CPBD of frames (T, H, W, 3), RGB, and of a box in each: (T, 4), x0 y0 x1 y1.

    Edges and their widths are the whole picture's, so the border of a box makes none and cuts none.
    """
    whole, within = [], []
    for start in range(0, len(frames), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        greys = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[some]])
        for grey, widths, (x0, y0, x1, y1) in zip(greys, edge_widths(greys), boxes[some], strict=True):
            whole.append(_share_sharp(grey, widths))
            within.append(_share_sharp(grey[y0:y1, x0:x1], widths[y0:y1, x0:x1]))
    return Sharpness(np.array(whole), np.array(within))


def edge_widths(greys: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Marziliano's widths: (T, H, W), in pixels at upright edges, 0 elsewhere.

    A width runs from where the brightness begins to rise (or to fall), left of the edge, to where it ends.
    """
    width = greys.shape[2]
    edges = np.stack([_sobel_edges(grey) for grey in greys])
    # From here on one tall picture: rows do not know each other, and no edge is at a border.
    image = greys.reshape(-1, width).astype(np.int16)
    at = np.flatnonzero(edges)  # one index and take: half the time of two and brackets
    flat = image.ravel()
    across = flat.take(at + 1) - flat.take(at - 1)
    down = flat.take(at + width) - flat.take(at - width)
    level = (np.abs(down) <= LEVEL * np.abs(across)) | (across == 0)
    at, across = at[level], across[level]
    slope = np.where(across < 0, -1, 1)  # as in the program, where neither neighbour is brighter too

    step = np.zeros((len(image), width + 1), np.int8)  # step[:, x] leads to pixel x; none lead in or out
    step[:, 1:-1] = np.sign(image[:, 1:] - image[:, :-1])
    steps = step.ravel()
    # Runs of equal steps, row after row; no run of rising or falling ones leaves its row.
    changes = steps[1:] != steps[:-1]
    run_of = np.zeros(steps.size, np.int32)
    np.cumsum(changes, out=run_of[1:])
    begins = np.concatenate([[0], np.flatnonzero(changes) + 1, [steps.size]])
    to = at + at // width  # the step that leads to the edge's pixel
    # The two steps that touch the edge's own pixel are part of it, whatever their sign.
    first = begins.take(run_of.take(to - 1))
    after = begins.take(run_of.take(to + 2) + 1)
    left = np.where(steps.take(to - 1) == slope, to - first, 0)
    right = np.where(steps.take(to + 2) == slope, after - (to + 2), 0)
    widths = np.zeros_like(image)
    widths.put(at, 2 + left + right)
    return widths.reshape(greys.shape)


def _sobel_edges(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the horizontal Sobel gradient stands out and is greater than beside or above and below; pixels at
    the border are none."""
    gradient = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8, borderType=cv2.BORDER_REFLECT)
    strength = gradient * gradient
    _, strong = cv2.threshold(strength, 2 * float(np.sqrt(strength.mean())), 0, cv2.THRESH_TOZERO)
    here = strong[1:-1, 1:-1]
    across = (here > strong[1:-1, :-2]) & (here > strong[1:-1, 2:])
    down = (here > strong[:-2, 1:-1]) & (here > strong[2:, 1:-1])
    edges = np.zeros(grey.shape, bool)
    edges[1:-1, 1:-1] = across | down
    return edges


def _share_sharp(grey: NDArray[np.uint8], widths: NDArray[np.int16]) -> float:
    n_edges = n_sharp = 0
    for rows in _blocks(grey.shape[0]):
        for columns in _blocks(grey.shape[1]):
            found = widths[rows, columns]
            n_found = np.count_nonzero(found)
            if n_found <= EDGE_SHARE * found.size:
                continue
            low, high, _, _ = cv2.minMaxLoc(grey[rows, columns])
            jnb = JNB_WIDTH_PX[high - low <= LOW_CONTRAST]
            n_edges += n_found
            n_sharp += n_found - np.count_nonzero(found > jnb)
    return n_sharp / n_edges if n_edges else float("nan")


def _blocks(side: int) -> list[slice]:
    n = max(1, side // BLOCK_PX)
    return [slice(side * k // n, side * (k + 1) // n) for k in range(n)]
