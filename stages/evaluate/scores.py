"""From series over time to the table: a clip's figures, their means over clips, curves by frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shards.ledger import OK
from shards.table import Row
from stages.evaluate.columns import COLUMNS
from stages.evaluate.measure import Measured
from stages.evaluate.metrics.identity import drift
from stages.evaluate.metrics.mouth import Mouths, correlation, lag_frames, mouth_distance, openings, seen
from stages.evaluate.metrics.obedience import Mean, audio_obedience, mean_of
from stages.evaluate.metrics.pixels import PEAK, Series, decibels

MIN_SEEN = 10  # frames with a mouth in all of the signals that obedience compares

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


def mouths_in(found: Measured) -> Mouths | None:
    """Landmarks, where somebody looked."""
    return Mouths(found["lips"], found["pupils"]) if "lips" in found else None


def clip_scores(
    found: Measured, speech: Mouths | None, source: Mouths | None, *, own: bool
) -> dict[str, float]:
    """A clip's figures by column; what is not defined for it is nan, or is not there.

    ``speech`` is the true mouth of the speech that it was drawn to, ``source`` that of its own frames.
    """
    scores = {
        "smoothness_box": float(found["smoothness"]),
        "identity_drift": drift(found["identity_distances"]),
        **{name: float(np.nanmean(found[name])) for name in CPBD if np.isfinite(found[name]).any()},
    }
    if own:
        scores |= {
            "psnr_box_db": decibels(found["errors_box"]),
            "psnr_frame_db": decibels(found["errors_frame"]),
            "ssim_box": float(found["ssim_box"].mean()),
            "ssim_frame": float(found["ssim_frame"].mean()),
        }
    drawn = mouths_in(found)
    if drawn is None or speech is None or source is None:
        return scores
    drawn, speech, source = as_long(drawn, speech, source)
    scores |= {
        "opening_correlation": correlation(openings(drawn), openings(speech)),
        "opening_lag_frames": lag_frames(openings(drawn), openings(speech)),
    }
    if own:
        distance = mouth_distance(drawn, source)
        scores |= {"mouth_distance_px": distance.px, "mouth_distance_pupils": distance.pupils}
    else:
        scores["audio_obedience"] = obedience(drawn, speech, source)
    return scores


def as_long(*mouths: Mouths) -> list[Mouths]:
    """The frames that all of them have."""
    return [one[: min(map(len, mouths))] for one in mouths]


def obedience(drawn: Mouths, speech: Mouths, source: Mouths) -> float:
    """Audio obedience over the frames in which all three mouths are seen; nan when they are few."""
    signals = seen(*map(openings, as_long(drawn, speech, source)))
    return audio_obedience(*signals) if len(signals[0]) >= MIN_SEEN else float("nan")


def curves(found: Measured, speech: Mouths | None) -> dict[str, Series]:
    """By frame: what can be told of each. nan where it is unknown or without bound."""
    told: dict[str, Series] = {"identity_distance": found["identity_distances"]}
    if "errors_box" in found:
        with np.errstate(divide="ignore"):
            told["psnr_box_db"] = 10 * np.log10(PEAK**2 / found["errors_box"])
    drawn = mouths_in(found)
    if drawn is not None and speech is not None:
        told |= {"opening": openings(drawn), "opening_speech": openings(speech[: len(drawn)])}
    return told


def means_by(rows: Iterable[Row], column: str, by: Sequence[str]) -> dict[tuple[str, ...], Mean]:
    """Means of a column over clips, with intervals, in each group of rows: ``("row",)`` gives the table's
    column, ``("row", "emotion")`` tells it by emotion too. Rows of ``clips.parquet``; groups as they come."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        if row[column] is not None and None not in key:
            groups.setdefault(key, []).append(row[column])
    return {key: mean_of(values) for key, values in groups.items()}


def metrics_of(
    rows: Sequence[Row], of_rows: Mapping[str, Mapping[str, Mean]], not_computed: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The table as ``metrics.json`` has it: row -> column -> mean and interval, or why there is none.

    ``of_rows`` are figures of a row as a whole, by row and column, which no clip has alone.
    """
    table: dict[str, dict[str, Any]] = {row["row"]: {} for row in rows}
    for column in COLUMNS:
        means = means_by(rows, column, ("row",))
        for name, cells in table.items():
            mean = means.get((name,)) or of_rows.get(name, {}).get(column)
            if mean is not None:
                cells[column] = {"mean": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
            else:
                alike = [row for row in rows if row["row"] == name]
                cells[column] = f"not computed: {not_computed.get(column) or _why_undefined(column, alike)}"
    return table


def _why_undefined(column: str, rows: Sequence[Row]) -> str:
    """Why no clip of a row has a figure that others have."""
    scored = [row for row in rows if row["status"] == OK]
    swapped = {row["clip_id"] != row["audio_clip_id"] for row in scored}
    if not scored:
        return "no clip of this row could be scored"
    if COLUMNS[column].needs_truth and swapped == {True}:
        return "no truth shows these faces with another's speech"
    if column == "audio_obedience" and swapped == {False}:
        return "it asks for clips that were drawn to another's speech"
    if column.startswith("psnr"):
        return "infinite: every pixel is the truth's"
    return "not defined for these clips"


def curve_means(table: pa.Table, curve: str) -> list[Row]:
    """A curve's mean over clips by frame, a column for each row of the table; for ``dvc plots``."""
    sums: dict[str, dict[int, list[float]]] = {}
    columns = (table.column(name).to_pylist() for name in ("row", "frame", curve))
    for row, frame, value in zip(*columns, strict=True):
        if value is not None:
            sums.setdefault(row, {}).setdefault(frame, []).append(value)
    n_frames = 1 + max((max(frames) for frames in sums.values()), default=-1)
    return [
        {"frame": k} | {row: float(np.mean(frames[k])) for row, frames in sums.items() if k in frames}
        for k in range(n_frames)
    ]
