"""
The CPU's kernels inside a training step, beside what the machine can do: its matrix products and its copies.

    python benchmarks/training/bench_roofline.py [--shape 12,768,2048,4096]... [--active 16] [--rounds 5] [--threads 1]

One process does whole steps and takes the time of every kernel; between steps it measures the three rates: of torch's
product of a layer's inputs and encoder, of a copy of 64 MiB, and of a copy that stays in the second-level cache, bytes
read plus written. Operations and bytes are counted by formula (`kernel_work`).
Writes `.weft/bench/roofline.json`: `ours` is the time of a kernel, `peer` the least time by arithmetic and memory at
those rates, `ratio` the share of them that is reached; where it is under a half, `why` says what bounds the kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from kernel_watch import PARTS, watch
from kernel_work import Work, works
from machine import conditions
from serving import Shape
from side_weft import trainer_of
from sides import busy_s

from weft_clt.kernels import CpuKernels, FeatureLists

SHAPES = ["12,768,2048,4096", "30,576,1024,4096"]
_COPIED_NUMBERS = 16 << 20
_CACHED_NUMBERS = 32 << 10
"""Two such arrays of float32 are 256 KiB."""
_CACHED_TIMES = 200
_STEP = "whole step"
WHY = {
    PARTS["encode"]: "the selection reads every pre-activation again after the product, and compares instead of adds",
    PARTS["decode_pass"]: "each entry reads and writes a strip of its token's prediction, 4 bytes of cache traffic an "
    "operation, so the cache bounds it",
    PARTS["value_grad_pass"]: "each entry reads a strip of its token's error from the cache for two products, whose "
    "sums across a vector and scattered results take further instructions",
    PARTS["decoder_adam"]: "a root and a division a parameter, and a strip of the error from the cache an entry, take "
    "longer than the states' way through memory",
    PARTS["encode_backward"]: "entries come token by token, so each reads and writes its feature's row of a gradient "
    "that only the last-level cache holds",
    PARTS["adam"]: "a root and a division a parameter take longer than the states' way through memory",
}
"""What bounds a kernel that reaches less than half of the rates."""


@dataclass
class Rates:
    """Seconds of the machine's own operations, round by round."""

    product_s: list[float] = field(default_factory=list)
    copy_s: list[float] = field(default_factory=list)
    cached_s: list[float] = field(default_factory=list)


class Machine:
    """Measures what this machine can do at a shape."""

    def __init__(self, shape: Shape, threads: int) -> None:
        self._threads = threads
        self._inputs_TD = torch.randn(shape.num_tokens, shape.d_model)
        self._weight_FD = torch.randn(shape.num_features, shape.d_model)
        self._out_TF = torch.empty(shape.num_tokens, shape.num_features)
        self._flop = 2 * shape.num_tokens * shape.d_model * shape.num_features
        self._source, self._target = torch.ones(_COPIED_NUMBERS), torch.ones(_COPIED_NUMBERS)
        self._near, self._nearer = np.ones((2, _CACHED_NUMBERS), dtype=np.float32)
        self.rates = Rates()

    def measure(self) -> None:
        """Measure each once."""
        self.rates.product_s.append(_seconds(self._multiply))
        self.rates.copy_s.append(_seconds(lambda: self._target.copy_(self._source)))
        self.rates.cached_s.append(_seconds(self._copy_cached))

    def _multiply(self) -> None:
        torch.mm(self._inputs_TD, self._weight_FD.T, out=self._out_TF)

    def _copy_cached(self) -> None:
        for _ in range(_CACHED_TIMES):
            np.copyto(self._nearer, self._near)

    @property
    def flop_per_s(self) -> float:
        """Of torch's product, all threads."""
        return self._flop / statistics.median(self.rates.product_s)

    @property
    def copy_bytes_per_s(self) -> float:
        """Of torch's copy, all threads."""
        return 2 * int(self._source.nbytes) / statistics.median(self.rates.copy_s)

    @property
    def cached_bytes_per_s(self) -> float:
        """Of a copy inside one core's second-level cache, times the threads."""
        return self._threads * 2 * int(self._near.nbytes) * _CACHED_TIMES / statistics.median(self.rates.cached_s)


def _seconds(work: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


class ListsKeeper:
    """Keeps the entries that the last step decoded."""

    def __init__(self, kernels: CpuKernels) -> None:
        self.lists: FeatureLists | None = None
        decode_pass = kernels.decode_pass

        def keep(lists: FeatureLists, *rest: object) -> None:
            self.lists = lists
            decode_pass(lists, *rest)  # type: ignore[arg-type]

        kernels.decode_pass = keep  # type: ignore[method-assign, assignment]


def measured(shape: Shape, rounds: int, threads: int) -> list[dict[str, object]]:
    """Do steps of one shape; returns a row for each kernel, one for the rest of the step and one for the whole."""
    kernels = CpuKernels()
    keeper = ListsKeeper(kernels)
    trainer, batch = trainer_of(shape, kernels)
    seconds, machine = watch(kernels), Machine(shape, threads)
    trainer.train_step(batch)
    machine.measure()
    machine.rates = Rates()
    parts: dict[str, list[float]] = {}
    others = 0.0
    for _ in range(rounds):
        start_busy_s, start_cpu_s, start_s = busy_s(), time.process_time(), time.perf_counter()
        machine.measure()
        seconds.clear()
        step_s = _seconds(lambda: trainer.train_step(batch))
        for part, part_s in {**seconds, _STEP: step_s}.items():
            parts.setdefault(part, []).append(part_s)
        others_s = busy_s() - start_busy_s - (time.process_time() - start_cpu_s)
        others = max(others, others_s / (time.perf_counter() - start_s))
    assert keeper.lists is not None
    told = (
        f"TopK, {shape}, k {shape.active}, {conditions(threads)}, median of {rounds} steps, "
        f"product {machine.flop_per_s / 1e9:.0f} GFLOP/s, copy {machine.copy_bytes_per_s / 1e9:.1f} GB/s, "
        f"copy in cache {machine.cached_bytes_per_s / 1e9:.0f} GB/s, others took at most {others:.2f} cores"
    )
    median_s = {part: statistics.median(times) for part, times in parts.items()}
    by_formula = works(shape, keeper.lists)
    rows = [_row(part, work, median_s[part], machine, shape, told) for part, work in by_formula.items()]
    known = [part for part in median_s if part in by_formula]
    rest = {"everything else": median_s[_STEP] - sum(median_s[part] for part in known), _STEP: median_s[_STEP]}
    for part, part_s in rest.items():
        rows.append(
            {"name": f"{part}, {shape}", "ours": part_s, "peer": None, "ratio": None, "unit": "s", "conditions": told,
             "part": part}
        )  # fmt: skip
    return rows


def _row(part: str, work: Work, part_s: float, machine: Machine, shape: Shape, told: str) -> dict[str, object]:
    arithmetic_s, memory_s = work.flop / machine.flop_per_s, work.memory_bytes / machine.copy_bytes_per_s
    least_s = max(arithmetic_s, memory_s)
    row: dict[str, object] = {
        "name": f"{part}, {shape}", "ours": part_s, "peer": least_s, "ratio": least_s / part_s, "unit": "s",
        "conditions": told, "part": part, "flop": work.flop, "memory_bytes": work.memory_bytes,
        "cache_bytes": work.cache_bytes, "share_of_product": arithmetic_s / part_s, "share_of_copy": memory_s / part_s,
        "share_of_cache": work.cache_bytes / machine.cached_bytes_per_s / part_s,
    }  # fmt: skip
    return row | ({"why": WHY[part]} if least_s < part_s / 2 else {})


def main() -> None:
    """Measure every shape and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="layers,width,features,tokens; may be given several times")
    parser.add_argument("--active", type=int, help="features a token and layer, by default 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the benchmark itself")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/roofline.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    active = options.active or (3 if options.quick else 16)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for text in options.shape or (["2,16,32,24"] if options.quick else SHAPES):
        rows += measured(Shape.of_option(text, active), options.rounds, options.threads)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        share = "" if row["ratio"] is None else f"{row['ratio']:.0%} of the roof"
        print(f"{row['name']:64} {row['ours']:9.4f} s  {share}")


if __name__ == "__main__":
    main()
