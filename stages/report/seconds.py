"""What became of every second of files that were cut into clips: of all together, and of the worst files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shards.ledger import OK, has_spans
from shards.reader import Dataset
from shards.spans import check_spans, group_spans, list_unknown, sum_seconds

CLIP_SERIES = 3  # of style.css: green
REASON_SERIES = (2, 1, 4, 6)  # of the reasons with the most seconds
OTHER_SERIES = 5  # of all others
MAX_FILES = 12  # that have a bar of their own
MAX_REASONS = 60  # in the table
LEAST_SHARE = 5e-5  # of a bar: less than a pixel


@dataclass(frozen=True, slots=True)
class ReasonSeconds:
    """Clips, or the spans that are none for one reason."""

    code: str
    spans: int
    seconds: float
    share: float  # of all seconds
    series: int  # its colour


@dataclass(frozen=True, slots=True)
class BarPart:
    """A part of a bar whose parts together are 1."""

    code: str
    share: float
    series: int


@dataclass(frozen=True, slots=True)
class FileSeconds:
    """A file, and its own bar."""

    path: str
    seconds: float
    clip_seconds: float
    clips: int
    bar: tuple[BarPart, ...]
    description: str  # of the bar, in words


@dataclass(frozen=True, slots=True)
class SecondsSection:
    """The section "What became of every second"."""

    n_files: int  # whose length is known
    n_unknown: int
    n_broken: int  # files whose spans do not add up to their length
    seconds: float
    reasons: tuple[ReasonSeconds, ...]
    bar: tuple[BarPart, ...]
    description: str
    files: tuple[FileSeconds, ...]  # those with the most seconds outside clips


def account_for_seconds(dataset: Dataset) -> SecondsSection | None:
    """None for a dataset whose files were not cut. Raises ShardError."""
    ledger = dataset.ledger()
    if not has_spans(ledger):
        return None
    columns = ("path", "status", "code", "start_seconds", "end_seconds")
    rows = ledger.select_columns(*columns)
    sums = sum_seconds(rows)
    series = _choose_series(list(sums))
    counts = Counter(OK if row["status"] == OK else row["code"] or row["status"] for row in rows)
    total = math.fsum(sums.values())
    files, n_unknown = [], len(list_unknown(ledger))
    for file in group_spans(rows):
        file_sums = sum_seconds(file.rows)
        n_clips = sum(row["status"] == OK for row in file.rows)
        files.append((file.path, file_sums, n_clips))
    files.sort(key=lambda file: (file[1][OK] - math.fsum(file[1].values()), file[0]))
    return SecondsSection(
        n_files=len(files) - n_unknown,
        n_unknown=n_unknown,
        n_broken=sum(1 for _ in check_spans(ledger)),
        seconds=total,
        reasons=tuple(
            ReasonSeconds(code, counts[code], seconds, seconds / total if total else 0.0, series[code])
            for code, seconds in list(sums.items())[:MAX_REASONS]
        ),
        bar=_make_bar(sums, series),
        description=_describe(sums),
        files=tuple(
            FileSeconds(
                path,
                math.fsum(file_sums.values()),
                file_sums[OK],
                n_clips,
                _make_bar(file_sums, series),
                _describe(file_sums),
            )
            for path, file_sums, n_clips in files[:MAX_FILES]
            if any(file_sums.values())
        ),
    )


def _choose_series(codes: Sequence[str]) -> dict[str, int]:
    """A colour for each code, of which the first is that of clips."""
    reasons = [code for code in codes if code != OK]
    series = dict.fromkeys(reasons, OTHER_SERIES)
    return {OK: CLIP_SERIES} | series | dict(zip(reasons, REASON_SERIES, strict=False))


def _make_bar(sums: Mapping[str, float], series: Mapping[str, int]) -> tuple[BarPart, ...]:
    """The parts in the order of colours, so that bars can be compared; those of one colour are one part."""
    total = math.fsum(sums.values())
    order = [CLIP_SERIES, *REASON_SERIES, OTHER_SERIES]
    parts = []
    for number in order if total else ():
        codes = [code for code in sums if series[code] == number]
        share = math.fsum(sums[code] for code in codes) / total
        if share >= LEAST_SHARE:
            name = "clips" if number == CLIP_SERIES else codes[0] if len(codes) == 1 else "other reasons"
            parts.append(BarPart(name, share, number))
    return tuple(parts)


def _describe(sums: Mapping[str, float]) -> str:
    """The shares of a bar in words, the largest of the reasons first."""
    total = math.fsum(sums.values())
    shares = [
        f"{100 * seconds / total:.1f} % {'clips' if code == OK else code}"
        for code, seconds in sums.items()
        if seconds
    ]
    more = [f"{len(shares) - 8} more reasons"] if len(shares) > 8 else []
    return ", ".join(shares[:8] + more)
