"""What an evaluation found, as the page shows it: tables with intervals, curves by frame, openings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.ledger import OK
from shards.table import Row, read_rows
from stages.engine.outcome import StageError
from stages.evaluate.columns import COLUMNS, GROUPS, Column
from stages.evaluate.metrics.obedience import Mean
from stages.evaluate.run import CLIPS, FRAMES, METRICS, RUN_INFO
from stages.evaluate.scores import CLIPS_SCHEMA, CURVES, FRAMES_SCHEMA, group_means
from stages.evaluate.table import PREVIOUS, TRUTH
from stages.report.inputs import read_object

Floats = NDArray[np.float64]

# Rows that hold the truth's own mouth; they show what a figure can reach, and win nothing.
REFERENCES = (TRUTH, PREVIOUS)
RESAMPLES = 1000
LOST_SHOWN = 50  # clips that could not be scored


@dataclass(frozen=True, slots=True)
class Cell:
    """A mean with its 95 % interval, which has no width where one figure is of the whole row; or why not."""

    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    n: int = 0  # clips, or frames where it is of the row as a whole
    why: str = ""
    best: bool = False

    @property
    def instead(self) -> str:
        """In place of a number."""
        return "infinite" if self.why.startswith("infinite") else "not computed"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells by row; ``keys`` name the leading columns of text."""

    title: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Track:
    """What was measured at each frame of one clip of one row: (T,), NaN where unknown."""

    row: str
    name: str
    values: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A folder that ``pipeline evaluate`` wrote."""

    story: Mapping[str, Any]
    means: Mapping[str, Mapping[str, Cell]]  # by row and column
    clips: tuple[Row, ...]
    tracks: tuple[Track, ...]

    @property
    def without_lse(self) -> Mapping[str, Any]:
        """Clips that SyncNet could not score, by reason."""
        told = self.story.get("without_lse")
        return told if isinstance(told, Mapping) else {}

    @property
    def lost(self) -> list[Row]:
        """Clips that could not be scored."""
        return [row for row in self.clips if row["status"] != OK][:LOST_SHOWN]


def read_evaluation(folder: Path) -> Evaluation:
    """Raises StageError or ShardError when the folder is not what ``pipeline evaluate`` writes."""
    story, metrics = (read_object(folder / name, "pipeline evaluate") for name in (RUN_INFO, METRICS))
    try:
        means = {row: {name: _cell(told) for name, told in cells.items()} for row, cells in metrics.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        raise StageError(f"{folder / METRICS}: not the table of an evaluation ({err!r})") from err
    clips = list(read_rows(folder / CLIPS, CLIPS_SCHEMA, "table of scored clips"))
    frames = list(read_rows(folder / FRAMES, FRAMES_SCHEMA, "table of scored frames"))
    return Evaluation(story, means, tuple(clips), tuple(_tracks(frames)))


def _cell(told: Any) -> Cell:
    if isinstance(told, str):
        return Cell(why=told.removeprefix("not computed:").strip())
    return Cell(float(told["mean"]), float(told["low"]), float(told["high"]), int(told["n"]))


def _tracks(frames: Sequence[Row]) -> list[Track]:
    by_clip: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for frame in frames:
        by_clip[frame["row"], frame["name"]].append(frame)
    tracks = []
    for (row, name), members in by_clip.items():
        members.sort(key=lambda frame: int(frame["frame"]))
        tracks.append(
            Track(row, name, {curve: _floats(frame[curve] for frame in members) for curve in CURVES})
        )
    return tracks


def _floats(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


# --- tables -----------------------------------------------------------------------------------


def tables(evaluation: Evaluation) -> list[Table]:
    """Every row in each, a part of the metrics; the best is marked where better is defined."""
    parts: dict[str, dict[str, Column]] = defaultdict(dict)
    for name, column in COLUMNS.items():
        parts[_part(name, column)][name] = column
    found = []
    for title, columns in parts.items():
        cells = {
            row: [means.get(name, Cell(why="the evaluation does not name it")) for name in columns]
            for row, means in evaluation.means.items()
        }
        for i, column in enumerate(columns.values()):
            for row in _best({row: of_row[i] for row, of_row in cells.items()}, column):
                cells[row][i] = replace(cells[row][i], best=True)
        rows = tuple(((row,), tuple(of_row)) for row, of_row in cells.items())
        found.append(Table(title, ("row",), tuple(columns.values()), rows))
    return found


def _part(name: str, column: Column) -> str:
    """A table of all columns would be wider than any page."""
    if not column.region:
        if name.startswith("lse_"):
            return f"Speech, by SyncNet: {'real videos' if name.endswith('_real') else 'crops'}"
        return "Mouth, by landmarks"
    if name in ("smoothness_box", "identity_drift"):
        return "Over time, in the masked box"
    return {"box": "In the masked box", "frame": "On the full frame"}[column.region]


def _best(cells: Mapping[str, Cell], column: Column) -> list[str]:
    """Rows with the best mean of a column; none where nothing is better, or where one stands alone."""
    sign = {"higher": 1, "lower": -1, "": 0}[column.better]
    means = {
        row: sign * cell.value
        for row, cell in cells.items()
        if cell.value is not None and row not in REFERENCES
    }
    if not sign or len(means) < 2:
        return []
    return [row for row, mean in means.items() if mean == max(means.values())]


def tables_by_group(evaluation: Evaluation) -> list[Table]:
    """Per emotion, level and speaker, where the scored clips have more than one of them."""
    told = [group for group in GROUPS if len({row[group] for row in evaluation.clips if row[group]}) > 1]
    return [_table_by(evaluation, group) for group in told]


def _table_by(evaluation: Evaluation, group: str) -> Table:
    by = ("row", group)
    means = {name: group_means(evaluation.clips, name, by) for name in COLUMNS}
    told = {name: of_name for name, of_name in means.items() if of_name}
    keys = sorted({key for of_name in told.values() for key in of_name})

    def cell(mean: Mean | None) -> Cell:
        if mean is None:
            return Cell(why=f"no clip of this {group} has it in this row")
        return Cell(mean.value, mean.low, mean.high, mean.n)

    rows = tuple(
        (key, tuple(cell(of_name.get(key)) for of_name in told.values()))
        for row in evaluation.means
        for key in keys
        if key[0] == row
    )
    return Table(f"By {group}", by, tuple(COLUMNS[name] for name in told), rows)


def meanings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What each column is, and by which protocol it was taken where there are several in the field."""
    told = evaluation.story.get("protocols")
    protocols = told if isinstance(told, Mapping) else {}
    where = {"box": " in the box", "frame": " on the full frame", "": ""}
    return [
        (column.label + where[column.region], "; ".join([column.about, *filter(None, [protocols.get(name)])]))
        for name, column in COLUMNS.items()
    ]


# --- curves -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """A mean over clips at each frame index, with its bootstrap 95 % interval: (T,) each."""

    row: str
    mean: Floats
    low: Floats
    high: Floats


def drift(evaluation: Evaluation, name: str) -> list[Curve]:
    """By frame index, for each row that has any value."""
    curves = []
    for row in evaluation.means:
        tracks = [track.values[name] for track in evaluation.tracks if track.row == row]
        if any(np.isfinite(track).any() for track in tracks):
            curves.append(curve(row, tracks))
    return curves


def curve(row: str, tracks: Sequence[Floats]) -> Curve:
    """Whole clips are drawn again for the interval, since frames of one clip tell much the same."""
    values = np.full((len(tracks), max(map(len, tracks))), np.nan)
    for i, track in enumerate(tracks):
        values[i, : len(track)] = track
    there = np.isfinite(values)
    filled = np.where(there, values, 0)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(tracks), np.full(len(tracks), 1 / len(tracks)), RESAMPLES)
    with np.errstate(invalid="ignore"):  # 0 / 0: a frame that no drawn clip has
        mean = filled.sum(axis=0) / there.sum(axis=0)
        drawn = (draws @ filled) / (draws @ there)
    low, high = np.quantile(np.where(np.isnan(drawn), mean, drawn), (0.025, 0.975), axis=0)
    return Curve(row, mean, low, high)


def true_openings(evaluation: Evaluation) -> dict[str, Floats]:
    """How open each clip's true mouth is, by clip id, where it was looked at."""
    own = {row["name"]: row["clip_id"] for row in evaluation.clips if row["clip_id"] == row["audio_clip_id"]}
    return {
        own[track.name]: track.values["opening"]
        for track in evaluation.tracks
        if track.row == TRUTH and track.name in own and np.isfinite(track.values["opening"]).any()
    }


def spoken(evaluation: Evaluation, row: str) -> list[Track]:
    """The row's clips of which is known both what the mouth did and what the speech's own mouth did."""
    return [
        track
        for track in evaluation.tracks
        if track.row == row
        and all(np.isfinite(track.values[name]).any() for name in ("opening", "opening_speech"))
    ]
