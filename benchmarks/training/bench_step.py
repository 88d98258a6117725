"""
One training step against a dense step in stock torch, against CLT-Forge's own code, and against its floor.

    python benchmarks/training/bench_step.py [--shape 30,576,1024,512]... [--active 16] [--rounds 3] [--threads 1]
        [--clt-forge FOLDER --clt-forge-python PYTHON]

A shape is layers, width, features of a layer, tokens of a step. Every side is a process of its own with the same shape,
random data in memory, float32, threads and environment (so LD_PRELOAD of an allocator is the same for all): forward,
backward, clipping and Adam. They take turns, a step each a round, so that what else runs on the machine meets all.
`--clt-forge` is a working tree of LLM-Interp/CLT-Forge; its step is JumpReLU with its losses, and weft's is measured
with both TopK and that. Sides stay in memory side by side. Runs on Linux and macOS; the load of others is Linux only.
Writes `.weft/bench/training.json`: of a ratio of tokens/s more is better, of memory and of the floor less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from serving import Answer, Shape

HERE = Path(__file__).parent
SHAPES = ["12,768,2048,1024", "30,576,1024,512"]
"""GPT-2's and SmolLM2-135M's layers and width."""


@dataclass(frozen=True)
class Round:
    """One step of one side."""

    answer: Answer
    others_cores: float
    """Processors that were busy with something else."""


class Side:
    """A process that does steps."""

    def __init__(self, name: str, script: str, shape: Shape, python: str, environment: Mapping[str, str]) -> None:
        self.name, self.rounds = name, list[Round]()
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(asdict(shape))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def step(self) -> float:
        """Do a step and return its seconds."""
        assert self._process.stdin is not None
        start_s, start_busy_s = time.perf_counter(), _busy_s()
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = Answer(**json.loads(self._read()))
        others_s = _busy_s() - start_busy_s - answer.cpu_s
        self.rounds.append(Round(answer, max(0.0, others_s / (time.perf_counter() - start_s))))
        return answer.seconds

    def close(self) -> None:
        """Let it go."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemExit(f"{self.name} ended with {self._process.returncode}; what it said stands above.")
        return line

    @property
    def seconds(self) -> float:
        """Of a step, the median."""
        return statistics.median(each.answer.seconds for each in self.rounds)

    @property
    def peak_gib(self) -> float:
        """Resident memory of the process at its peak."""
        return max(each.answer.peak_bytes for each in self.rounds) / (1 << 30)

    @property
    def active(self) -> float:
        """Features a token and layer."""
        return statistics.mean(each.answer.active for each in self.rounds)

    @property
    def others_cores(self) -> float:
        """The most that others took during a step."""
        return max(each.others_cores for each in self.rounds)


def _busy_s() -> float:
    """Seconds that all processors together were busy since the machine started."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return 0.0
    user, nice, system, _, _, irq, soft_irq, *_ = map(int, counters.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def _against(name: str, ours: Side, peer: Side, shape: Shape, conditions: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for what, unit, mine, theirs in (
        ("training step", "tokens/s", shape.num_tokens / ours.seconds, shape.num_tokens / peer.seconds),
        ("peak memory of training", "GiB", ours.peak_gib, peer.peak_gib),
    ):
        told = (
            f"{shape}, L0 {ours.active:.1f} and {peer.active:.1f}, {conditions}, others took at most "
            f"{max(ours.others_cores, peer.others_cores):.2f} cores"
        )
        rows.append(
            {"name": f"{what}, {name}, {shape}", "ours": mine, "peer": theirs, "ratio": mine / theirs, "unit": unit,
             "conditions": told}
        )  # fmt: skip
    return rows


def measured(shape: Shape, options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of one shape."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "weft" / "numba")),
    }
    jumps = replace(shape, activation="jump-relu", clt_forge=str(options.clt_forge))
    wanted = [
        ("TopK", "side_weft.py", shape, sys.executable),
        ("dense torch", "side_dense.py", shape, sys.executable),
        ("floor", "side_floor.py", shape, sys.executable),
    ]
    if options.clt_forge:
        wanted += [
            ("JumpReLU", "side_weft.py", jumps, sys.executable),
            ("CLT-Forge", "side_clt_forge.py", jumps, options.clt_forge_python),
        ]
    sides: dict[str, Side] = {}
    try:
        for name, script, its_shape, python in wanted:
            sides[name] = Side(name, script, its_shape, python, environment)
        for number in range(options.rounds):
            times = ", ".join(f"{name} {side.step():.3f} s" for name, side in sides.items())
            print(f"{shape}, round {number + 1}: {times}", flush=True)
    finally:
        for side in sides.values():
            side.close()
    allocator = Path(os.environ.get("LD_PRELOAD", "")).name or "of the C library"
    conditions = (
        f"float32, CPU, {options.threads} thread(s), allocator {allocator}, "
        f"median of {options.rounds} interleaved steps"
    )
    rows = _against("TopK, against dense torch", sides["TopK"], sides["dense torch"], shape, conditions)
    if options.clt_forge:
        for name in ("TopK", "JumpReLU"):
            rows += _against(f"{name}, against CLT-Forge", sides[name], sides["CLT-Forge"], shape, conditions)
    ours, floor = sides["TopK"].seconds, sides["floor"].seconds
    rows.append(
        {"name": f"training step, TopK, against its floor, {shape}", "ours": ours, "peer": floor,
         "ratio": ours / floor, "unit": "s", "conditions": f"{shape}, L0 {sides['TopK'].active:.1f}, {conditions}"}
    )  # fmt: skip
    return rows


def _shape(text: str, active: int) -> Shape:
    try:
        return Shape(*map(int, text.split(",", 3)), active=active)
    except (TypeError, ValueError):
        raise SystemExit(
            f"--shape {text!r} is refused; give layers,width,features,tokens, such as {SHAPES[0]}."
        ) from None


def main() -> None:
    """Measure every shape and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="layers,width,features,tokens; may be given several times")
    parser.add_argument("--active", type=int, default=16, help="features a token and layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="Python of an environment that it runs in")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/training.json"))
    options = parser.parse_args()
    if options.clt_forge and not (options.clt_forge / "src" / "clt_forge" / "clt.py").is_file():
        raise SystemExit(f"{options.clt_forge} has no src/clt_forge/clt.py; give a working tree of CLT-Forge.")
    rows = [row for text in options.shape or SHAPES for row in measured(_shape(text, options.active), options)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
