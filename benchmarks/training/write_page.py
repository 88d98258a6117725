"""
Fill the tables and plots of docs/benchmarks.md from the figures that the benchmarks wrote.

    python benchmarks/training/write_page.py [--figures .weft/bench] [--page docs/benchmarks.md] [--images docs/images]

Each benchmark has a region of the page, between `<!-- begin figures: NAME -->` and `<!-- end figures: NAME -->`; only
regions whose figures exist are written again. Plots are SVG files beside the page's other images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from plots import Bar, Panel, Series, bar_chart, line_chart
from regions import fill

Row = dict[str, Any]

_RATE, _MEMORY, _FLOOR = "training step", "peak memory", "against its floor"
_SCALED = {"training step": "tokens/s", "peak memory": "peak memory, GiB", "decode": "decode, µs a token"}
_LOAD = re.compile(r"others took at most ([\d.]+) cores")


def wanted(row: Row) -> float:
    """Return the ratio that a step's row is to reach: what the project has set itself."""
    name = str(row["name"])
    if _FLOOR in name:
        return 0.5
    if name.startswith(_MEMORY):
        return 3.0
    return 15.0 if name.endswith("T 4096") else 8.0


def number(value: float | None) -> str:
    """
    Write a figure with three digits; a missing one as a dash.

    >>> [number(value) for value in (None, 0.12345, 3.456, 1234.5)]
    ['–', '0.123', '3.46', '1,234']
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def conditions(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """
    Split the rows' conditions into what all share and what is each one's own.

    What a row's name says already is left out of its own; so is the load of others, whose largest is shared.
    """
    parts = [str(row["conditions"]).split(", ") for row in rows]
    shared = [part for part in parts[0] if all(part in others for others in parts)]
    own = [
        ", ".join(
            part
            for part in each
            if part not in shared and part not in str(row["name"]).split(", ") and not _LOAD.search(part)
        )
        for row, each in zip(rows, parts, strict=True)
    ]
    load = max(float(found[1]) for row in rows if (found := _LOAD.search(str(row["conditions"]))))
    told = [part for part in shared if not _LOAD.search(part)]
    return ", ".join([*told, f"others took at most {load:.2f} cores"]), own


def step_region(rows: Sequence[Row], image: Callable[[str, str], str]) -> list[str]:
    """Return the comparison with peers and the floor."""
    shared, own = conditions(rows)
    lines = table(
        ["figure", "weft", "peer", "unit", "ratio", "wanted", "conditions of its own"],
        (
            [
                str(row["name"]), number(row["ours"]), number(row["peer"]), str(row["unit"]),
                f"**{number(row['ratio'])}**" if row["ratio"] and row["ratio"] >= wanted(row) else number(row["ratio"]),
                number(wanted(row)), told,
            ]
            for row, told in zip(rows, own, strict=True)
        ),
    )  # fmt: skip
    bars = [
        Bar(str(row["name"]).removeprefix(f"{_RATE}, "), row["ratio"], wanted(row))
        for row in rows
        if row["ratio"] and str(row["name"]).startswith(_RATE) and _FLOOR not in str(row["name"])
    ]
    plot = image("bench-step.svg", bar_chart("tokens/s of weft over the peer's; red: what is wanted", bars))
    return [*lines, "", "Bold: the ratio is what was wanted, or better.", "", f"![Ratios of speed]({plot})", "",
            f"Measured under: {shared}."]  # fmt: skip


def scaling_region(rows: Sequence[Row], image: Callable[[str, str], str]) -> list[str]:
    """Return a table for each sweep, and the plots."""
    sweeps: dict[str, dict[int, dict[str, Row]]] = {}
    for row in rows:
        what = str(row["name"]).split(", ", 1)[0]
        sweeps.setdefault(str(row["over"]), {}).setdefault(int(row["at"]), {})[what] = row
    lines, panels = [], []
    for over, points in sweeps.items():
        shared, _ = conditions([row for point in points.values() for row in point.values()])
        label = "ranks" if over.startswith("ranks") else over
        header = [label, *(cell for title in _SCALED.values() for cell in (title, "ratio"))]
        cells = [
            [str(at), *(number(point[what][key]) for what in _SCALED for key in ("ours", "ratio"))]
            for at, point in points.items()
        ]
        lines += [f"Over {over}:", "", *table(header, cells), "", f"Measured under: {shared}.", ""]
        if label == over:
            panels += [
                Panel(
                    title, over, "",
                    [Series("weft", [(at, point[what]["ours"]) for at, point in points.items()], marked=True)],
                    log_x=True, log_y=True,
                )
                for what, title in _SCALED.items()
            ]  # fmt: skip
    plot = image("bench-scaling.svg", line_chart(panels, len(_SCALED)))
    return [*lines, f"![Scaling]({plot})"]


def roofline_region(rows: Sequence[Row], image: Callable[[str, str], str]) -> list[str]:
    """Return a table for each shape, the reasons, and a plot."""
    shapes: dict[str, list[Row]] = {}
    for row in rows:
        shapes.setdefault(str(row["name"]).removeprefix(f"{row['part']}, "), []).append(row)
    lines: list[str] = []
    bars = []
    for shape, parts in shapes.items():
        shared, _ = conditions(parts)
        header = ["part", "ms", "GFLOP", "GB, memory", "GB, cache", "of the product", "of the copy", "of cache's copy"]
        cells = [
            [
                str(row["part"]), number(1e3 * row["ours"]),
                *(number(row[key] / 1e9 if key in row else None) for key in ("flop", "memory_bytes", "cache_bytes")),
                *(
                    f"{row[key]:.0%}" if key in row else "–"
                    for key in ("share_of_product", "share_of_copy", "share_of_cache")
                ),
            ]
            for row in parts
        ]  # fmt: skip
        reasons = [f"- Under half, {row['part']}: {row['why']}." for row in parts if "why" in row]
        lines += [f"{shape}:", "", *table(header, cells), "", *reasons, "" if reasons else "Nothing is under half.", ""]
        lines += [f"Measured under: {shared}.", ""]
        bars += [Bar(str(row["name"]), row["ratio"], 0.5) for row in parts if row["ratio"]]
    plot = image(
        "bench-roofline.svg", bar_chart("share of the product's or the copy's rate; red: half", bars, shares=True)
    )
    return [*lines, f"![Shares of the roof]({plot})"]


REGIONS = {
    "step": ("training.json", step_region),
    "scaling": ("scaling.json", scaling_region),
    "roofline": ("roofline.json", roofline_region),
}


def main() -> None:
    """Fill every region that has figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path(".weft/bench"))
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    text = options.page.read_text()
    options.images.mkdir(parents=True, exist_ok=True)

    def image(name: str, drawn: str) -> str:
        (options.images / name).write_text(drawn)
        return Path(os.path.relpath(options.images / name, options.page.parent)).as_posix()

    for name, (source, region) in REGIONS.items():
        path = options.figures / source
        if not path.is_file():
            print(f"{name}: left as it is; there is no {path}.")
            continue
        text = fill(text, name, region(json.loads(path.read_text()), image))
        print(f"{name}: written from {path}.")
    options.page.write_text(text)


if __name__ == "__main__":
    main()
