"""Which clips of a cut dataset are kept, by the columns of its ledger, and how many each threshold costs.

The columns were measured before: another threshold measures nothing again, and what it costs is known before
it is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shards.ledger import DROPPED, OK, SYNCNET_SCHEMA
from shards.table import Rows
from stages.cut.params import CutParams
from stages.engine.outcome import Drop

Side = Literal["least", "greatest", "greatest either way"]
Numbers = NDArray[np.float64]
# Costs are also counted at the limits that would drop about so many of the clips.
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.25)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A limit of a column. Clips without a measurement are kept."""

    name: str  # in ThresholdParams
    column: str  # of the ledger
    side: Side
    code: str  # of the clips that it drops
    reason: str  # with places for the value and the limit
    step: float  # to whose multiples limits are rounded when costs are counted

    def is_used(self, params: CutParams) -> bool:
        """Whether it drops anything: a lag that is corrected does no harm, and SyncNet may not be asked."""
        if self.column == "syncnet_confidence":
            return params.with_syncnet
        return self.column != "lag_frames" or not params.correct_lag

    def read_limit(self, params: CutParams) -> float:
        return float(getattr(params.thresholds, self.name))

    def orient(self, values: Numbers | float) -> Numbers:
        """Values or limits, so that greater is worse; nan, which is not measured, stays nan."""
        if self.side == "greatest either way":
            return np.abs(values)
        return np.asarray(values) * (-1 if self.side == "least" else 1)

    def find_losses(self, values: Numbers, limit: float) -> NDArray[np.bool_]:
        """Which of n values break the limit."""
        return np.asarray(self.orient(values) > self.orient(limit))

    def describe(self, value: float, limit: float) -> str:
        """One line: the value, what was expected, and the param's name."""
        return f"{self.reason.format(value=_format_value(value, limit), limit=f'{limit:g}')} ({self.path})"

    @property
    def path(self) -> str:
        """Its key in params.yaml."""
        return f"cut.thresholds.{self.name}"


# In the order in which they are applied: a clip is dropped for the first that it breaks.
THRESHOLDS = (
    Threshold("min_sync_confidence", "sync_confidence", "least", "silent_face",
              "its mouth follows the voice with a confidence of {value}, expected {limit} or more", 0.01),
    Threshold("min_syncnet_confidence", "syncnet_confidence", "least", "silent_face",
              "SyncNet gives its mouth and voice a confidence of {value}, expected {limit} or more", 0.01),
    Threshold("max_lag_frames", "lag_frames", "greatest either way", "out_of_sync",
              "its mouth is {value} frames late, expected at most {limit} either way", 1),
    Threshold("min_face_width", "face_width", "least", "small_face",
              "its face is {value} px wide, expected {limit} or more", 1),
    Threshold("min_sharpness", "sharpness", "least", "blurred",
              "its mouth has a sharpness of {value}, expected {limit} or more", 0.01),
    Threshold("max_yaw", "yaw", "greatest either way", "turned",
              "its head is turned by {value} degrees, expected at most {limit} to either side", 1),
    Threshold("max_pitch", "pitch", "greatest either way", "turned",
              "its head is tilted by {value} degrees, expected at most {limit} up or down", 1),
    Threshold("min_brightness", "brightness", "least", "dark",
              "its face has a brightness of {value} of 255, expected {limit} or more", 1),
    Threshold("max_brightness", "brightness", "greatest", "bright",
              "its face has a brightness of {value} of 255, expected at most {limit}", 1),
    Threshold("min_speech_level", "speech_level", "least", "quiet",
              "its speech has a level of {value} dB, expected {limit} or more", 1),
    Threshold("min_speech_to_noise", "speech_to_noise", "least", "noisy",
              "its speech is {value} dB above the noise, expected {limit} or more", 1),
)  # fmt: skip
DUPLICATE_PARAM, DUPLICATE_COLUMN, DUPLICATE_CODE = "near_duplicates", "near_duplicate", "near_duplicate"


def judge_clip(row: Mapping[str, Any], params: CutParams) -> Drop | None:
    """Why a clip is dropped, by its row's columns in SYNCNET_SCHEMA; None: it is kept.

    A column that is missing, None or nan was not measured.
    """
    for threshold in THRESHOLDS:
        value, limit = row.get(threshold.column), threshold.read_limit(params)
        if value is None or not threshold.is_used(params):
            continue
        if threshold.find_losses(np.float64(value), limit):
            return Drop(threshold.code, threshold.describe(value, limit))
    earlier = row.get(DUPLICATE_COLUMN)
    if earlier and params.near_duplicates == "drop":
        return Drop(
            DUPLICATE_CODE, f"it has the sound of {earlier}, expected another (cut.{DUPLICATE_PARAM})"
        )
    return None


def _format_value(value: float, limit: float) -> str:
    """A value in three digits, or in as many as tell it from the limit."""
    texts = (f"{value:.{n_digits}g}" for n_digits in range(3, 18))
    return next((text for text in texts if float(text) != limit), f"{value!r}")


@dataclass(frozen=True, slots=True)
class Cost:
    """What is lost."""

    clips: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ThresholdCost:
    """What a threshold costs, at its present limit and at others."""

    name: str  # below cut.thresholds in params.yaml; or near_duplicates, of cut
    column: str
    is_used: bool
    n_measured: int  # clips
    limit: float | None  # None of near_duplicates
    alone: Cost
    in_sequence: Cost  # of what earlier ones left; nothing where it is not used
    others: Mapping[float, Cost]  # alone, by the limit, from the one that costs least


@dataclass(frozen=True, slots=True)
class CostTable:
    """What the thresholds of a dataset cost, in the order in which they are applied."""

    clips: Cost  # all that thresholds judge
    thresholds: tuple[ThresholdCost, ...]
    remaining: Cost


def count_costs(rows: Iterable[Mapping[str, Any]], params: CutParams) -> CostTable:
    """Count the clips and seconds that each threshold drops, of the ledger's rows of a cut dataset.

    Of its rows only those count that are ok, or were dropped for one of these thresholds. A threshold whose
    column the ledger lacks is left out.
    """
    table = select_judged(rows if isinstance(rows, Rows) else Rows.from_rows(rows, SYNCNET_SCHEMA))
    seconds = _read_numbers(table, "end_seconds") - _read_numbers(table, "start_seconds")
    remaining = np.ones(len(table), bool)
    costs: list[ThresholdCost] = []

    def count(losses: NDArray[np.bool_]) -> Cost:
        return Cost(int(losses.sum()), round(float(seconds[losses].sum()), 3))

    for threshold in list_thresholds(table):
        values = _read_numbers(table, threshold.column)
        limit, is_used = threshold.read_limit(params), threshold.is_used(params)
        losses = threshold.find_losses(values, limit)
        limits = suggest_limits(threshold, values)
        costs.append(
            ThresholdCost(
                threshold.name,
                threshold.column,
                is_used,
                n_measured=int((~np.isnan(values)).sum()),
                limit=limit,
                alone=count(losses),
                in_sequence=count(losses & remaining & is_used),
                others={other: count(threshold.find_losses(values, other)) for other in limits},
            )
        )
        remaining &= ~(losses & is_used)
    is_compared = pc.or_(pc.equal(table["status"], OK), pc.equal(table["code"], DUPLICATE_CODE)).to_numpy()
    earlier = table[DUPLICATE_COLUMN]
    losses = pc.fill_null(pc.not_equal(earlier, ""), fill_value=False).to_numpy()
    is_used = params.near_duplicates == "drop"
    costs.append(
        ThresholdCost(
            DUPLICATE_PARAM,
            DUPLICATE_COLUMN,
            is_used,
            # The build compared the clips that it kept so far: of one that is dropped none is a copy.
            n_measured=int(is_compared.sum()),
            limit=None,
            alone=count(losses),
            in_sequence=count(losses & remaining & is_used),
            others={},
        )
    )
    remaining &= ~(losses & is_used)
    return CostTable(count(np.ones(len(table), bool)), tuple(costs), count(remaining))


def select_judged(ledger: Rows) -> pa.Table:
    """The spans that thresholds judge: clips, and those that were dropped by a threshold."""
    table = ledger.table
    is_judged = pc.equal(table["status"], OK)
    # A face may also be dropped as silent or small before its column is measured: not by a threshold then.
    columns = [(threshold.code, threshold.column) for threshold in list_thresholds(table)]
    for code, column in [*columns, (DUPLICATE_CODE, DUPLICATE_COLUMN)]:
        is_dropped = pc.and_(pc.equal(table["status"], DROPPED), pc.equal(table["code"], code))
        is_judged = pc.or_(is_judged, pc.and_(is_dropped, pc.is_valid(table[column])))
    for name in ("start_seconds", "end_seconds"):
        is_judged = pc.and_(is_judged, pc.is_valid(table[name]))
    return table.filter(is_judged)


def list_thresholds(table: pa.Table) -> list[Threshold]:
    """The thresholds whose columns a ledger has: SyncNet's only where it was asked."""
    return [threshold for threshold in THRESHOLDS if threshold.column in table.column_names]


def suggest_limits(threshold: Threshold, values: Numbers) -> list[float]:
    """Limits, rounded, that would drop about LOSSES of the values, from the one that drops least."""
    worst_last = np.sort(threshold.orient(values[np.isfinite(values)]))
    if not len(worst_last):
        return []
    quantiles = np.quantile(worst_last, [1 - loss for loss in LOSSES])
    limits = threshold.orient(np.rint(quantiles / threshold.step) * threshold.step)
    # Rounded again: 29 times 0.01 is not 0.29.
    return list(dict.fromkeys(round(float(limit), 6) + 0.0 for limit in limits))


def _read_numbers(table: pa.Table, column: str) -> Numbers:
    """The n values of a column; nan where they were not measured."""
    return np.asarray(table[column].to_numpy(), np.float64)
