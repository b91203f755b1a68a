"""Motion of crops and boxes, and frames without a detected face.

Reads matrices, boxes and json of the shards, and decodes no frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.reader import Dataset, read_members
from shards.schema import AFFINE_MEMBER, BOXES_MEMBER, JSON_MEMBER, ShardError, json_to_info, npy_to_array
from stages.report.inputs import pick_evenly

Floats = NDArray[np.float64]

MAX_CLIPS = 2000  # evenly spaced over the sorted clip ids


@dataclass(frozen=True, slots=True)
class MotionStats:
    """One number for each measured clip: arrays are (clips,)."""

    clips: int
    frames: int
    crop_motion_px: Floats  # source px: mean distance of the crop's centre from frame to frame
    crop_jitter_px: Floats  # source px
    box_jitter_px: Floats  # crop px
    source_px: Floats  # source px per crop px
    box_share: Floats  # masked share of the crop
    interpolated: NDArray[np.int64]  # frames whose landmarks were interpolated


def measure_motion(dataset: Dataset) -> MotionStats:
    """Measure up to MAX_CLIPS clips. Raises ShardError."""
    clip_ids = pick_evenly(sorted(dataset.clips), MAX_CLIPS)
    rows = [_measure_clip(dataset, clip_id) for clip_id in clip_ids]
    names = ("crop_motion_px", "crop_jitter_px", "box_jitter_px", "source_px", "box_share", "interpolated")
    n_frames = sum(dataset.clips[clip_id]["frames"] for clip_id in clip_ids)
    return MotionStats(len(rows), n_frames, **{name: np.array([row[name] for row in rows]) for name in names})


def _measure_clip(dataset: Dataset, clip_id: str) -> dict[str, float | int]:
    members = read_members(dataset, clip_id, ("boxes", "affine", "json"))
    info = json_to_info(members["json"], f"{clip_id}.{JSON_MEMBER}")
    boxes = npy_to_array(members["boxes"], f"{clip_id}.{BOXES_MEMBER}").astype(np.float64)
    affine = npy_to_array(members["affine"], f"{clip_id}.{AFFINE_MEMBER}").astype(np.float64)
    n_frames, size = dataset.clips[clip_id]["frames"], info.get("size")
    if boxes.shape != (n_frames, 4) or affine.shape != (n_frames, 2, 3) or not isinstance(size, int):
        raise ShardError(
            f"{clip_id}: boxes {boxes.shape}, affine {affine.shape} and size {size!r} do not match "
            f"{n_frames} frames"
        )
    scale = np.sqrt(np.abs(np.linalg.det(affine[:, :, :2])))
    if not (scale > 0).all():
        raise ShardError(f"{clip_id}: the matrix of frame {int(np.argmin(scale))} cannot be inverted")
    centre = np.full(2, (size - 1) / 2)
    source = np.linalg.solve(affine[:, :, :2], (centre - affine[:, :, 2])[:, :, None])[:, :, 0]
    corners: Floats = boxes.reshape(-1, 2, 2)
    interpolated = info.get("interpolated_frames")
    steps = np.linalg.norm(np.diff(source, axis=0), axis=1)
    return {
        "crop_motion_px": float(steps.mean()) if len(steps) else 0.0,
        "crop_jitter_px": compute_jitter(source),
        "box_jitter_px": compute_jitter((corners[:, 0] + corners[:, 1]) / 2),
        "source_px": float((1 / scale).mean()),
        "box_share": float((corners[:, 1] - corners[:, 0]).prod(axis=1).mean() / size**2),
        "interpolated": len(interpolated) if isinstance(interpolated, list) else 0,
    }


def compute_jitter(points: NDArray[np.floating[Any]]) -> float:
    """Jitter of a track (T, 2) along one axis, in the unit of the track.

    The standard deviation of white noise with second differences of the same size. Uniform motion has a
    jitter of 0, and noise with standard deviation s has a jitter of s, because the filter (1, -2, 1) makes
    its variance 6 s^2.
    """
    second_differences = np.diff(points, n=2, axis=0)
    return float(np.sqrt((second_differences**2).mean() / 6)) if second_differences.size else 0.0
