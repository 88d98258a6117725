"""Plots of the benchmarks, as the SVG that a browser gets."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from plots import Bar, Panel, Series, bar_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """What is written in a picture."""
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def path(svg: str, colour: str) -> list[tuple[float, float]]:
    """The places of the first line of a colour, down and to the right."""
    root = ElementTree.fromstring(svg)
    (found, *_) = (each for each in root.iter(f"{SVG}path") if colour in each.get("style", ""))
    numbers = [float(number) for number in re.findall(r"-?[0-9.]+", found.attrib["d"])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def panel(*points: tuple[float, float], **axes: bool) -> Panel:
    return Panel("title", "x", "y", [Series("one", points)], **axes)


def test_what_cannot_be_drawn_is_left_out() -> None:
    """No number is drawn nowhere, 0 not on a logarithmic axis."""
    points = ((0.0, 5.0), (1.0, 1.0), (2.0, float("nan")), (float("inf"), 1.0), (3.0, 0.0))
    for axes, kept in (({}, [0, 1, 4]), ({"log_x": True}, [1, 4]), ({"log_x": True, "log_y": True}, [1])):
        drawn = panel(*points, **axes)
        assert drawn.visible(drawn.series[0]) == [points[index] for index in kept]
        assert len(path(line_chart([drawn]), "#0072b2")) == len(kept)


@pytest.mark.parametrize("axes", [{}, {"log_x": True}, {"log_x": True, "log_y": True}])
@pytest.mark.parametrize("points", [(), ((5.0, 0.25),), ((5.0, 0.25), (5.0, 0.25))])
def test_plot_of_one_value_has_axes(points: tuple[tuple[float, float], ...], axes: dict[str, bool]) -> None:
    """Nothing, one point and equal points are drawn too."""
    svg = line_chart([panel(*points, **axes)])
    assert "title" in texts(svg)
    assert "nan" not in svg


def test_factors_are_distances_on_logarithmic_axes() -> None:
    """A factor of 2 is as wide anywhere; a change of a fifth takes little of the height."""
    places = path(line_chart([panel((1, 10), (2, 10), (4, 11), (8, 12), log_x=True, log_y=True)]), "#0072b2")
    gaps = [right[0] - left[0] for left, right in pairwise(places)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.01)
    assert places[0][1] - places[3][1] < 0.1 * 3.2 * 72


def test_series_of_one_name_share_a_colour_and_one_entry_of_the_legend() -> None:
    """The legend names each series once, with what XML would take for markup made harmless."""
    panels = [Panel("t", "x", "y", [Series("a < b", [(1, 1), (2, 2)]), Series("c", [(1, 2), (2, 1)])])] * 2
    found = texts(line_chart(panels))
    assert found.count("a < b") == found.count("c") == 1


def test_bars_have_their_labels_and_figures() -> None:
    """Labels are what was given, figures have two digits; the mark of 8 is where the bar of 8 ends."""
    svg = bar_chart("title", [Bar("a", 2.0), Bar("b", 8.0, 8.0)])
    assert {"title", "a", "b", "8"} <= set(texts(svg))
    assert max(x for x, _ in path(svg, "#0072b2")) < path(svg, "#cf222e")[0][0]
    ends = [
        max(float(x) for x in re.findall(r"[ML] ([0-9.]+) ", each.get("d", "")))
        for each in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if "fill: #0072b2" in each.get("style", "")
    ]
    assert ends[1] == pytest.approx(path(svg, "#cf222e")[0][0], abs=0.01)


def test_plots_of_the_same_figures_have_the_same_bytes() -> None:
    """A page that is written again does not change."""
    drawn = panel((1, 2), (2, 3))
    assert line_chart([drawn]) == line_chart([drawn])


def test_bars_of_shares_grow_with_their_figures() -> None:
    """From 0 on, evenly: a share of .8 is four times as long as one of .2."""
    found = ElementTree.fromstring(bar_chart("title", [Bar("a", 0.2), Bar("b", 0.8)], shares=True))
    lengths = []
    for each in found.iter(f"{SVG}path"):
        if "fill: #0072b2" in each.get("style", ""):
            places = [float(x) for x in re.findall(r"[ML] ([0-9.]+) ", each.get("d", ""))]
            lengths.append(max(places) - min(places))
    assert lengths[1] == pytest.approx(4 * lengths[0], rel=1e-3)
