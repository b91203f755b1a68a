"""Plots as inline SVG: text stays text, and colours are the page's own, so that they follow its scheme.

Only words of ours are drawn here. What a stranger may have named stands in the page, where it is escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

INK, SOFT, LINE = "#010101", "#020202", "#030303"
# Stand-ins that become var(--series-1) and so on; style.css has their colours, light and dark.
SERIES = tuple(f"#0{number}0{number}0{number}" for number in (4, 5, 6, 7, 8, 9))
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES, 1)},
}
# Of lines; five against six colours, so that thirty lines can be told apart.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (8, 3))
LINE_WIDTH = 1.6
NARROW, WIDE = (4.4, 2.3), (6.4, 3.0)  # width and height in inches; the page scales them
BINS, LEAST_BINS = 24, 12

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so places hang on no machine's fonts
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.formatter.use_mathtext": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": LINE_WIDTH,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A curve, and its interval where it has one."""

    label: str
    series: int  # which colour and dashes; the same thing has the same ones in all plots
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """How a line looks, for the legend that the page writes."""

    label: str
    color: str
    dashes: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing and its legend."""

    svg: Markup
    legend: tuple[Key, ...] = ()


def lines(
    name: str,
    drawn: Sequence[Line],
    *,
    x: str,
    y: str,
    log: bool = False,
    wide: bool = False,
) -> Plot:
    """Curves over one another. ``name`` is the plot's own: what it defines is called by it."""
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure, axes = _axes(WIDE if wide else NARROW, x=x, y=y)
        for line in drawn:
            color, dashes = SERIES[line.series % len(SERIES)], DASHES[line.series % len(DASHES)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.16, linewidth=0)
            axes.plot(line.x, line.y, color=color, linestyle=(0, dashes) if dashes else "-")
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.01)
        keys = tuple(map(_key, drawn))
        return Plot(_svg(figure, f"{y} over {x}"), keys if len(keys) > 1 else ())


def _key(line: Line) -> Key:
    color = f"var({VARIABLES[SERIES[line.series % len(SERIES)]]})"
    dashes = " ".join(f"{LINE_WIDTH * length:g}" for length in DASHES[line.series % len(DASHES)])
    return Key(line.label, color, dashes or "none")


def histogram(name: str, values: ArrayLike, *, x: str, step: float) -> Plot:
    """How many clips have each value. Bars are centred on multiples of ``step``, or of more of it at once."""
    found = np.asarray(values, np.float64)
    low, high = float(found.min()), float(found.max())
    width = step * max(1, np.ceil((high - low) / step / BINS))
    first, last = np.round(low / width), np.round(high / width)
    beside = max(1, (LEAST_BINS - (last - first)) // 2)  # one value alone is a thin bar, not a wall
    edges = (np.arange(first - beside, last + beside + 2) - 0.5) * width
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure, axes = _axes(NARROW, x=x, y="clips")
        counts, _ = np.histogram(found, edges)
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color=SERIES[0])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(visible=False, axis="x")
        return Plot(_svg(figure, f"histogram of {x}"))


def _axes(size: tuple[float, float], *, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    """The drawing without what a page must not hold twice: a prolog, ids of groups, a style for all of it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"#(0[1-9])\1\1\b", lambda color: f"var({VARIABLES[color[0]]})", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    head = f'<svg role="img" aria-label="{escape(title)}" '
    return Markup(re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*" ', rf"{head}\1", svg, count=1))
