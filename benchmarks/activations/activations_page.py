"""
The page of the activations service's figures, filled with the rows that its benchmarks wrote.

    python benchmarks/activations/activations_page.py [--page docs/benchmarks/activations.md]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import FIGURES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from regions import fill

Row = dict[str, Any]
# What each region holds, by its rows' names, and which ratio is wanted there.
_REGIONS = {"harvest": r"harvest,", "capture": r"everything|zeros|streams|TransformerLens", "load": r"\d+ clients,"}
_WANTED = {"harvest, transformers": 0.9, "harvest, vllm": 0.9}
_WANTED_LONGER = {"everything over gRPC, beside transformers' plain pass": 1.5}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(row: Row) -> list[str]:
    """Give a row's ratio, bold where it is as wanted, and what is wanted."""
    if row["ratio"] is None:
        return ["–", "–"]
    longest = _WANTED_LONGER.get(row["name"])
    wanted = 1 / longest if longest else _WANTED.get(row["name"])
    told = f"{row['ratio']:.3g}"
    met = wanted is not None and row["ratio"] >= wanted
    return [f"**{told}**" if met else told, _number(wanted)]


def table(rows: Sequence[Row]) -> list[str]:
    """Make a table of rows, and say once how each was measured."""
    lines = ["| figure | weft | beside it | unit | ratio | wanted |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [row["name"], _number(row["ours"]), _number(row["peer"]), row["unit"], *_ratio(row)]
        lines.append(f"| {' | '.join(cells)} |")
    # The last of a comparison's conditions is its own: the way that it is beside, or how many times as long.
    told = dict.fromkeys(
        row["conditions"] if row["peer"] is None else row["conditions"].rpartition("; ")[0] for row in rows
    )
    return [*lines, *(line for each in told for line in ("", f"Measured: {each}."))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/activations.md"))
    page = parser.parse_args().page
    found = json.loads(FIGURES.read_text())
    text = page.read_text()
    for name, pattern in _REGIONS.items():
        rows = [row for row in found if re.match(pattern, row["name"])]
        if rows:
            text = fill(text, name, table(rows))
    page.write_text(text)


if __name__ == "__main__":
    main()
