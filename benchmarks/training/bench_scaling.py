"""
How weft's step scales: tokens/s, peak memory and the cost of decoding over features, tokens, active features and ranks.

    python benchmarks/training/bench_scaling.py [--rounds 3] [--threads 1] [--quick]

4 layers of 256, TopK; from 4,096 features, 2,048 tokens and k 16 one figure at a time is moved: F from 1,024 to 65,536,
T from 256 to 8,192, k from 8 to 256, and two ranks beside one, over gloo on this machine, each with its own threads.
The points of a sweep take turns, a step each a round, like the sides of `bench_step.py`. Takes some ten minutes.
Writes `.weft/bench/scaling.json`: the peer of a point is the first point of its sweep, for two ranks one rank; a ratio
above 1 is the better. `over` and `at` say which point of which sweep a row is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from footprints import free_bytes, usable_bytes, weft_bytes
from kernel_watch import PARTS
from machine import conditions, environment
from serving import Shape
from sides import Given, Taken, take_turns

BASE = Shape(num_layers=4, d_model=256, num_features=4096, num_tokens=2048, active=16)
QUICK_BASE = Shape(num_layers=2, d_model=16, num_features=32, num_tokens=16, active=3)


@dataclass(frozen=True)
class Sweep:
    """Points that differ in one figure."""

    over: str
    """F, T, k, or the size at which ranks are compared."""
    points: Sequence[tuple[int, Shape]]
    """The figure of each, and what is computed."""


def sweeps(base: Shape, *, quick: bool) -> list[Sweep]:
    """Return all sweeps; quick, those of features and ranks with two points each."""
    features = [32, 64] if quick else [1 << power for power in range(10, 17)]
    shared = [32] if quick else [4096, 16384, 65536]
    found = [Sweep("F", [(count, replace(base, num_features=count)) for count in features])]
    if not quick:
        tokens, actives = [1 << power for power in range(8, 14)], [1 << power for power in range(3, 9)]
        found.append(Sweep("T", [(count, replace(base, num_tokens=count)) for count in tokens]))
        found.append(Sweep("k", [(count, replace(base, active=count)) for count in actives]))
    return found + [
        Sweep(f"ranks, F {count}", [(ranks, replace(base, num_features=count, num_ranks=ranks)) for ranks in (1, 2)])
        for count in shared
    ]


def measured(sweep: Sweep, rounds: int, threads: int) -> list[dict[str, object]]:
    """Measure a sweep and return three rows a point."""
    sides = [Given(f"{sweep.over} {at}", "side_weft.py", shape, weft_bytes(shape)) for at, shape in sweep.points]
    together = sum(given.needed_bytes for given in sides) <= usable_bytes(free_bytes())
    taken = take_turns(sides, rounds, environment(threads), together=together, title=f"over {sweep.over}")
    failed = [f"{name}: {each.failure}" for name, each in taken.items() if each.failure]
    if failed:
        raise SystemExit(f"These points have no figures: {'; '.join(failed)}.")
    points = list(zip(sweep.points, taken.values(), strict=True))
    first = points[0][1]
    turns = "side by side" if together else "each started anew in every round"
    rows: list[dict[str, object]] = []
    for (at, shape), each in points:
        told = (
            f"TopK, {shape}, k {shape.active}, {shape.num_ranks} rank(s), L0 {each.active:.1f}, {conditions(threads)}, "
            f"median of {rounds} interleaved steps, processes {turns}, others took at most {each.others_cores:.2f} "
            f"cores; peer: {first.given.name}"
        )
        for what, unit, ours, peer, more_is_better in (
            ("training step", "tokens/s", each.tokens_per_s, first.tokens_per_s, True),
            ("peak memory", "GiB", each.peak_gib, first.peak_gib, False),
            ("decode", "us/token", _decode_us(each), _decode_us(first), False),
        ):
            rows.append(
                {"name": f"{what}, {sweep.over} {at}", "ours": ours, "peer": peer,
                 "ratio": ours / peer if more_is_better else peer / ours, "unit": unit, "conditions": told,
                 "over": sweep.over, "at": at}
            )  # fmt: skip
    return rows


def _decode_us(taken: Taken) -> float:
    """Microseconds a token that the decode kernel takes."""
    return 1e6 * taken.part_s(PARTS["decode_pass"]) / taken.given.shape.num_tokens


def main() -> None:
    """Measure every sweep and write all rows, after each sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the benchmark itself")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/scaling.json"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for sweep in sweeps(QUICK_BASE if options.quick else BASE, quick=options.quick):
        rows += measured(sweep, options.rounds, options.threads)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']:32} {row['ours']:12.5g} {row['unit']:9} {row['ratio']:.2f}")


if __name__ == "__main__":
    main()
