"""The costs of a cut dataset's thresholds, as a table to read and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from stages.cut.thresholds import Cost, CostTable, ThresholdCost

NAME_WIDTH = 24


def format_costs(table: CostTable) -> Iterator[str]:
    """The lines of the table: each threshold at its present limit, marked *, and at others."""
    yield (
        f"{table.clips.clips} clips, {_format_minutes(table.clips)} min, of which cut.thresholds keep "
        f"{table.remaining.clips}, {_format_minutes(table.remaining)} min  (* present limit)"
    )
    header = f"{'limit':>9}{'drops':>9}{'of clips':>10}{'min':>9}{'in sequence':>14}"
    yield f"{'threshold':<{NAME_WIDTH}}{header}"
    for threshold in table.thresholds:
        yield from _format_threshold(threshold, max(1, table.clips.clips))


def _format_threshold(threshold: ThresholdCost, n_clips: int) -> Iterator[str]:
    name = threshold.name
    if not threshold.n_measured:
        yield f"{name:<{NAME_WIDTH}}{_format_limit(threshold):>9}  no clip has a {threshold.column}"
        return
    present = f"{threshold.in_sequence.clips}" if threshold.is_used else "not used"
    lines = [(threshold.alone, f"{_format_limit(threshold)}*", present)]
    lines += [(cost, f"{limit:g}", "") for limit, cost in threshold.others.items()]
    for cost, limit_text, in_sequence in sorted(lines, key=lambda line: line[0].clips):
        share = f"{cost.clips / n_clips:.1%}"
        figures = f"{limit_text:>9}{cost.clips:>9}{share:>10}{_format_minutes(cost):>9}{in_sequence:>14}"
        yield f"{name:<{NAME_WIDTH}}{figures}".rstrip()
        name = ""


def _format_limit(threshold: ThresholdCost) -> str:
    if threshold.limit is None:
        return "drop" if threshold.is_used else "keep"
    return f"{threshold.limit:g}"


def _format_minutes(cost: Cost) -> str:
    return f"{cost.seconds / 60:.1f}"


def dump_costs(table: CostTable) -> dict[str, Any]:
    """The table for JSON."""
    content = asdict(table)
    for threshold in content["thresholds"]:
        others = threshold["others"]
        threshold["others"] = [{"limit": limit, **cost} for limit, cost in others.items()]
    return content
