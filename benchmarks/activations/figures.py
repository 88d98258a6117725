"""Rows of `.weft/bench/activations.json`: what the benchmarks of the activations service found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "machine", "row", "write_rows"]

FIGURES = Path(".weft/bench/activations.json")


def row(
    name: str, ours: float, peer: float | None, unit: str, conditions: str, *, less_is_better: bool = False
) -> dict[str, Any]:
    """Return one row; a ratio above 1 speaks for us."""
    ratio = None if peer is None else (peer / ours if less_is_better else ours / peer)
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "conditions": conditions}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into a file, in the place of those of the same names, and say them."""
    there = json.loads(path.read_text()) if path.is_file() else []
    names = {each["name"] for each in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([each for each in there if each["name"] not in names] + rows, indent=2) + "\n")
    for each in rows:
        ratio = "" if each["ratio"] is None else f", ratio {each['ratio']:.3g}"
        print(f"{each['name']}: {each['ours']:.4g} {each['unit']}{ratio} ({each['conditions']})")


def machine() -> str:
    """Name the processor."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed")
    return f"float32, CPU ({model}, {os.cpu_count()} cores)"
