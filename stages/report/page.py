"""The page: template, style and script in one self-contained HTML file.

Names of clips and speakers and drop reasons may be hostile. The template escapes all values, and the page's
Content-Security-Policy allows no script but its own and no requests.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from model.recipe import iterate_values
from shards.reader import Dataset
from shards.schema import VIDEO_FPS
from stages.corpora.corpus import TRAIN
from stages.report.card import DatasetCard
from stages.report.cards import CardsSection
from stages.report.codecs import CodecCost
from stages.report.figures import CaptionedPlot
from stages.report.motion import MotionStats
from stages.report.results import UNSCORED, EvaluationResults, ResultTable
from stages.report.seconds import SecondsSection
from stages.report.strips import EmbeddedImage, GeneratedClips
from stages.report.training import TrainingRun
from stages.sample.pairs import explain_other_splits, list_other_splits

HERE = Path(__file__).parent
TEMPLATE, CARDS_TEMPLATE, STYLE, SCRIPT = "page.html.jinja", "cards_page.html.jinja", "style.css", "page.js"

Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class DataSection:
    """The sections "Data", "What became of every second" and "Clips"."""

    card: DatasetCard
    motion: MotionStats
    figures: list[CaptionedPlot]
    codec: str
    codecs: tuple[CodecCost, ...]
    clips: list[EmbeddedImage]
    seconds: SecondsSection | None = None  # of a dataset whose files were cut


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """The section "Training"."""

    run: TrainingRun
    figures: list[CaptionedPlot]


@dataclass(frozen=True, slots=True)
class ResultsSection:
    """The section "Results"."""

    evaluation: EvaluationResults
    tables: list[ResultTable]
    group_tables: list[ResultTable]
    baselines: tuple[str, ...]  # rows that no network generated
    column_notes: list[tuple[str, str]]
    drift: list[CaptionedPlot]
    openings: list[CaptionedPlot]

    @property
    def has_intervals(self) -> bool:
        """Whether a table shows one."""
        tables = (*self.tables, *self.group_tables)
        return any(cell.has_interval for table in tables for _, cells in table.rows for cell in cells)


@dataclass(frozen=True, slots=True)
class Page:
    """All sections. A section without input is None or empty."""

    dataset: Dataset
    data: DataSection
    training: TrainingSection | None
    generated: tuple[GeneratedClips, ...]
    results: ResultsSection | None
    cards: CardsSection | None = None


def render_page(page: Page) -> str:
    """Render the page as HTML. The same inputs give the same text."""
    results = page.results
    return _render(
        TEMPLATE,
        fps=VIDEO_FPS,
        digest=page.dataset.manifest.get("digest"),
        data=page.data,
        training=page.training,
        generated=page.generated,
        results=results,
        cards=page.cards,
        reason_numbers=number_reasons([*results.tables, *results.group_tables]) if results else {},
        warnings=collect_warnings(page),
        param_tables=collect_params(page),
    )


def render_cards_page(cards: CardsSection) -> str:
    """Render a page of cards alone."""
    return _render(CARDS_TEMPLATE, cards=cards)


def _render(template: str, **sections: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "duration": format_duration,
        "bytes": format_bytes,
        "citation": format_citation,
    }
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    return environment.get_template(template).render(
        policy=make_policy(script), style=Markup(style), script=Markup(script), **sections
    )


def make_policy(script: str) -> str:
    """A Content-Security-Policy that allows embedded images, media and styles, and only this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def number_reasons(tables: Iterable[ResultTable]) -> dict[str, int]:
    """Number the distinct reasons of empty cells, from 1."""
    reasons = dict.fromkeys(
        cell.reason for table in tables for _, cells in table.rows for cell in cells if cell.value is None
    )
    return {reason: number for number, reason in enumerate(reasons, 1)}


def collect_infos(page: Page) -> list[tuple[str, Mapping[str, Any]]]:
    """Title and JSON info of each input except the dataset."""
    infos: list[tuple[str, Mapping[str, Any]]] = []
    if page.training:
        infos.append((f"Run {page.training.run.name}", page.training.run.info))
    infos += [(f"Samples {clips.name}", clips.info) for clips in page.generated]
    if page.results:
        infos.append(("Evaluation", page.results.evaluation.info))
    return infos


def collect_warnings(page: Page) -> list[str]:
    """Warn about inputs made from another dataset, and about scores of training clips."""
    digest = page.dataset.manifest.get("digest")
    digests = [(title, info.get("dataset", info.get("digest"))) for title, info in collect_infos(page)]
    warnings = [
        f"{title}: made from dataset {other}, not from this one."
        for title, other in digests
        if other != digest
    ]
    if page.results and any(row["split"] == TRAIN for row in page.results.evaluation.clips):
        warnings.append(
            f"Evaluation: scores clips of the split {TRAIN}, which networks are trained on; its metrics do "
            f"not show how well a network does on new clips."
        )
    if page.results:
        clips = page.results.evaluation.clips
        for name in dict.fromkeys(row["row"] for row in clips):
            note = explain_other_splits(list_other_splits(row for row in clips if row["row"] == name))
            warnings += [f"Evaluation: {name}: {note}."] if note else []
    return warnings


def collect_params(page: Page) -> list[tuple[str, Params]]:
    """Params and versions of each input, without what the page shows elsewhere."""
    skipped = ("metrics", "not_computed", "protocols", "intervals", *UNSCORED.values())
    dataset = {key: value for key, value in page.dataset.manifest.items() if key != "shards"}
    versions = {name: version(name) for name in ("redub", "numpy", "pillow", "matplotlib", "jinja2")}
    return [
        (title, tuple(iterate_values({key: value for key, value in info.items() if key not in skipped})))
        for title, info in [("Dataset", dataset), *collect_infos(page), ("This page", versions)]
    ]


# --- formatting of values ---------------------------------------------------------------------


def format_number(value: float) -> str:
    """About three digits: 1234, 28.3, 4.56, 0.123. Uses a minus sign, not a hyphen."""
    if np.isinf(value):
        return "∞, exact"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def format_duration(seconds: float) -> str:
    """In seconds, minutes or hours: 12.8 s, 10.4 min, 5.3 h."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def format_bytes(n_bytes: int) -> str:
    """In GB, MB or KB, with one decimal."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} KB"


def format_citation(line: str) -> Markup:
    """Turn an address at the end of a citation into a link."""
    text, separator, address = line.rpartition(": https://")
    link = Markup('{}: <a href="https://{}" rel="noreferrer">{}</a>')
    return link.format(text, address, address) if separator else Markup("{}").format(line)
