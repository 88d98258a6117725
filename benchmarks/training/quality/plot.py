"""
Lines and points as an SVG, in few bytes and the same at every run, readable on light and dark pages.

The colours are Okabe and Ito's (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

__all__ = ["Panel", "Series", "draw"]

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
_WIDTH, _HEIGHT, _LEGEND_WIDTH = 560, 300, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 28, 44
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """Named points, drawn in their order."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    marked: bool = False
    """With a dot at each point."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes; what is not above 0 does not lie on a logarithmic one and is left out."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False

    def visible(self, series: Series) -> list[tuple[float, float]]:
        """Points that can be drawn."""
        return [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.log_x)]


class _Axis:
    """Maps values to places."""

    def __init__(self, values: Sequence[float], start: float, stop: float, *, log: bool) -> None:
        self._log, self._start, self._stop = log, start, stop
        low, high = (min(values), max(values)) if values else (1.0, 2.0)
        if low == high:
            low, high = (low / 1.5, high * 1.5) if log else (low - 0.5, high + 0.5)
        self.ticks = _log_ticks(low, high) if log else _even_ticks(low, high)
        self._low, self._high = min(low, self.ticks[0]), max(high, self.ticks[-1])

    def place(self, value: float) -> float:
        low, high = self._low, self._high
        if self._log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self._start + (value - low) / (high - low) * (self._stop - self._start)


def _even_ticks(low: float, high: float) -> list[float]:
    """Give round numbers from at most the low end to at least the high end."""
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Give 1, 2 and 5 times powers of ten around and between the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max((tick for tick in candidates if tick <= low), default=low)
    last = min((tick for tick in candidates if tick >= high), default=high)
    return [tick for tick in candidates if first <= tick <= last]


def _shown(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def draw(panels: Sequence[Panel]) -> str:
    """
    Draw panels below each other, with one legend for all at the right, and return the SVG.

    Series of one name have one colour, in the order in which names first come.
    """
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    dashed = {series.name for panel in panels for series in panel.series if series.dashed}
    width, height = _WIDTH + _LEGEND_WIDTH, max(_HEIGHT * len(panels), 40 + 20 * len(names))
    svg = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "font-family": "sans-serif",
            "font-size": "12",
        },
    )
    ElementTree.SubElement(svg, "rect", {"width": str(width), "height": str(height), "fill": "#ffffff"})
    for number, panel in enumerate(panels):
        group = ElementTree.SubElement(svg, "g", {"transform": f"translate(0,{number * _HEIGHT})"})
        _draw_panel(group, panel, colours)
    for number, name in enumerate(names):
        y = _TOP + 10 + 20 * number
        _line(svg, [(_WIDTH + 10.0, y), (_WIDTH + 34.0, y)], colours[name], dashed=name in dashed)
        _text(svg, _WIDTH + 40, y + 4, name)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _draw_panel(group: ElementTree.Element, panel: Panel, colours: dict[str, str]) -> None:
    points = [point for series in panel.series for point in panel.visible(series)]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x_axis = _Axis([x for x, _ in points], _LEFT, right, log=panel.log_x)
    y_axis = _Axis([y for _, y in points], bottom, _TOP, log=False)
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        _line(group, [(x, _TOP), (x, bottom)], "#dddddd")
        _text(group, x, bottom + 16, _shown(tick), anchor="middle")
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        _line(group, [(_LEFT, y), (right, y)], "#dddddd")
        _text(group, _LEFT - 6, y + 4, _shown(tick), anchor="end")
    _text(group, _LEFT, 18, panel.title)
    _text(group, (_LEFT + right) / 2, bottom + 34, panel.x_label, anchor="middle")
    middle = (_TOP + bottom) / 2
    label = _text(group, 14, middle, panel.y_label, anchor="middle")
    label.set("transform", f"rotate(-90 14 {middle:g})")
    for series in panel.series:
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in panel.visible(series)]
        _line(group, places, colours[series.name], dashed=series.dashed, width="1.6")
        for x, y in places if series.marked else ():
            ElementTree.SubElement(
                group, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": colours[series.name]}
            )


def _line(
    parent: ElementTree.Element,
    places: Sequence[tuple[float, float]],
    colour: str,
    *,
    dashed: bool = False,
    width: str = "1",
) -> None:
    line = ElementTree.SubElement(
        parent,
        "polyline",
        {
            "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in places),
            "fill": "none",
            "stroke": colour,
            "stroke-width": width,
        },
    )
    if dashed:
        line.set("stroke-dasharray", "6 4")


def _text(parent: ElementTree.Element, x: float, y: float, text: str, anchor: str = "start") -> ElementTree.Element:
    element = ElementTree.SubElement(
        parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "fill": "#222222"}
    )
    element.text = text
    return element
