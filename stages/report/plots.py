"""Plots as inline SVG, with text as text and colours as CSS variables, which follow the light or dark scheme.

Plots contain only text from this package. Names from a dataset appear in the HTML page, which escapes them.
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
# Placeholders that become var(--series-1) and so on; style.css defines the light and dark colours.
SERIES = tuple(f"#0{number}0{number}0{number}" for number in (4, 5, 6, 7, 8, 9))
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    LINE: "--line",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES, 1)},
}
# Dash patterns: 5 of them with 6 colours make 30 distinguishable lines.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2), (8, 3))
LINE_WIDTH = 1.6
NARROW, WIDE = (4.4, 2.3), (6.4, 3.0)  # width and height in inches; the page scales them
MAX_BINS, MIN_BINS = 24, 12

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the layout does not depend on installed fonts
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
    """A curve with an optional interval."""

    label: str
    series: int  # selects colour and dashes; one row of an evaluation uses the same index in all plots
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """Style of one line, for the legend in the HTML page."""

    label: str
    color: str
    dashes: str


@dataclass(frozen=True, slots=True)
class Plot:
    """An SVG image and its legend."""

    svg: Markup
    legend: tuple[LegendEntry, ...] = ()


def plot_lines(
    name: str,
    curves: Sequence[Line],
    *,
    x: str,
    y: str,
    log: bool = False,
    wide: bool = False,
) -> Plot:
    """Plot curves on shared axes. ``x`` and ``y`` are axis labels.

    ``name`` must be unique in the page: SVG ids are derived from it.
    """
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure, axes = _make_axes(WIDE if wide else NARROW, x=x, y=y)
        for line in curves:
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
        legend = tuple(map(_make_legend_entry, curves))
        return Plot(_render_svg(figure, f"{y} over {x}"), legend if len(legend) > 1 else ())


def _make_legend_entry(line: Line) -> LegendEntry:
    color = f"var({VARIABLES[SERIES[line.series % len(SERIES)]]})"
    dashes = " ".join(f"{LINE_WIDTH * length:g}" for length in DASHES[line.series % len(DASHES)])
    return LegendEntry(line.label, color, dashes or "none")


def plot_histogram(name: str, values: ArrayLike, *, x: str, step: float) -> Plot:
    """Plot the number of clips per value. Bars are centred on multiples of ``step``.

    Bars are several steps wide if there would be more than MAX_BINS of them.
    """
    data = np.asarray(values, np.float64)
    low, high = float(data.min()), float(data.max())
    width = step * max(1, np.ceil((high - low) / step / MAX_BINS))
    first, last = np.round(low / width), np.round(high / width)
    padding = max(1, (MIN_BINS - (last - first)) // 2)  # so that a single value is not one wide bar
    edges = (np.arange(first - padding, last + padding + 2) - 0.5) * width
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure, axes = _make_axes(NARROW, x=x, y="clips")
        counts, _ = np.histogram(data, edges)
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color=SERIES[0])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.grid(visible=False, axis="x")
        return Plot(_render_svg(figure, f"histogram of {x}"))


def _make_axes(size: tuple[float, float], *, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)
    return figure, axes


def _render_svg(figure: Figure, title: str) -> Markup:
    """Render without what must not occur twice in a page: the prolog, group ids and global styles."""
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
