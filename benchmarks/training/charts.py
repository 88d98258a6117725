"""
Small charts as SVG: lines over logarithmic axes, and bars on a logarithmic axis with marks.

The background is white, so that they are readable on light and dark pages alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

__all__ = ["Bar", "Panel", "bar_chart", "line_chart"]

_COLOURS = ("#1f6feb", "#d1570a", "#2da44e")
_INK, _GRID, _MARK = "#24292f", "#d0d7de", "#cf222e"
_PANEL_WIDTH, _PANEL_HEIGHT = 300, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 42
_ROW, _LABELS, _BARS = 22, 330, 420


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes; all figures are above 0."""

    title: str
    x_label: str
    lines: dict[str, Sequence[tuple[float, float]]]
    """By name; the name of a single line is not shown."""


@dataclass(frozen=True)
class Bar:
    """A figure above 0."""

    label: str
    value: float
    wanted: float | None = None
    """Where the mark is."""


@dataclass(frozen=True)
class _LogAxis:
    """Places figures between two ends, by their logarithms."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of each decade, or only 1 where there are many decades."""
        steps = (1,) if self.high / self.low > 1e3 else (1, 2, 5)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]


def _svg(width: float, height: float) -> ElementTree.Element:
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "font-family": "sans-serif"})
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "white"})
    return root


def _text(root: ElementTree.Element, x: float, y: float, text: str, *, anchor: str = "middle", size: int = 11) -> None:
    places = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": str(size), "fill": _INK}
    ElementTree.SubElement(root, "text", places).text = text


def _line(root: ElementTree.Element, ends: tuple[float, float, float, float], colour: str, width: float = 1) -> None:
    places = dict(zip(("x1", "y1", "x2", "y2"), (f"{end:.1f}" for end in ends), strict=True))
    ElementTree.SubElement(root, "line", {**places, "stroke": colour, "stroke-width": f"{width:g}"})


def _short(value: float) -> str:
    """
    Write a figure in few characters.

    >>> [_short(value) for value in (0.05, 2.0, 512, 1024, 65536, 20000)]
    ['0.05', '2', '512', '1k', '64k', '20k']
    """
    for unit in (1024, 1000):
        if value >= 1000 and value % unit == 0:
            return f"{value / unit:g}k"
    return f"{value:g}"


def _widened(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: at least a decade, so that a small change looks small, and some room."""
    low, high = min(values) / 1.2, max(values) * 1.2
    rest = math.sqrt(max(1.0, 10 * low / high))
    return low / rest, high * rest


def _draw_panel(root: ElementTree.Element, panel: Panel, left: float, top: float) -> None:
    points = [point for line in panel.lines.values() for point in line]
    xs = sorted({x for x, _ in points})
    right, bottom = left + _PANEL_WIDTH - _RIGHT, top + _PANEL_HEIGHT - _BOTTOM
    x_axis = _LogAxis(xs[0] / 1.1, xs[-1] * 1.1, left + _LEFT, right)
    y_axis = _LogAxis(*_widened([y for _, y in points]), bottom, top + _TOP)
    _text(root, (left + _LEFT + right) / 2, top + 20, panel.title, size=12)
    for tick in y_axis.ticks():
        place = y_axis.place(tick)
        _line(root, (left + _LEFT, place, right, place), _GRID)
        _text(root, left + _LEFT - 6, place + 4, _short(tick), anchor="end")
    for x in xs:
        _text(root, x_axis.place(x), bottom + 16, _short(x))
    _text(root, (left + _LEFT + right) / 2, bottom + 33, panel.x_label)
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        ElementTree.SubElement(
            root, "polyline", {"points": path, "fill": "none", "stroke": colour, "stroke-width": "2"}
        )
        for x, y in places:
            ElementTree.SubElement(root, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": colour})
        if len(panel.lines) > 1:
            height = top + _TOP + 12 + 15 * number
            _line(root, (left + _LEFT + 8, height - 4, left + _LEFT + 26, height - 4), colour, 2)
            _text(root, left + _LEFT + 31, height, name, anchor="start")


def line_chart(panels: Sequence[Panel], columns: int) -> str:
    """Return the panels, row by row, as the text of an SVG file."""
    rows = -(-len(panels) // columns)
    root = _svg(columns * _PANEL_WIDTH, rows * _PANEL_HEIGHT)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        _draw_panel(root, panel, column * _PANEL_WIDTH, row * _PANEL_HEIGHT)
    return _written(root)


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """Return bars from 1 on, to the right where a figure is above it, as the text of an SVG file."""
    ends = [1.0, *(bar.value for bar in bars), *(bar.wanted for bar in bars if bar.wanted)]
    height = 60 + _ROW * len(bars)
    root = _svg(_LABELS + _BARS + 60, height)
    axis = _LogAxis(min(ends) / 1.1, max(ends) * 1.1, _LABELS, _LABELS + _BARS)
    _text(root, _LABELS + _BARS / 2, 20, title, size=12)
    for tick in axis.ticks():
        place = axis.place(tick)
        _line(root, (place, 30, place, height - 24), _GRID)
        _text(root, place, height - 8, _short(tick))
    for number, bar in enumerate(bars):
        top = 34 + _ROW * number
        near, far = sorted((axis.place(1.0), axis.place(bar.value)))
        places = {"x": f"{near:.1f}", "y": f"{top}", "width": f"{far - near:.1f}", "height": f"{_ROW - 6}"}
        ElementTree.SubElement(root, "rect", {**places, "fill": _COLOURS[0]})
        _text(root, _LABELS - 8, top + 12, bar.label, anchor="end")
        _text(root, max(far, axis.place(bar.wanted or 1.0)) + 5, top + 12, f"{bar.value:.2g}", anchor="start")
        if bar.wanted:
            place = axis.place(bar.wanted)
            _line(root, (place, top - 2, place, top + _ROW - 4), _MARK, 2)
    return _written(root)


def _written(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
