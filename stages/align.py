"""Stage 3: one matrix per frame that brings the face to its canonical place, and the box to be masked.

Paper section 3.3.3, with its aligner's faults mended: the mean over 7 frames is centred (its window
looked ahead and lagged by three frames), and the box does not jitter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.ledger import OK, count_by_code
from shards.table import Row
from stages import landmarks
from stages.clips import carry_ledger
from stages.engine.cache import digest
from stages.engine.outcome import Drop, Mapper, Outcome, Report, StageError, Work
from stages.engine.parts import (
    Part,
    PartTask,
    build,
    part_key,
    read_outcomes,
    read_part,
    write_part,
)
from stages.engine.per_clip import read_array
from stages.media.faces import FACE_OVAL, N_POINTS, NOSE_BASE, STABLE_POINTS, Points

STAGE = "align"
VERSION = 1
COLUMNS = {
    "affine": np.float32,  # (T, 2, 3), source px -> crop px
    "boxes": np.int16,  # (T, 4), x0 y0 x1 y1 in the crop, x1 and y1 exclusive
}
TEMPLATE_SIZE = 128
# Where the five stable points lie in a crop of 128 px: nose base, then the eyes' corners from the
# image's left to its right. The mean of eight real speakers (seven of GRID, CREMA-D's 1001), made
# symmetric, scaled and placed as the paper's authors framed theirs: eyes at y 53, pupils 33 px apart.
TEMPLATE = np.array([(63.5, 76.0), (41.0, 52.8), (54.8, 53.2), (72.2, 53.2), (86.0, 52.8)])

USED_POINTS = STABLE_POINTS + FACE_OVAL  # all that alignment looks at

Matrices = NDArray[np.float32]  # (T, 2, 3)
Boxes = NDArray[np.int16]  # (T, 4)


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AlignParams:
    """The crop and the box."""

    size: int = Field(default=128, ge=32, le=1024)  # px, of the square crop
    smooth_frames: Annotated[int, Field(ge=1, le=99)] = 7  # of the centred mean; odd
    # Margins of the box, in px of a crop of 128.
    below_nose: float = Field(default=2.0, ge=0)
    below_chin: float = Field(default=4.0, ge=0)
    beside_face: float = Field(default=2.0, ge=0)

    def __post_init__(self) -> None:
        if self.smooth_frames % 2 == 0:
            raise ValueError(f"smooth_frames is {self.smooth_frames}, expected an odd number")


def centred_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over ``window`` frames around each, (T, ...). At the ends the window shrinks on both sides.

    So what moves evenly is left as it is everywhere: no lag, and no pull at the ends.
    """
    n_frames = len(values)
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    k = np.arange(n_frames)
    radius = np.minimum(np.minimum(k, n_frames - 1 - k), window // 2)
    counts = (2 * radius + 1).reshape(-1, *[1] * (values.ndim - 1))
    means: NDArray[np.float64] = (sums[k + radius + 1] - sums[k - radius]) / counts
    return means


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares scale, rotation and shift from points (T, N, 2) to (N, 2): (T, 2, 3).

    In complex numbers z -> c z + d, and least squares is one division. Reflections cannot occur.
    """
    z = source[..., 0] + 1j * source[..., 1]
    w = target[..., 0] + 1j * target[..., 1]
    z_mean, w_mean = z.mean(axis=-1, keepdims=True), w.mean(axis=-1, keepdims=True)
    spread = (np.abs(z - z_mean) ** 2).sum(axis=-1)
    c = (np.conj(z - z_mean) * (w - w_mean)).sum(axis=-1) / spread
    d = w_mean[..., 0] - c * z_mean[..., 0]
    rows = [np.stack([c.real, -c.imag, d.real], -1), np.stack([c.imag, c.real, d.imag], -1)]
    return np.stack(rows, axis=-2)


def project(matrices: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points (T, N, 2) through matrices (T, 2, 3)."""
    turned = points.astype(np.float64) @ matrices[:, :, :2].astype(np.float64).swapaxes(1, 2)
    projected: NDArray[np.float64] = turned + matrices[:, None, :, 2]
    return projected


def align_clip(points: Points, params: AlignParams) -> tuple[Matrices, Boxes]:
    """Matrices and boxes of a clip from its points (T, 478, 2)."""
    return align_used(points[:, USED_POINTS], params)


def align_used(points: Points, params: AlignParams) -> tuple[Matrices, Boxes]:
    """The same from the points that alignment looks at (T, 41, 2): a long video's meshes are large."""
    scale = params.size / TEMPLATE_SIZE
    stable = centred_mean(points[:, : len(STABLE_POINTS)].astype(np.float64), params.smooth_frames)
    # A pixel's centre is a whole number, so the crop's edge is at -0.5: scaling keeps the edge.
    template = (TEMPLATE + 0.5) * scale - 0.5
    matrices = similarity(stable, template).astype(np.float32)
    if not np.isfinite(matrices).all():
        raise Drop("no_alignment", "its eyes and nose fall on one point")
    return matrices, mask_boxes(project(matrices, points), params)


def mask_boxes(projected: NDArray[np.float64], params: AlignParams) -> Boxes:
    """Boxes (T, 4) from used points in the crop (T, 41, 2): below nose to below chin, cheek to cheek.

    A box follows the nose's base, which the jaw does not move, and keeps one size through the clip: the
    size that holds the whole lower face in every frame. So the jaw is hidden always, and neither size
    nor place tells how open the mouth is.
    """
    scale = params.size / TEMPLATE_SIZE
    anchor = centred_mean(projected[:, USED_POINTS.index(NOSE_BASE)], params.smooth_frames)
    lower = projected[:, len(STABLE_POINTS) :]
    # Only what lies below the nose has to be hidden; the oval is wider at the cheekbones.
    below = lower[..., 1] >= anchor[:, None, 1]
    sideways = np.where(below, lower[..., 0] - anchor[:, None, 0], 0.0)
    downwards = np.where(below, lower[..., 1] - anchor[:, None, 1], 0.0)
    left = np.ceil(-sideways.min() + params.beside_face * scale)
    right = np.ceil(sideways.max() + params.beside_face * scale)
    down = np.ceil(downwards.max() + params.below_chin * scale)
    x, y = np.rint(anchor).T
    top = y + np.rint(params.below_nose * scale)
    boxes = np.stack([x - left, top, x + right + 1, y + down + 1], axis=-1)
    clipped: Boxes = np.clip(boxes, 0, params.size).astype(np.int16)
    return clipped


def align_part(task: PartTask) -> None:
    """Write one part from the landmarks' part."""
    source, params = task.inputs
    rows: list[tuple[str, Outcome, Row]] = []
    for clip_id, found in read_part(source).items():
        if found["status"] != OK:
            continue
        points = read_array(found, "points", landmarks.COLUMNS, (-1, N_POINTS, 2))
        try:
            matrices, boxes = align_clip(points, params)
            check_boxes(boxes)
        except Drop as drop:
            rows.append((clip_id, Outcome.dropped(drop), {}))
            continue
        rows.append((clip_id, Outcome(), {"affine": matrices.tobytes(), "boxes": boxes.tobytes()}))
    write_part(task.path, task.key, [pa.field(name, pa.binary()) for name in COLUMNS], rows)


def check_boxes(boxes: Boxes) -> None:
    """Raise Drop when a box is empty: the face lies so that nothing of its lower half is in the crop."""
    empty = np.flatnonzero((boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3]))
    if len(empty):
        raise Drop("no_alignment", f"its box is empty in frame {empty[0]}: {boxes[empty[0]].tolist()}")


def run(work: Work, params: AlignParams, parts: Sequence[Part], mapper: Mapper) -> Report:
    """Write ``align/<part>.parquet``: matrices and boxes of every clip with landmarks."""
    tasks = []
    for part in parts:
        source = work.stage(landmarks.STAGE) / f"{part.name}.parquet"
        source_key = part_key(source)
        if source_key is None:
            raise StageError(f"{source}: not there; run `pipeline landmarks --dataset {work.corpus}` first")
        key = digest(STAGE, VERSION, params, source_key)
        path = work.stage(STAGE) / f"{part.name}.parquet"
        tasks.append(PartTask(part, path, key, (source, params)))
    report = Report(STAGE)
    stale = build(work.stage(STAGE), tasks, align_part, mapper, report)
    outcomes = read_outcomes(work.stage(STAGE), parts)
    frames = {row["clip_id"]: row["frames"] for part in parts for row in part.rows}
    report.clips = len(outcomes)
    report.counts = count_by_code(outcomes)
    report.frames = sum(frames[row["clip_id"]] for row in outcomes if row["status"] == OK)
    report.clips_computed = sum(len(task.part.rows) for task in stale)
    carry_ledger(work, (landmarks.STAGE, STAGE), parts)
    return report
