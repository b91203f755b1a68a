"""Stage 3: one matrix per frame that maps the face to its canonical place, and the box to mask.

Paper section 3.3.3, with the faults of its aligner fixed: the mean over 7 frames is centred (the paper's
window looks ahead and lags by three frames), and the box does not jitter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.ledger import OK
from shards.schema import MAX_SIZE, describe_excess
from shards.table import Row
from stages import landmarks
from stages.engine.cache import digest
from stages.engine.outcome import Drop, Outcome
from stages.engine.parts import (
    Part,
    PartTask,
    list_columns,
    read_part,
    update_parts,
    write_part,
)
from stages.engine.per_clip import count_outcomes, read_array, read_stage_key
from stages.engine.stage import Context, Report, Work
from stages.media.crops import TEMPLATE, TEMPLATE_SIZE, Matrices, fit_similarity
from stages.media.faces import N_POINTS, NOSE_BASE, STABLE_POINTS, USED_POINTS, Points

STAGE = "align"
VERSION = 1
COLUMNS = {
    "affine": np.float32,  # (T, 2, 3), source px -> crop px
    "boxes": np.int16,  # (T, 4), x0 y0 x1 y1 in the crop, x1 and y1 exclusive
}
Boxes = NDArray[np.int16]  # (T, 4)


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AlignParams:
    """The crop and the box."""

    size: int = Field(default=128, ge=32, le=MAX_SIZE)  # px, of the square crop
    smooth_frames: Annotated[int, Field(ge=1, le=99)] = 7  # of the centred mean; odd
    # Margins of the box, in px of a crop of 128. With a negative one the box begins above the nose's base.
    below_nose: float = Field(default=2.0, ge=-64, le=TEMPLATE_SIZE)
    below_chin: float = Field(default=4.0, ge=0, le=TEMPLATE_SIZE)
    beside_face: float = Field(default=2.0, ge=0, le=TEMPLATE_SIZE)

    def __post_init__(self) -> None:
        if self.smooth_frames % 2 == 0:
            raise ValueError(f"smooth_frames is {self.smooth_frames}, expected an odd number")


def centred_mean(values: NDArray[np.float64], window: int, jumps: Sequence[int] = ()) -> NDArray[np.float64]:
    """Mean over ``window`` frames around each frame, (T, ...). At the ends it shrinks on both sides.

    So values that change linearly are not changed: there is no lag, and no bias at the ends. It does not
    cross ``jumps``, the frames that do not continue the one before: each begins a part of its own.
    """
    if len(jumps):
        return np.concatenate([centred_mean(part, window) for part in np.split(values, list(jumps))])
    n_frames = len(values)
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    k = np.arange(n_frames)
    radius = np.minimum(np.minimum(k, n_frames - 1 - k), window // 2)
    counts = (2 * radius + 1).reshape(-1, *[1] * (values.ndim - 1))
    means: NDArray[np.float64] = (sums[k + radius + 1] - sums[k - radius]) / counts
    return means


def project_points(matrices: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map points (T, N, 2) by matrices (T, 2, 3)."""
    rotated = points.astype(np.float64) @ matrices[:, :, :2].astype(np.float64).swapaxes(1, 2)
    projected: NDArray[np.float64] = rotated + matrices[:, None, :, 2]
    return projected


def align_clip(points: Points, params: AlignParams, jumps: Sequence[int] = ()) -> tuple[Matrices, Boxes]:
    """Matrices (T, 2, 3) and boxes (T, 4) of a clip from its points (T, 478, 2).

    ``jumps`` are the frames after a cut or a zoom, in order: no mean crosses them.
    """
    return align_used_points(points[:, USED_POINTS], params, jumps)


def align_used_points(
    points: Points, params: AlignParams, jumps: Sequence[int] = ()
) -> tuple[Matrices, Boxes]:
    """As ``align_clip``, from USED_POINTS alone (T, 41, 2): the meshes of a long video are large."""
    scale = params.size / TEMPLATE_SIZE
    stable = centred_mean(points[:, : len(STABLE_POINTS)].astype(np.float64), params.smooth_frames, jumps)
    # Pixel centres are whole numbers, so the crop's edge is at -0.5, and scaling keeps it there.
    template = (TEMPLATE + 0.5) * scale - 0.5
    matrices = fit_similarity(stable, template).astype(np.float32)
    if not np.isfinite(matrices).all():
        raise Drop("no_alignment", "its eyes and nose fall on one point")
    return matrices, compute_mask_boxes(project_points(matrices, points), params, jumps)


def compute_mask_boxes(
    projected: NDArray[np.float64], params: AlignParams, jumps: Sequence[int] = ()
) -> Boxes:
    """Boxes (T, 4) from USED_POINTS in the crop (T, 41, 2): below nose to below chin, cheek to cheek.

    A box follows the base of the nose, which the jaw does not move, and has one size throughout the clip:
    the smallest that contains the whole lower face in every frame. So the jaw is always hidden, and the size
    does not reveal how open the mouth is. It stays the same after a jump, too: the crops on both sides show
    the face at one size, and a box for each part alone would reveal more about that part. The position does
    reveal something: the five stable points, and with them the crop, move slightly when the mouth opens. On
    GRID the opening that a linear predictor infers from the coordinates of the boxes alone correlates 0.36
    with the true one (`frames.mask_region` hides them).
    """
    scale = params.size / TEMPLATE_SIZE
    anchor = centred_mean(projected[:, USED_POINTS.index(NOSE_BASE)], params.smooth_frames, jumps)
    lower = projected[:, len(STABLE_POINTS) :]
    # Only what is below the nose must be hidden; the oval is wider at the cheekbones.
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
    for clip_id, row in read_part(source, list_columns(landmarks.COLUMNS)).items():
        if row["status"] != OK:
            continue
        points = read_array(row, "points", landmarks.COLUMNS, (-1, N_POINTS, 2))
        try:
            check_length(len(points), params.size)
            jumps = np.flatnonzero(read_array(row, "jumps", landmarks.COLUMNS, (-1,)))
            matrices, boxes = align_clip(points, params, jumps.tolist())
            check_boxes(boxes)
        except Drop as drop:
            rows.append((clip_id, Outcome.from_drop(drop), {}))
            continue
        rows.append((clip_id, Outcome(), {"affine": matrices.tobytes(), "boxes": boxes.tobytes()}))
    write_part(task.path, task.key, list_columns(COLUMNS), rows)


def check_boxes(boxes: Boxes) -> None:
    """Raise Drop when a box is empty: no part of the lower face is in the crop."""
    empty = np.flatnonzero((boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3]))
    if len(empty):
        raise Drop("no_alignment", f"its box is empty in frame {empty[0]}: {boxes[empty[0]].tolist()}")


def check_length(n_frames: int, size: int) -> None:
    """Raise Drop when no reader of shards would accept a clip of so many frames of ``size`` px."""
    if excess := describe_excess(n_frames, size):
        raise Drop("too_large", f"its {excess}; cut it, or choose a smaller align.size")


def make_part_key(part: Part, params: AlignParams | Mapping[str, Any], source_key: str) -> str:
    """The key of a part that is made with these params from the landmarks' part of ``source_key``."""
    size = params.size if isinstance(params, AlignParams) else params["size"]
    lengths = part.rows.table["frames"].to_pylist()
    # Versions that did not drop such clips have made parts with the other key.
    n_too_large = sum(bool(describe_excess(n_frames, size)) for n_frames in lengths)
    return digest(STAGE, VERSION, params, source_key, *([n_too_large] if n_too_large else []))


def run(work: Work, parts: Sequence[Part], params: AlignParams, context: Context) -> Report:
    """Write ``align/<part>.parquet``: the matrices and boxes of every clip with landmarks."""
    tasks = []
    for part in parts:
        source = work.part_path(landmarks.STAGE, part.name)
        key = make_part_key(part, params, read_stage_key(landmarks.STAGE, work, part))
        tasks.append(PartTask(part, work.part_path(STAGE, part.name), key, (source, params)))
    report = Report(STAGE)
    stale = update_parts(work.stage_folder(STAGE), tasks, align_part, context.map_tasks, report)
    report.clips_computed = sum(len(task.part.rows) for task in stale)
    count_outcomes(report, work, parts)
    return report
