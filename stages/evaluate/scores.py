"""From series over time to the table: scores of a clip, means over clips, and curves by frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shards.ledger import OK
from shards.schema import MAX_FRAMES
from shards.table import Row, Rule
from stages.evaluate.columns import COLUMNS
from stages.evaluate.listening import OBEDIENCE, RATIOS, score_border, score_errors, score_openings
from stages.evaluate.measure import Measurements
from stages.evaluate.table import MEAN_OPENING
from stages.metrics.identity import drift
from stages.metrics.mouth import Mouths, lag_frames, mouth_distance, openings
from stages.metrics.obedience import MIN_UNITS, Mean, bootstrap_mean, bootstrap_ratio
from stages.metrics.pixels import Series, score_psnr, score_psnr_by_frame
from stages.metrics.sync import Prediction, score_sync

FIRST_CLIPS_SCHEMA = pa.schema(
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
# Which older tables lack: of the clip whose speech it is.
ADDED_CLIPS_FIELDS = (
    tuple(
        pa.field(name, pa.string())
        for name in ("audio_split", "audio_speaker", "audio_emotion", "audio_level")
    ),
)
CLIPS_SCHEMA = pa.schema([*FIRST_CLIPS_SCHEMA, *(field for group in ADDED_CLIPS_FIELDS for field in group)])
CLIPS_RULES = MappingProxyType(
    dict.fromkeys(("row", "name", "clip_id", "audio_clip_id", "split", "status"), Rule(required=True))
)
CPBD = ("cpbd_box", "cpbd_frame")
SSIM = ("ssim_box", "ssim_frame")
# Columns with a paired difference: most spread of a mean is that between clips, which two systems share.
DIFFERENCE_COLUMNS = frozenset(
    {"psnr_box_db", "ssim_box", "lpips_box", "cpbd_box", "border_colour", "mouth_distance_pupils"}
    | {"opening_correlation", "sync_confidence", "audio_obedience", "audio_obedience_net", "closure"}
    | {"lse_c", "lse_d", "lse_c_real", "lse_d_real"}
)
CURVES = ("psnr_box_db", "identity_distance", "opening", "opening_speech")
FRAMES_SCHEMA = pa.schema(
    [
        pa.field("row", pa.string()),
        pa.field("name", pa.string()),
        pa.field("frame", pa.int32()),
        *(pa.field(curve, pa.float32()) for curve in CURVES),
    ]
)


FRAMES_RULES = MappingProxyType(
    {
        **dict.fromkeys(("row", "name"), Rule(required=True)),
        "frame": Rule(required=True, low=0, high=MAX_FRAMES),
    }
)


def get_mouths(measurements: Measurements) -> Mouths | None:
    """The landmarks, if they were measured."""
    return Mouths(measurements["lips"], measurements["pupils"]) if "lips" in measurements else None


@dataclass(frozen=True, slots=True)
class TrueClip:
    """What scores need of a clip's own frames and sound; None where it is not known."""

    mouths: Mouths | None = None
    is_silent: NDArray[np.bool_] | None = None  # (T,)
    closures: Sequence[int] | None = None  # frames in which a p, b or m closes the lips
    mouth_by_speech: Prediction | None = None  # (T, 2)


def score_clip(
    measurements: Measurements, speech: TrueClip, source: TrueClip, *, own: bool
) -> dict[str, float]:
    """A clip's scores by column; one that is not defined for it is nan or absent.

    ``speech`` is the clip of the speech that it was generated from, ``source`` that of its frames.
    """
    scores = {
        "smoothness_box": float(measurements["smoothness"]),
        "identity_drift": drift(measurements["identity_distances"]),
        "border_colour": score_border(measurements["border_distances"]),
        **{name: float(np.nanmean(measurements[name]))
           for name in CPBD if np.isfinite(measurements.get(name, np.nan)).any()},
        **{name: float(measurements[name].mean()) for name in SSIM if name in measurements},
    }  # fmt: skip
    if own:
        scores |= score_errors(measurements["errors_box"])
        scores["psnr_frame_db"] = score_psnr(measurements["errors_frame"])
    generated = get_mouths(measurements)
    if generated is None or speech.mouths is None or source.mouths is None:
        return scores
    n_frames = min(map(len, (generated, speech.mouths, source.mouths)))
    generated, true_speech, true_source = (
        mouths[:n_frames] for mouths in (generated, speech.mouths, source.mouths)
    )
    scores |= score_openings(
        *map(openings, (generated, true_speech, true_source)),
        is_silent=speech.is_silent,
        closures=speech.closures,
        own=own,
    )
    scores["opening_lag_frames"] = lag_frames(openings(generated), openings(true_speech))
    if speech.mouth_by_speech is not None and (
        score := score_sync(openings(generated), speech.mouth_by_speech)
    ):
        scores |= {"sync_confidence": score.confidence, "sync_lag": score.lag}
    if own:
        distance = mouth_distance(generated, true_source)
        scores |= {"mouth_distance_px": distance.px, "mouth_distance_pupils": distance.pupils}
    return scores


def average_openings(clips: Sequence[Series]) -> Series:
    """Mean opening of clips (T_i,) at each frame number, (max T,); nan where no clip has a mouth."""
    total, count = (np.zeros(max(map(len, clips), default=0)) for _ in range(2))
    for clip in clips:
        is_known = np.isfinite(clip)
        total[: len(clip)][is_known] += clip[is_known]
        count[: len(clip)] += is_known
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(total / count)


def score_mean_opening(curve: Series, speech: TrueClip, source: TrueClip, *, own: bool) -> dict[str, float]:
    """Scores of a mean opening by frame number (T,): what a clip's timing alone reaches, without pixels."""
    if speech.mouths is None or source.mouths is None:
        return {}
    return score_openings(
        curve, openings(speech.mouths), openings(source.mouths), is_silent=None, closures=None, own=own
    )


def compute_curves(measurements: Measurements, speech: Mouths | None) -> dict[str, Series]:
    """Series by frame for ``frames.parquet``; nan where unknown."""
    curves: dict[str, Series] = {"identity_distance": measurements["identity_distances"]}
    if "errors_box" in measurements:
        curves["psnr_box_db"] = score_psnr_by_frame(measurements["errors_box"])
    generated = get_mouths(measurements)
    if generated is not None and speech is not None:
        curves |= {"opening": openings(generated), "opening_speech": openings(speech[: len(generated)])}
    return curves


def group_means(rows: Iterable[Row], column: str, by: Sequence[str]) -> dict[tuple[str, ...], Mean]:
    """Mean of a column over clips, with its interval, in each group of rows of ``clips.parquet``.

    ``("row",)`` gives the column of the table, ``("row", "emotion")`` splits it by emotion too. Groups are
    in order of appearance. A column of RATIOS is the ratio of the means of two others.
    """
    names = RATIOS.get(column, (column,))
    groups: dict[tuple[str, ...], list[tuple[Row, list[float]]]] = {}
    for row in rows:
        key, values = tuple(row[name] for name in by), [row[name] for name in names]
        if None not in (*key, *values):
            groups.setdefault(key, []).append((row, values))
    means = {}
    for key, clips in groups.items():
        speakers = [row.get("speaker") for row, _ in clips]
        columns = zip(*(values for _, values in clips), strict=True)
        bootstrap = bootstrap_ratio if column in RATIOS else bootstrap_mean
        mean = bootstrap(*columns, speakers=speakers)
        if mean is not None:
            means[key] = mean
    return means


def find_difference(
    rows: Mapping[str, Sequence[Row]], name: str, column: str, systems: Sequence[str]
) -> tuple[str, Mean] | None:
    """The mean difference of a row from the first of ``systems`` above it, over the clips that both have.

    ``rows`` are those of ``clips.parquet`` by row of the table. None for the first system, for a column of
    which there are no differences, and where the two have no clip in common.
    """
    names = list(rows)
    above = [system for system in names[: names.index(name)] if system in systems]
    if column not in DIFFERENCE_COLUMNS or not above:
        return None
    own = {row["name"]: row for row in rows[name] if row[column] is not None}
    for system in above:
        others = {row["name"]: row[column] for row in rows[system] if row[column] is not None}
        common = [row for clip, row in own.items() if clip in others]
        if common:
            differences = [row[column] - others[row["name"]] for row in common]
            return system, bootstrap_mean(differences, speakers=[row.get("speaker") for row in common])
    return None


def describe_mean(mean: Mean) -> dict[str, Any]:
    """A mean as ``metrics.json`` has it."""
    return {"mean": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}


def build_metrics(
    rows: Sequence[Row],
    row_means: Mapping[str, Mapping[str, Mean]],
    not_computed: Mapping[str, str],
    systems: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """The table for ``metrics.json``: row -> column -> mean and interval, or why there is none.

    ``row_means``, by row and column, are values of a whole row that no single clip has. ``systems`` are the
    rows that were generated: others have the difference from the first of them as well.
    """
    clips_by_row: dict[str, list[Row]] = {}
    for row in rows:
        clips_by_row.setdefault(row["row"], []).append(row)
    table: dict[str, dict[str, Any]] = {name: {} for name in clips_by_row}
    for column in COLUMNS:
        means = group_means(rows, column, ("row",))
        for name, values in table.items():
            mean = means.get((name,)) or row_means.get(name, {}).get(column)
            if mean is not None:
                values[column] = describe_mean(mean)
                if difference := find_difference(clips_by_row, name, column, systems):
                    first, less = difference
                    values[column]["difference"] = {"from": first, **describe_mean(less)}
            else:
                why = not_computed.get(column) or _explain_missing(column, name, clips_by_row[name])
                values[column] = f"not computed: {why}"
    return table


def _explain_missing(column: str, row_name: str, rows: Sequence[Row]) -> str:
    """Why no clip of a row has a value in a column that was computed."""
    scored = [row for row in rows if row["status"] == OK]
    swapped = {row["clip_id"] != row["audio_clip_id"] for row in scored}
    if not scored:
        return "no clip of this row could be scored"
    if row_name == MEAN_OPENING and column not in ("opening_correlation", *OBEDIENCE):
        return "it is a curve of mouth openings, without frames"
    if COLUMNS[column].needs_truth and swapped == {True}:
        return "there is no ground truth of these faces with another's speech"
    if column in OBEDIENCE and swapped == {False}:
        return "it needs clips that were generated from another's speech"
    if column.startswith("silence"):
        return "no clip's speech has a pause, or they were scored for audio obedience alone"
    return "not defined for these clips"


def explain_intervals(rows: Iterable[Row]) -> str:
    """What the intervals of these rows of ``clips.parquet`` say, in a sentence without its full stop."""
    n_people = len({row["speaker"] for row in rows if row["status"] == OK})
    if n_people >= MIN_UNITS:
        return f"95 % intervals are over {n_people} people, who are resampled with all their clips"
    people = "one person" if n_people == 1 else f"{n_people} people"
    return f"95 % intervals are over clips of {people} alone: for other people they are too narrow"


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
