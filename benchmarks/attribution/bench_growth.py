"""
How a graph's time and memory grow: over the length of the prompt, and over how many features are active.

    python benchmarks/attribution/bench_growth.py [--tokens 16 64 ...] [--counts 1000 10000 ...] [--memory-mib 512]

Each point is a process of its own, `side_weft.py`, that finds what is active and sweeps rows spread over the whole
graph, at most `--rows` of them. A row's time is processor time; a graph's is that times its rows. The first series has
L0 `--active` at every length, so that features grow with it; the second `--count-tokens` tokens and other encoders.
Exponents are slopes of least squares on logarithms, of all points and of the last two.
Memory is how far the process rises above what it held before the sweep, which has half of WEFT_ATTRIBUTION_MEMORY_BYTES
for gradients and edges, while decoders in files have the other half.
Writes `.weft/bench/attribution_growth.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Json, Side

sys.path.append(str(Path(__file__).parents[1] / "training"))
from machine import conditions, environment
from regions import fill

_MIB = 1 << 20


def exponent(sizes: list[float], costs: list[float]) -> float | None:
    """
    Slope of the logarithms; None of fewer than two points.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 3)
    2.0
    """
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure(given: Json, options: argparse.Namespace) -> Json:
    """Return one point."""
    side = Side(sys.executable, "side_weft.py", given, environment(options.threads))
    try:
        active = side.ask(what="facts")["active_features"]
        found = side.ask(what="rows", spans=options.spans, most=options.rows)
    finally:
        side.close()
    row_s = found["sweep_cpu_s"] / found["rows"]
    point = {
        "tokens": given["tokens"],
        "active_features": active,
        "rows_swept": found["rows"],
        "row_cpu_s": row_s,
        "graph_cpu_s": row_s * active,
        "rise_mib": found["rise_bytes"] / _MIB,
        "peak_mib": found["peak_bytes"] / _MIB,
        "bound_mib": options.memory_mib,
    }
    print(json.dumps(point), flush=True)
    return point


def fitted(points: list[Json], size: str) -> Json:
    """Exponents of a series."""
    sizes = [float(point[size]) for point in points]
    found: Json = {"over": size}
    for cost in ("row_cpu_s", "graph_cpu_s"):
        costs = [point[cost] for point in points]
        found[cost] = {"all": exponent(sizes, costs), "last": exponent(sizes[-2:], costs[-2:])}
    return found


def _page(result: Json) -> list[str]:
    lines = [
        "| tokens | active features | a row | a whole graph | rise in the sweep | peak |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for point in (*result["by_tokens"], *result["by_features"]):
        lines.append(
            f"| {point['tokens']} | {point['active_features']:,} | {1e3 * point['row_cpu_s']:.3g} ms | "
            f"{point['graph_cpu_s']:.3g} s | {point['rise_mib']:.0f} MiB | {point['peak_mib']:.0f} MiB |"
        )
    told = []
    for fit in result["exponents"]:
        row, graph = (fit[cost]["all"] for cost in ("row_cpu_s", "graph_cpu_s"))
        if row is not None:
            told.append(
                f"a row's time grows with the power {row:.2f} of {fit['over']}, a whole graph's with {graph:.2f}"
            )
    return [*lines, "", f"Fitted: {'; '.join(told)}. {result['conditions']}."]


def main() -> None:
    """Measure both series, and write after each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(".weft/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000, 10_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--count-tokens", type=int, default=64)
    parser.add_argument("--features", type=int, default=2048, help="F, features a layer")
    parser.add_argument("--active", type=int, default=17, help="L0, features a token and layer, of the first series")
    parser.add_argument("--rows", type=int, default=256, help="rows swept a point, at most")
    parser.add_argument("--spans", type=int, default=4, help="positions whose features are swept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-mib", type=int, default=512, help="WEFT_ATTRIBUTION_MEMORY_BYTES, in MiB")
    parser.add_argument("--page", type=Path, help="a page whose region `growth` takes the table")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/attribution_growth.json"))
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model} has no config.json; give the folder of a model, or `make model`.")
    result: Json = {"by_tokens": [], "by_features": [], "exponents": [], "conditions": conditions(options.threads)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        given = {
            "model": str(options.model.absolute()), "folder": name, "threads": options.threads,
            "tokens": sorted({*options.tokens, *([options.count_tokens] if options.counts else [])}),
            "features": options.features, "active": options.active,
            "counts": options.counts, "count_tokens": options.count_tokens,
        }  # fmt: skip
        Side(sys.executable, "problem.py", given, environment(options.threads)).close()
        given["memory"] = options.memory_mib * _MIB
        series = [("by_tokens", {"tokens": tokens}) for tokens in options.tokens]
        series += [
            ("by_features", {"tokens": options.count_tokens, "transcoder": f"bench-{count}"})
            for count in options.counts
        ]
        for which, point in series:
            result[which].append(measure({**given, **point}, options))
            result["exponents"] = [
                fitted(result["by_tokens"], "tokens"), fitted(result["by_features"], "active_features"),
            ]  # fmt: skip
            options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.page:
        options.page.write_text(fill(options.page.read_text(), "growth", _page(result)))


if __name__ == "__main__":
    main()
