"""From series over time to the table: scores of a clip, means over clips, and curves by frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shards.ledger import OK
from shards.table import Row
from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import Measurements
from stages.evaluate.metrics.identity import drift
from stages.evaluate.metrics.mouth import (
    Mouths,
    correlation,
    drop_nan_frames,
    lag_frames,
    mouth_distance,
    openings,
)
from stages.evaluate.metrics.obedience import Mean, audio_obedience, bootstrap_mean
from stages.evaluate.metrics.pixels import PEAK, Series, compute_psnr

MIN_OBEDIENCE_FRAMES = 10  # with a mouth in all three of the signals that obedience compares

CLIPS_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string()),  # of the table
        pa.field("name", pa.string()),  # of the generated file
        pa.field("clip_id", pa.string()),  # whose frames
        pa.field("audio_clip_id", pa.string()),  # whose speech
        *(pa.field(name, pa.string()) for name in ("split", "speaker", "emotion", "level")),
        *(pa.field(name, pa.string()) for name in ("status", "code", "reason")),
        pa.field("frames", pa.int32()),  # that were scored
        *(pa.field(column, pa.float64()) for column in COLUMNS),
    ]
)
CPBD = ("cpbd_box", "cpbd_frame")
CURVES = ("psnr_box_db", "identity_distance", "opening", "opening_speech")
FRAMES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string()),
        pa.field("name", pa.string()),
        pa.field("frame", pa.int32()),
        *(pa.field(curve, pa.float32()) for curve in CURVES),
    ]
)


def get_mouths(measurements: Measurements) -> Mouths | None:
    """The landmarks, if they were measured."""
    return Mouths(measurements["lips"], measurements["pupils"]) if "lips" in measurements else None


def score_clip(
    measurements: Measurements, speech: Mouths | None, source: Mouths | None, *, own: bool
) -> dict[str, float]:
    """A clip's scores by column; one that is not defined for it is nan or absent.

    ``speech`` is the ground truth mouth of the speech that it was generated from, ``source`` that of its own
    frames.
    """
    scores = {
        "smoothness_box": float(measurements["smoothness"]),
        "identity_drift": drift(measurements["identity_distances"]),
        **{name: float(np.nanmean(measurements[name]))
           for name in CPBD if np.isfinite(measurements[name]).any()},
    }  # fmt: skip
    if own:
        scores |= {
            "psnr_box_db": compute_psnr(measurements["errors_box"]),
            "psnr_frame_db": compute_psnr(measurements["errors_frame"]),
            "ssim_box": float(measurements["ssim_box"].mean()),
            "ssim_frame": float(measurements["ssim_frame"].mean()),
        }
    generated = get_mouths(measurements)
    if generated is None or speech is None or source is None:
        return scores
    generated, speech, source = trim_to_shortest(generated, speech, source)
    scores |= {
        "opening_correlation": correlation(openings(generated), openings(speech)),
        "opening_lag_frames": lag_frames(openings(generated), openings(speech)),
    }
    if own:
        distance = mouth_distance(generated, source)
        scores |= {"mouth_distance_px": distance.px, "mouth_distance_pupils": distance.pupils}
    else:
        scores["audio_obedience"] = score_obedience(generated, speech, source)
    return scores


def trim_to_shortest(*mouths: Mouths) -> list[Mouths]:
    """The frames that all of them have."""
    n_frames = min(map(len, mouths))
    return [each[:n_frames] for each in mouths]


def score_obedience(generated: Mouths, speech: Mouths, source: Mouths) -> float:
    """Audio obedience over the frames in which all three mouths were found; nan when they are too few."""
    signals = drop_nan_frames(*map(openings, trim_to_shortest(generated, speech, source)))
    return audio_obedience(*signals) if len(signals[0]) >= MIN_OBEDIENCE_FRAMES else float("nan")


def compute_curves(measurements: Measurements, speech: Mouths | None) -> dict[str, Series]:
    """Series by frame for ``frames.parquet``; nan where unknown, infinite where nothing differs."""
    curves: dict[str, Series] = {"identity_distance": measurements["identity_distances"]}
    if "errors_box" in measurements:
        with np.errstate(divide="ignore"):
            curves["psnr_box_db"] = 10 * np.log10(PEAK**2 / measurements["errors_box"])
    generated = get_mouths(measurements)
    if generated is not None and speech is not None:
        curves |= {"opening": openings(generated), "opening_speech": openings(speech[: len(generated)])}
    return curves


def group_means(rows: Iterable[Row], column: str, by: Sequence[str]) -> dict[tuple[str, ...], Mean]:
    """Mean of a column over clips, with its interval, in each group of rows of ``clips.parquet``.

    ``("row",)`` gives the column of the table, ``("row", "emotion")`` splits it by emotion too. Groups are
    in order of appearance.
    """
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        if row[column] is not None and None not in key:
            groups.setdefault(key, []).append(row[column])
    return {key: bootstrap_mean(values) for key, values in groups.items()}


def build_metrics(
    rows: Sequence[Row], row_means: Mapping[str, Mapping[str, Mean]], not_computed: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The table for ``metrics.json``: row -> column -> mean and interval, or why there is none.

    ``row_means``, by row and column, are values of a whole row that no single clip has.
    """
    table: dict[str, dict[str, Any]] = {row["row"]: {} for row in rows}
    for column in COLUMNS:
        means = group_means(rows, column, ("row",))
        for name, values in table.items():
            mean = means.get((name,)) or row_means.get(name, {}).get(column)
            if mean is not None:
                values[column] = {"mean": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
            else:
                clips = [row for row in rows if row["row"] == name]
                values[column] = (
                    f"not computed: {not_computed.get(column) or _explain_missing(column, clips)}"
                )
    return table


def _explain_missing(column: str, rows: Sequence[Row]) -> str:
    """Why no clip of a row has a value in a column that was computed."""
    scored = [row for row in rows if row["status"] == OK]
    swapped = {row["clip_id"] != row["audio_clip_id"] for row in scored}
    if not scored:
        return "no clip of this row could be scored"
    if COLUMNS[column].needs_truth and swapped == {True}:
        return "there is no ground truth of these faces with another's speech"
    if column == "audio_obedience" and swapped == {False}:
        return "it needs clips that were generated from another's speech"
    if column.startswith("psnr"):
        return "infinite: every pixel equals the ground truth"
    return "not defined for these clips"


def average_curves(table: pa.Table, curve: str) -> list[Row]:
    """A curve's mean over clips by frame, with a column for each row of the table; for ``dvc plots``."""
    curves: dict[str, dict[int, list[float]]] = {}
    columns = (table.column(name).to_pylist() for name in ("row", "frame", curve))
    for row, frame, value in zip(*columns, strict=True):
        if value is not None:
            curves.setdefault(row, {}).setdefault(frame, []).append(value)
    n_frames = 1 + max((max(frames) for frames in curves.values()), default=-1)
    return [
        {"frame": k} | {row: float(np.mean(frames[k])) for row, frames in curves.items() if k in frames}
        for k in range(n_frames)
    ]
