"""The page itself: template, style and script in one file that asks nothing of the network.

Names of clips, speakers and reasons come from strangers: the template escapes all that it is given, and the
policy in the page's head lets no script run but ours and fetches nothing.
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
from stages.report.card import Card
from stages.report.codecs import CodecRow
from stages.report.figures import Figure
from stages.report.motion import Measured
from stages.report.results import Evaluation, Table
from stages.report.strips import Picture, Samples
from stages.report.training import Training

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "page.html.jinja", "style.css", "page.js"

Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Data:
    """The section on the dataset."""

    card: Card
    measured: Measured
    figures: list[Figure]
    codec: str
    codecs: tuple[CodecRow, ...]
    sheet: list[Picture]


@dataclass(frozen=True, slots=True)
class Results:
    """The section on an evaluation."""

    evaluation: Evaluation
    tables: list[Table]
    groups: list[Table]
    baselines: tuple[str, ...]  # rows that nobody drew
    meanings: list[tuple[str, str]]  # of the columns
    drift: list[Figure]
    openings: list[Figure]


@dataclass(frozen=True, slots=True)
class Trained:
    """The section on a run."""

    run: Training
    figures: list[Figure]


@dataclass(frozen=True, slots=True)
class Page:
    """All sections; what was not given is None, or empty."""

    dataset: Dataset
    data: Data
    trained: Trained | None
    drawn: tuple[Samples, ...]
    results: Results | None


def render(page: Page) -> str:
    """The page as HTML. Same inputs, same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "duration": duration, "linked": linked}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    results = page.results
    return environment.get_template(TEMPLATE).render(
        policy=policy(script),
        style=Markup(style),
        script=Markup(script),
        fps=VIDEO_FPS,
        digest=page.dataset.manifest.get("digest"),
        data=page.data,
        trained=page.trained,
        drawn=page.drawn,
        results=results,
        whys=reasons([*results.tables, *results.groups]) if results else {},
        warnings=warnings(page),
        origins=origins(page),
    )


def policy(script: str) -> str:
    """What the browser lets the page do: show what it carries, and run this very script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def reasons(tables: Iterable[Table]) -> dict[str, int]:
    """Why cells are empty, each reason once, numbered from 1."""
    found = dict.fromkeys(
        cell.why for table in tables for _, cells in table.rows for cell in cells if cell.value is None
    )
    return {why: number for number, why in enumerate(found, 1)}


def stories(page: Page) -> list[tuple[str, Mapping[str, Any]]]:
    """What each input but the dataset tells of itself."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    if page.trained:
        found.append((f"Run {page.trained.run.name}", page.trained.run.story))
    found += [(f"Samples {samples.name}", samples.story) for samples in page.drawn]
    if page.results:
        found.append(("Evaluation", page.results.evaluation.story))
    return found


def warnings(page: Page) -> list[str]:
    """What a reader must know before the figures: what is of another dataset, and what was trained on."""
    ours = page.dataset.manifest.get("digest")
    digests = [(title, story.get("dataset", story.get("digest"))) for title, story in stories(page)]
    told = [
        f"{title}: made from the dataset {digest}, not from this one."
        for title, digest in digests
        if digest != ours
    ]
    if page.results and any(row["split"] == TRAIN for row in page.results.evaluation.clips):
        told.append(
            f"Evaluation: scores clips of the split {TRAIN}, on which networks are trained; its figures do "
            f"not tell how well new clips are drawn."
        )
    return told


def origins(page: Page) -> list[tuple[str, Params]]:
    """All params and versions, by what they belong to, without what the page shows elsewhere."""
    shown = ("metrics", "not_computed", "protocols", "without_lse")
    dataset = {key: value for key, value in page.dataset.manifest.items() if key != "shards"}
    ours = {name: version(name) for name in ("redub", "numpy", "pillow", "matplotlib", "jinja2")}
    return [
        (title, tuple(iterate_values({key: value for key, value in story.items() if key not in shown})))
        for title, story in [("Dataset", dataset), *stories(page), ("This page", ours)]
    ]


# --- how values are worded --------------------------------------------------------------------


def number(value: float) -> str:
    """Three figures or so: 1234, 28.3, 4.56, 0.123; with a minus sign, which a hyphen is not."""
    if np.isinf(value):
        return "∞, exact"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """In the unit in which it is a few: 12.8 s, 10.4 min, 5.3 h."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def linked(line: str) -> Markup:
    """A line of ours that ends in an address."""
    words, separator, address = line.rpartition(": https://")
    link = Markup('{}: <a href="https://{}" rel="noreferrer">{}</a>')
    return link.format(words, address, address) if separator else Markup("{}").format(line)
