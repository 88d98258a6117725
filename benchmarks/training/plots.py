"""
Plots of the benchmarks as SVG, drawn by matplotlib: the same bytes for the same figures.

The background is white, so that they are readable on light and dark pages alike. The colours are Okabe and Ito's
(2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = ["Bar", "Panel", "Series", "bar_chart", "line_chart"]

_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#7a7a00",
    "#5c5c5c",
    "#8b4513",
    "#800080",
)
_MARK = "#cf222e"
_STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    # Text stays text, and names of parts do not change from run to run.
    "svg.fonttype": "none",
    "svg.hashsalt": "weft",
}


@dataclass(frozen=True)
class Series:
    """Named points, drawn in their order; what is no number, or not above 0 on a logarithmic axis, is left out."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    marked: bool = False
    """With a dot at each point."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    """At least a decade is shown then, so that a small change looks small."""

    def visible(self, series: Series) -> list[tuple[float, float]]:
        """Points that can be drawn."""
        return [
            (x, y)
            for x, y in series.points
            if math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.log_x) and (y > 0 or not self.log_y)
        ]


@dataclass(frozen=True)
class Bar:
    """A figure above 0."""

    label: str
    value: float
    wanted: float | None = None
    """Where the mark is."""


def short(value: float) -> str:
    """
    Write a figure in few characters.

    >>> [short(value) for value in (0.05, 2.0, 512, 1024, 65536, 20000)]
    ['0.05', '2', '512', '1k', '64k', '20k']
    """
    for unit in (1024, 1000):
        if value >= 1000 and value % unit == 0:
            return f"{value / unit:g}k"
    return f"{value:g}"


def line_chart(panels: Sequence[Panel], columns: int = 1) -> str:
    """
    Draw panels, row by row, with one legend for all where there is more than one name, and return the SVG.

    Series of one name have one colour, in the order in which names first come.
    """
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    rows = -(-len(panels) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9 if columns == 1 else 3.4 * columns, 3.2 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).flat
        shown = {}
        for axes, panel in zip(all_axes, panels, strict=False):
            shown |= _draw(axes, panel, colours)
        for axes in list(all_axes)[len(panels) :]:
            axes.remove()
        if len(names) > 1:
            figure.legend([shown[name] for name in names], names, loc="outside right upper", frameon=False)
        return _svg(figure)


def bar_chart(title: str, bars: Sequence[Bar], *, shares: bool = False) -> str:
    """
    Draw bars with marks at what is wanted, and return the SVG.

    Args:
        shares: Figures of at most 1, drawn from 0 on; others are ratios, drawn from 1 on along a logarithmic axis.
    """
    start = 0 if shares else 1
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.26 * len(bars)), layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xscale="linear" if shares else "log")
        places = range(len(bars))
        drawn = axes.barh(places, [bar.value - start for bar in bars], left=start, height=0.7, color=_COLOURS[0])
        axes.bar_label(drawn, [f"{bar.value:.2g}" for bar in bars], padding=4)
        for place, bar in zip(places, bars, strict=True):
            if bar.wanted:
                axes.plot([bar.wanted] * 2, [place - 0.45, place + 0.45], color=_MARK, linewidth=2)
        axes.set_yticks(places, [bar.label for bar in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        if not shares:
            _label_decades(axes.xaxis)
        return _svg(figure)


def _draw(axes: Axes, panel: Panel, colours: dict[str, str]) -> dict[str, Line2D]:
    """Draw a panel's series and return a line of each name."""
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    shown: dict[str, Line2D] = {}
    for series in panel.series:
        points = panel.visible(series)
        (shown[series.name],) = axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colours[series.name],
            linestyle="--" if series.dashed else "-",
            marker="o" if series.marked else None,
            markersize=4,
            linewidth=1.6,
        )
    points = [point for series in panel.series for point in panel.visible(series)]
    if panel.log_x:
        axes.set_xscale("log")
        if panel.log_y:
            axes.set_xticks(ticks := sorted({x for x, _ in points}), [short(x) for x in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            _label_decades(axes.xaxis)
    if panel.log_y:
        axes.set_yscale("log")
        values = [y for _, y in points] or [1.0]
        low, high = min(values) / 1.2, max(values) * 1.2
        room = math.sqrt(max(1.0, 10 * low / high))
        axes.set_ylim(low / room, high * room)
        _label_decades(axes.yaxis)
    return shown


def _label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade as plain figures."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())


def _svg(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
