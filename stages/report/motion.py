"""How crops and boxes move, and where faces were missed: from matrices, boxes and json, without any frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset, read_members
from shards.schema import AFFINE_MEMBER, BOXES_MEMBER, JSON_MEMBER, ShardError, json_to_info, npy_to_array
from stages.report.inputs import evenly

Floats = NDArray[np.float64]

CLIPS_MEASURED = 2000  # at most, spread evenly over the names


@dataclass(frozen=True, slots=True)
class Measured:
    """One number for each clip that was looked at."""

    clips: int
    frames: int
    crop_motion_px: Floats  # of the source: mean way of the crop's centre from frame to frame
    crop_jitter_px: Floats  # of the source
    box_jitter_px: Floats  # of the crop
    source_px: Floats  # of the source, along the side of one crop pixel
    box_share: Floats  # of the crop that is masked
    interpolated: NDArray[np.int64]  # frames without a face of their own


def measured(dataset: Dataset) -> Measured:
    """Read matrices, boxes and json of up to CLIPS_MEASURED clips. Raises ShardError."""
    few = evenly(sorted(dataset.clips), CLIPS_MEASURED)
    rows = [_measured_clip(dataset, clip_id) for clip_id in few]
    names = ("crop_motion_px", "crop_jitter_px", "box_jitter_px", "source_px", "box_share", "interpolated")
    n_frames = sum(dataset.clips[clip_id]["frames"] for clip_id in few)
    return Measured(len(rows), n_frames, **{name: np.array([row[name] for row in rows]) for name in names})


def _measured_clip(dataset: Dataset, clip_id: str) -> dict[str, float | int]:
    members = read_members(dataset, clip_id, ("boxes", "affine", "json"))
    info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
    boxes = npy_to_array(members["boxes"], f"{clip_id}.{BOXES_MEMBER}").astype(np.float64)
    affine = npy_to_array(members["affine"], f"{clip_id}.{AFFINE_MEMBER}").astype(np.float64)
    n_frames, size = dataset.clips[clip_id]["frames"], info.get("size")
    if boxes.shape != (n_frames, 4) or affine.shape != (n_frames, 2, 3) or not isinstance(size, int):
        raise ShardError(f"{clip_id}: boxes {boxes.shape}, affine {affine.shape}, size {size!r} do not fit")
    scale = np.sqrt(np.abs(np.linalg.det(affine[:, :, :2])))
    if not (scale > 0).all():
        raise ShardError(f"{clip_id}: the matrix of frame {int(np.argmin(scale))} cannot be inverted")
    centre = np.full(2, (size - 1) / 2)
    source = np.linalg.solve(affine[:, :, :2], (centre - affine[:, :, 2])[:, :, None])[:, :, 0]
    corners: Floats = boxes.reshape(-1, 2, 2)
    told = info.get("interpolated_frames")
    steps = np.linalg.norm(np.diff(source, axis=0), axis=1)
    return {
        "crop_motion_px": float(steps.mean()) if len(steps) else 0.0,
        "crop_jitter_px": jitter(source),
        "box_jitter_px": jitter((corners[:, 0] + corners[:, 1]) / 2),
        "source_px": float((1 / scale).mean()),
        "box_share": float((corners[:, 1] - corners[:, 0]).prod(axis=1).mean() / size**2),
        "interpolated": len(told) if isinstance(told, list) else 0,
    }


def jitter(points: NDArray[np.floating[Any]]) -> float:
    """How much a track (T, 2) trembles, in its own unit, along one axis.

    The standard deviation of the white noise whose second differences are as large as the track's: even
    motion has none, and noise of standard deviation s has s, since (1, -2, 1) makes its variance 6 s^2.
    """
    bends = np.diff(points, n=2, axis=0)
    return float(np.sqrt((bends**2).mean() / 6)) if bends.size else 0.0
