"""CPBD: how sharp an image is, from the widths of its edges (Narvekar & Karam 2011).

A blurred edge is wide. Up to a width that depends on the local contrast, the blur is not noticeable; CPBD is
the share of edges that are no wider. The paper gives a width w the blur probability
P = 1 - exp(-(w / w_jnb)^3.6) and counts edges with P <= 63 %. P grows with w and is 1 - 1/e = 63 % at
w = w_jnb, so the condition is w <= w_jnb and needs no exponent.

Values equal those of the package cpbd 1.0.7, a port of the authors' program, for images whose sides are
multiples of 64, with two exceptions. Blocks with edges are found from the same Sobel edges whose widths are
measured, not from a second set by Canny. Other sides are divided into blocks of equal size, so nothing is
left out and a mouth smaller than 64 pixels is one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK_PX = 64
EDGE_SHARE = 0.002  # a block with no more edge pixels than this is ignored
LOW_CONTRAST = 50  # of 255, within a block
JNB_WIDTH_PX = {True: 5, False: 3}  # just noticeable, by whether the contrast is low
CHUNK_FRAMES = 16  # the arrays of more frames do not fit in the processor's cache
HORIZONTAL_SLOPE = np.tan(np.pi / 8)  # largest |dy / dx| of a gradient that counts as horizontal


@dataclass(frozen=True, slots=True)
class Sharpness:
    """CPBD in [0, 1] of each frame, (T,); nan where there is no edge."""

    frame: NDArray[np.float64]
    box: NDArray[np.float64]


def cpbd(frames: NDArray[np.uint8], boxes: NDArray[np.integer]) -> Sharpness:
    """CPBD of frames (T, H, W, 3), RGB, and of a box in each: (T, 4), x0 y0 x1 y1.

    Edges and their widths are those of the whole frame, so the border of a box adds no edge and cuts none.
    """
    frame_scores, box_scores = [], []
    for start in range(0, len(frames), CHUNK_FRAMES):
        chunk = slice(start, start + CHUNK_FRAMES)
        greys = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[chunk]])
        for grey, widths, (x0, y0, x1, y1) in zip(greys, edge_widths(greys), boxes[chunk], strict=True):
            frame_scores.append(_share_sharp_edges(grey, widths))
            box_scores.append(_share_sharp_edges(grey[y0:y1, x0:x1], widths[y0:y1, x0:x1]))
    return Sharpness(np.array(frame_scores), np.array(box_scores))


def edge_widths(greys: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Marziliano's edge widths: (T, H, W), in pixels at vertical edges, 0 elsewhere.

    A width runs from where the brightness begins to rise (or to fall), left of the edge, to where it ends.
    """
    width = greys.shape[2]
    edges = np.stack([_find_sobel_edges(grey) for grey in greys])
    # From here on one tall image: rows are independent, and no edge is at a border.
    image = greys.reshape(-1, width).astype(np.int16)
    at = np.flatnonzero(edges)  # flat indices and take: half the time of two indices and brackets
    flat = image.ravel()
    across = flat.take(at + 1) - flat.take(at - 1)
    down = flat.take(at + width) - flat.take(at - width)
    horizontal = (np.abs(down) <= HORIZONTAL_SLOPE * np.abs(across)) | (across == 0)
    at, across = at[horizontal], across[horizontal]
    slope = np.where(across < 0, -1, 1)  # 1 as in the program when neither neighbour is brighter

    step = np.zeros((len(image), width + 1), np.int8)  # step[:, x] is the change from pixel x - 1 to x
    step[:, 1:-1] = np.sign(image[:, 1:] - image[:, :-1])
    steps = step.ravel()
    # Runs of equal steps, row after row; no run of rising or falling steps crosses a row's end.
    changes = steps[1:] != steps[:-1]
    run_index = np.zeros(steps.size, np.int32)
    np.cumsum(changes, out=run_index[1:])
    run_starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [steps.size]])
    to = at + at // width  # the step to the edge's pixel
    # The two steps that touch the edge's own pixel are part of it, whatever their sign.
    start = run_starts.take(run_index.take(to - 1))
    stop = run_starts.take(run_index.take(to + 2) + 1)
    steps_before = np.where(steps.take(to - 1) == slope, to - start, 0)
    steps_after = np.where(steps.take(to + 2) == slope, stop - (to + 2), 0)
    widths = np.zeros_like(image)
    widths.put(at, 2 + steps_before + steps_after)
    return widths.reshape(greys.shape)


def _find_sobel_edges(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the horizontal Sobel gradient is strong and a local maximum on either axis, off the border."""
    gradient = cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8, borderType=cv2.BORDER_REFLECT)
    strength = gradient * gradient
    _, strong = cv2.threshold(strength, 2 * float(np.sqrt(strength.mean())), 0, cv2.THRESH_TOZERO)
    here = strong[1:-1, 1:-1]
    across = (here > strong[1:-1, :-2]) & (here > strong[1:-1, 2:])
    down = (here > strong[:-2, 1:-1]) & (here > strong[2:, 1:-1])
    edges = np.zeros(grey.shape, bool)
    edges[1:-1, 1:-1] = across | down
    return edges


def _share_sharp_edges(grey: NDArray[np.uint8], widths: NDArray[np.int16]) -> float:
    n_edges = n_sharp = 0
    for rows in _split_side(grey.shape[0]):
        for columns in _split_side(grey.shape[1]):
            block = widths[rows, columns]
            n_block = np.count_nonzero(block)
            if n_block <= EDGE_SHARE * block.size:
                continue
            low, high, _, _ = cv2.minMaxLoc(grey[rows, columns])
            jnb = JNB_WIDTH_PX[high - low <= LOW_CONTRAST]
            n_edges += n_block
            n_sharp += n_block - np.count_nonzero(block > jnb)
    return n_sharp / n_edges if n_edges else float("nan")


def _split_side(side: int) -> list[slice]:
    n = max(1, side // BLOCK_PX)
    return [slice(side * k // n, side * (k + 1) // n) for k in range(n)]
