"""Plots of the benchmarks, as the SVG that a browser gets."""

from xml.etree import ElementTree

import pytest
from benchmarks.training.quality.plot import Panel, Series, draw

_SVG = "{http://www.w3.org/2000/svg}"


def _places(svg: str) -> list[tuple[float, float]]:
    """Where the dots are."""
    root = ElementTree.fromstring(svg)
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{_SVG}circle")]


def _panel(*points: tuple[float, float], log_x: bool = False) -> Panel:
    return Panel("title", "x", "y", [Series("one", points, marked=True)], log_x=log_x)


def test_plot_puts_larger_values_to_the_right_and_up() -> None:
    """Places grow with x and fall with y, evenly."""
    places = _places(draw([_panel((1, 10), (2, 20), (3, 30))]))
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x1 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y1 < y0


def test_logarithmic_axis_spaces_factors_evenly() -> None:
    """From 1 to 10 is as far as from 10 to 100; what is not above 0, or no number, is left out."""
    panel = _panel((0, 5), (1, 1), (10, 2), (100, float("nan")), (100, 3), log_x=True)
    (x0, _), (x1, _), (x2, _) = _places(draw([panel]))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("points", [(), ((5.0, 0.0),), ((5.0, 0.25), (5.0, 0.25))])
def test_plot_of_one_value_has_axes(points: tuple[tuple[float, float], ...], log_x: bool) -> None:
    """Nothing, one point and equal points are drawn within the picture."""
    svg = draw([_panel(*points, log_x=log_x)])
    assert all(0 < x < 560 and 0 < y < 300 for x, y in _places(svg))
    assert "nan" not in svg


def test_series_of_one_name_share_a_colour_and_one_entry_of_the_legend() -> None:
    """Panels are stacked, and the legend names each series once, with what XML would take for markup made harmless."""
    panels = [Panel("t", "x", "y", [Series("a < b", [(1, 1), (2, 2)]), Series("c", [(1, 2), (2, 1)])])] * 2
    root = ElementTree.fromstring(draw(panels))
    texts = [text.text for text in root.iter(f"{_SVG}text")]
    assert texts.count("a < b") == texts.count("c") == 1
    thick = [line.attrib["stroke"] for line in root.iter(f"{_SVG}polyline") if line.attrib["stroke-width"] == "1.6"]
    assert thick[:2] == thick[2:]
    assert thick[0] != thick[1]
