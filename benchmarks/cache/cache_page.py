"""The page of the cache's figures: tables and plots, made of the rows that the benchmark wrote."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from plots import Panel, Series, line_chart
from regions import fill

__all__ = ["fill_page"]

Row = dict[str, Any]
_PLOT = "cache-bits.svg"


def fill_page(page: Path, rows: Sequence[Row]) -> None:
    """Write all regions whose rows there are; the plot lies in `images` beside the page's folder."""
    text = page.read_text()
    for name, lines in (
        ("bits", _bits([row for row in rows if row.get("of") in ("bits", "peer bits")])),
        ("errors", _plain([row for row in rows if row.get("of") == "fvu"], worse=True)),
        ("rates", _plain([row for row in rows if row.get("of") == "rate"])),
        ("reads", _reads([row for row in rows if row.get("of") == "reads"])),
        ("training", _training([row for row in rows if row.get("of") == "training"])),
    ):
        if lines:
            text = fill(text, name, lines)
    bits = [row for row in rows if row.get("of") == "bits"]
    if bits:
        image = page.parent.parent / "images" / _PLOT
        image.parent.mkdir(exist_ok=True)
        image.write_text(_plot(bits))
    page.write_text(text)


def _number(value: float | None) -> str:
    """
    Write a figure with three digits.

    >>> [_number(value) for value in (None, 0.0123, 5.187, 1234.5)]
    ['–', '0.0123', '5.19', '1,234']
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *cells)]


def _measured(rows: Sequence[Row]) -> list[str]:
    told = list(dict.fromkeys(str(row["conditions"]) for row in rows))
    return ["", *(f"Measured: {each}." for each in told)]


def _bits(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        place = found.setdefault((row["codec"], row["target"], row["source"]), {})
        place[str(row.get("beside", "peer"))] = row
    cells = []
    for (codec, target, source), by in found.items():
        entropy, bound = by["entropy"], by["bound"]
        wanted, over = (0.15, entropy) if codec == "uniform" else (0.6, bound)
        reached = over["ours"] - over["peer"]
        beside_entropy, beside_bound = (f"{each['ours'] - each['peer']:+.2f}" for each in (entropy, bound))
        if reached <= wanted:
            beside_entropy, beside_bound = (
                (f"**{beside_entropy}**", beside_bound)
                if codec == "uniform"
                else (beside_entropy, f"**{beside_bound}**")
            )
        peer = by.get("peer")
        cells.append([
            codec, f"{target:g}", f"`{source}`", f"{entropy['ours']:.2f}", f"{entropy['peer']:.2f}", beside_entropy,
            f"{entropy['worst']:+.2f}", f"{bound['peer']:.2f}", beside_bound, f"{bound['worst']:+.2f}",
            f"{peer['peer']:.2f}" if peer else "–",
        ])  # fmt: skip
    header = ["codec", "FVU", "stream", "bits a value", "entropy of the codes", "beside it", "worst layer",
              "Gaussian bound", "beside it", "worst layer", "CLT-Forge's int8"]  # fmt: skip
    return [
        *_table(header, cells), "",
        "Bold: within .15 bit of the entropy (`uniform`), within .6 bit of the bound (`klt`), as wanted.", "",
        f"![Bits a value by layer](../images/{_PLOT})", *_measured(rows),
    ]  # fmt: skip


def _plain(rows: Sequence[Row], *, worse: bool = False) -> list[str]:
    if not rows:
        return []
    cells = []
    for row in rows:
        ratio, wanted = row["ratio"], row.get("wanted")
        told = _number(ratio)
        if ratio is not None and wanted is not None and ratio >= wanted:
            told = f"**{told}**"
        cells.append([row["name"], _number(row["ours"]), _number(row["peer"]), row["unit"], told, _number(wanted)])
    header = ["figure", "weft", "CLT-Forge", "unit", "ratio", "wanted"]
    if worse:
        header, cells = header[:-1], [line[:-1] for line in cells]
    return [*_table(header, cells), *_measured(rows)]


def _reads(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    cells = [
        [row["name"].split(":")[0], *(_number(row["rates"][way]) for way in ("raw GET", "decode alone", "both")),
         f"**{_number(row['ratio'])}**" if row["ratio"] >= row["wanted"] else _number(row["ratio"]), "0.8"]
        for row in rows
    ]  # fmt: skip
    header = ["codec", "raw GET, MB/s", "decode alone, MB/s", "MinIO to tensors, MB/s", "of the slower", "wanted"]
    return [*_table(header, cells), *_measured(rows)]


def _training(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    cells = [
        [row["name"].split(" beside")[0], f"{row['ours']:.4f}", f"{row['peer']:.4f}",
         f"{row['peer'] - row['ours']:+.4f}", ", ".join(f"{lost:+.4f}" for lost in row["lost"])]
        for row in rows
    ]  # fmt: skip
    header = ["run", "explained variance", "on raw bfloat16", "lost", "lost by seed"]
    return [*_table(header, cells), "", "Wanted: at most .002 lost at the default quality, FVU 1e-3.", *_measured(rows)]


def _plot(rows: Sequence[Row]) -> str:
    panels = []
    for source in dict.fromkeys(row["source"] for row in rows):
        for target in dict.fromkeys(row["target"] for row in rows):
            series = []
            chosen = [row for row in rows if (row["source"], row["target"], row["beside"]) == (source, target, "bound")]
            for row in chosen:
                series.append(Series(row["codec"], list(enumerate(row["layers"]))))
            if chosen:
                series.append(Series("Gaussian bound", list(enumerate(chosen[0]["beside_layers"])), dashed=True))
            panels.append(Panel(f"{source}, FVU {target:g}", "layer", "bits a value", series))
    return line_chart(panels, columns=2)
