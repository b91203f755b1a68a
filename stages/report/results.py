"""Results of an evaluation as the page shows them: tables with intervals and curves by frame index."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shards.documents import Document
from shards.ledger import OK
from shards.schema import Text
from shards.table import Row, read_rows
from stages.engine.json_file import read_json_file
from stages.evaluate.columns import COLUMNS, GROUPS, Column
from stages.evaluate.run import CLIPS, FRAMES, METRICS, RUN_INFO
from stages.evaluate.scores import (
    ADDED_CLIPS_FIELDS,
    CLIPS_RULES,
    CURVES,
    FIRST_CLIPS_SCHEMA,
    FRAMES_RULES,
    FRAMES_SCHEMA,
    group_means,
)
from stages.evaluate.table import NOT_GENERATED, PREVIOUS, TRUTH
from stages.metrics.obedience import MIN_UNITS, Mean, widen_interval
from stages.report.inputs import pick_best

Floats = NDArray[np.float64]
Count = Annotated[int, Field(ge=0, le=2**53)]
Value = Annotated[float, Field(ge=-1e38, le=1e38)]

# Rows that contain the ground-truth mouth. They show what a metric can reach and are never marked as best.
REFERENCES = (TRUTH, PREVIOUS)
LISTENING = "Does the mouth follow the speech, by landmarks"
NOTES = {
    "In the masked box": "With a clip's own speech, PSNR, SSIM and LPIPS reward a network that copies the "
    f"mouth from what is visible. The table “{LISTENING}” tells it from one that follows the speech.",
    LISTENING: "Closed lips: a mouth that never opens has 1, and one that ignores the speech has a half. "
    "Net obedience: the noise of the landmarks costs a mouth that is right some 0.1 to 0.2.",
}
LISTENING_COLUMNS = ("audio_obedience", "obedience_", "silence_", "closure")
N_RESAMPLES = 1000
MAX_FAILURES = 50  # clips listed that could not be scored


@dataclass(frozen=True, slots=True)
class TableCell:
    """A mean with its 95 % interval, or the reason why there is no mean.

    There is no interval for a metric of the whole row, such as FID, nor for a few clips, nor for equal ones.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0  # clips, or frames for a metric of the whole row
    n_to_score: int = 0  # clips of a generated row, whether they have the metric or not
    reason: str = ""
    is_best: bool = False
    difference: tuple[str, TableCell] | None = None  # from another row, of the clips that both have

    @property
    def has_interval(self) -> bool:
        """Whether it shows one, of the mean or of the difference."""
        return self.low is not None or (self.difference is not None and self.difference[1].has_interval)

    @property
    def placeholder(self) -> str:
        """Text in place of a number."""
        return "infinite" if self.reason.startswith("infinite") else "not computed"


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Cells by row. ``keys`` are the headings of the leading text columns; ``note`` is for the reader."""

    title: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[TableCell, ...]], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClipCurves:
    """Values per frame of one clip in one row: (T,) each, NaN where unknown."""

    row: str
    name: str
    values: Mapping[str, Floats]


# What is missing -> counts by reason.
UNSCORED = {
    "LSE": "without_lse",
    "closed lips": "without_closures",
    "mouths for the row “nearest mel”": "without_bank",
}


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """A folder that ``pipeline evaluate`` wrote."""

    info: Mapping[str, Any]  # evaluation.json
    means: Mapping[str, Mapping[str, TableCell]]  # by row and column
    clips: tuple[Row, ...]  # as ``read_scored_clips``
    curves: tuple[ClipCurves, ...]

    @property
    def unscored(self) -> list[tuple[str, int, str]]:
        """(what is missing, number of clips, reason) of clips that have a row without it."""
        return [
            (missing, count, reason)
            for missing, key in UNSCORED.items()
            for reason, count in self.info.get(key, {}).items()
        ]

    @property
    def failures(self) -> list[Row]:
        """Clips that could not be scored, MAX_FAILURES at most."""
        return [row for row in self.clips if row["status"] != OK][:MAX_FAILURES]


def read_evaluation(folder: Path) -> EvaluationResults:
    """Raises StageError or ShardError if the folder was not written by ``pipeline evaluate``."""
    info = read_json_file(folder / RUN_INFO, "pipeline evaluate", EvaluationFile)
    metrics = read_json_file(folder / METRICS, "pipeline evaluate", MetricsFile)
    means = {
        row: {name: _parse_cell(entry) for name, entry in cells.items()} for row, cells in metrics.items()
    }
    clips = read_scored_clips(folder)
    frames = list(
        read_rows(folder / FRAMES, FRAMES_SCHEMA, "table of scored frames", FRAMES_RULES, inside=folder)
    )
    return EvaluationResults(info, means, tuple(clips), tuple(_group_curves(frames)))


def read_scored_clips(folder: Path) -> list[Row]:
    """The rows of ``clips.parquet``; of an older one, what it says of a speech's clip in another row."""
    table = read_rows(
        folder / CLIPS,
        FIRST_CLIPS_SCHEMA,
        "table of scored clips",
        CLIPS_RULES,
        inside=folder,
        optional=ADDED_CLIPS_FIELDS,
    )
    clips = {row["clip_id"]: row for row in table}
    properties = ("split", *GROUPS)
    return [
        {f"audio_{name}": clips.get(row["audio_clip_id"], {}).get(name) for name in properties} | row
        for row in table
    ]


class EvaluationFile(Document):
    """What the page uses of ``evaluation.json``."""

    dataset: Text = ""
    intervals: Text = ""
    without_lse: dict[str, Count] = Field(default_factory=dict)
    without_closures: dict[str, Count] = Field(default_factory=dict)
    without_bank: dict[str, Count] = Field(default_factory=dict)
    protocols: dict[str, Text] = Field(default_factory=dict)


class IntervalFields(Document):
    """A mean with its interval, if it has one."""

    mean: Value
    low: Value | None
    high: Value | None
    n: Count


class DifferenceEntry(IntervalFields):
    """The mean difference from another row, over the clips that both have."""

    row: Annotated[Text, Field(alias="from")]


class MetricEntry(IntervalFields):
    """A mean of ``metrics.json``."""

    difference: DifferenceEntry | None = None


class MetricsFile(Document):
    """``metrics.json``: for each row and column a mean, or the reason why there is none."""

    __pydantic_extra__: dict[str, dict[str, MetricEntry | Text]]


def _parse_cell(entry: Any) -> TableCell:
    if isinstance(entry, str):
        return TableCell(reason=entry.removeprefix("not computed:").strip())
    low, high = entry["low"], entry["high"]
    if low == high:  # also of an older evaluation, for no interval
        low = high = None
    less = entry.get("difference")
    difference = None if less is None else (less["from"], _parse_cell(less))
    return TableCell(float(entry["mean"]), low, high, entry["n"], difference=difference)


def _group_curves(frames: Sequence[Row]) -> list[ClipCurves]:
    by_clip: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for frame in frames:
        by_clip[frame["row"], frame["name"]].append(frame)
    curves = []
    for (row, name), members in by_clip.items():
        members.sort(key=lambda frame: int(frame["frame"]))
        values = {curve: _to_floats(frame[curve] for frame in members) for curve in CURVES}
        curves.append(ClipCurves(row, name, values))
    return curves


def _to_floats(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


# --- tables -----------------------------------------------------------------------------------


def build_tables(evaluation: EvaluationResults) -> list[ResultTable]:
    """Split the metrics into tables that all have every row, and mark the best means."""
    parts: dict[str, dict[str, Column]] = defaultdict(dict)
    for name, column in COLUMNS.items():
        parts[_choose_table(name, column)][name] = column
    tables = []
    n_to_score = Counter(row["row"] for row in evaluation.clips if row["row"] not in NOT_GENERATED)
    for title, columns in parts.items():
        cells = {
            row: [
                replace(
                    means.get(name, TableCell(reason="missing in the evaluation")), n_to_score=n_to_score[row]
                )
                for name in columns
            ]
            for row, means in evaluation.means.items()
        }
        for i, (name, column) in enumerate(columns.items()):
            column_cells = {row: row_cells[i] for row, row_cells in cells.items()}
            for row in _find_best_rows(column_cells, column, _list_scored_clips(evaluation, name)):
                cells[row][i] = replace(cells[row][i], is_best=True)
        rows = tuple(((row,), tuple(row_cells)) for row, row_cells in cells.items())
        tables.append(ResultTable(title, ("row",), tuple(columns.values()), rows, NOTES.get(title, "")))
    return tables


def _choose_table(name: str, column: Column) -> str:
    """The title of the column's table: one table with all columns would not fit on a page."""
    if not column.region:
        if name.startswith("lse_"):
            return f"Speech, by SyncNet: {'real videos' if name.endswith('_real') else 'crops'}"
        return LISTENING if name.startswith(LISTENING_COLUMNS) else "Mouth, by landmarks"
    if name in ("smoothness_box", "identity_drift", "psnr_box_first_db", "psnr_box_last_db"):
        return "Over time, in the masked box"
    return {"box": "In the masked box", "frame": "On the full frame"}[column.region]


def _list_scored_clips(evaluation: EvaluationResults, column: str) -> dict[str, frozenset[str]]:
    """Names of the clips that a row's figure in a column is of; of FID, all that were scored in full."""
    clips: dict[str, set[str]] = defaultdict(set)
    is_of_clips = any(row[column] is not None for row in evaluation.clips)
    for row in evaluation.clips:
        if row[column if is_of_clips else "smoothness_box"] is not None:
            clips[row["row"]].add(row["name"])
    return {row: frozenset(names) for row, names in clips.items()}


def _find_best_rows(
    cells: Mapping[str, TableCell], column: Column, clips: Mapping[str, frozenset[str]]
) -> list[str]:
    """Rows with the best mean of a column, of those with the most clips among those with equal clips.

    None if no direction is better, or if no two rows have the same clips.
    """
    values = {
        row: cell.value for row, cell in cells.items() if cell.value is not None and row not in REFERENCES
    }
    names = {row: clips.get(row, frozenset()) for row in values}
    shared = [each for each in names.values() if list(names.values()).count(each) > 1]
    most = max(shared, key=len, default=None)
    return pick_best({row: value for row, value in values.items() if names[row] == most}, column.better)


def build_group_tables(evaluation: EvaluationResults) -> list[ResultTable]:
    """Tables per emotion, level and speaker of the speech, for those with scores of more than one value."""
    tables = [_build_group_table(evaluation, group) for group in GROUPS]
    return [table for table in tables if len({keys[1] for keys, _ in table.rows}) > 1]


def _build_group_table(evaluation: EvaluationResults, group: str) -> ResultTable:
    by = ("row", f"audio_{group}")
    all_means = {name: group_means(evaluation.clips, name, by) for name in COLUMNS}
    means = {name: column_means for name, column_means in all_means.items() if column_means}
    keys = sorted({key for column_means in means.values() for key in column_means})

    def make_cell(mean: Mean | None) -> TableCell:
        if mean is None:
            return TableCell(reason=f"no clip of this {group} has it in this row")
        return TableCell(mean.value, mean.low, mean.high, mean.n)

    rows = tuple(
        (key, tuple(make_cell(column_means.get(key)) for column_means in means.values()))
        for row in evaluation.means
        for key in keys
        if key[0] == row
    )
    return ResultTable(
        f"By {group} of the speech", ("row", group), tuple(COLUMNS[name] for name in means), rows
    )


def explain_columns(evaluation: EvaluationResults) -> list[tuple[str, str]]:
    """Label and meaning of each column, with the protocol where the literature has several."""
    info = evaluation.info.get("protocols")
    protocols = info if isinstance(info, Mapping) else {}
    regions = {"box": " in the box", "frame": " on the full frame", "": ""}
    return [
        (
            column.label + regions[column.region],
            "; ".join([column.about, *filter(None, [protocols.get(name)])]),
        )
        for name, column in COLUMNS.items()
    ]


# --- curves -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MeanCurve:
    """A mean over clips at each frame index, with its 95 % interval, nan for too few clips: (T,) each."""

    row: str
    mean: Floats
    low: Floats
    high: Floats

    @property
    def has_interval(self) -> bool:
        """Whether it is wide anywhere: there are clips enough, and they differ."""
        return bool((self.high > self.low).any())


def average_rows(evaluation: EvaluationResults, name: str) -> list[MeanCurve]:
    """Average a per-frame value over the clips of each row. Rows without any value are skipped."""
    means = []
    for row in evaluation.means:
        curves = [clip.values[name] for clip in evaluation.curves if clip.row == row]
        if any(np.isfinite(curve).any() for curve in curves):
            means.append(average_curves(row, curves))
    return means


def average_curves(row: str, curves: Sequence[Floats]) -> MeanCurve:
    """Average curves (T_i,) of clips. The bootstrap resamples clips: frames within one are correlated."""
    values = np.full((len(curves), max(map(len, curves))), np.nan)
    for i, curve in enumerate(curves):
        values[i, : len(curve)] = curve
    is_finite = np.isfinite(values)
    filled = np.where(is_finite, values, 0)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(curves), np.full(len(curves), 1 / len(curves)), N_RESAMPLES)
    n_clips = is_finite.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0: no resampled clip has the frame
        mean = filled.sum(axis=0) / n_clips
        resampled = (counts @ filled) / (counts @ is_finite)
    bounds = np.quantile(np.where(np.isnan(resampled), mean, resampled), (0.025, 0.975), axis=0)
    widths = widen_interval(np.maximum(n_clips, MIN_UNITS)) * (bounds - mean)
    low, high = mean + np.where(n_clips < MIN_UNITS, np.nan, widths)
    return MeanCurve(row, mean, low, high)


def select_true_openings(evaluation: EvaluationResults) -> dict[str, Floats]:
    """Mouth opening (T,) of each ground-truth clip that was measured, by clip id."""
    own = {row["name"]: row["clip_id"] for row in evaluation.clips if row["clip_id"] == row["audio_clip_id"]}
    return {
        own[clip.name]: clip.values["opening"]
        for clip in evaluation.curves
        if clip.row == TRUTH and clip.name in own and np.isfinite(clip.values["opening"]).any()
    }


def select_opening_curves(evaluation: EvaluationResults, row: str) -> list[ClipCurves]:
    """Clips of a row for which both the generated opening and that of the audio clip are known."""
    return [
        clip
        for clip in evaluation.curves
        if clip.row == row
        and all(np.isfinite(clip.values[name]).any() for name in ("opening", "opening_speech"))
    ]
