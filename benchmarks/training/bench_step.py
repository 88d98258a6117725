"""
One training step against a dense step in stock torch, against CLT-Forge's own code, and against its floor.

    python benchmarks/training/bench_step.py [--shape 30,576,1024,512]... [--active 16] [--rounds 3] [--threads 1]
        [--clt-forge FOLDER --clt-forge-python PYTHON]

A shape is layers, width, features of a layer, tokens of a step; those of GPT-2 and SmolLM2-135M by default. Every side
is a process of its own with the same shape, random data in memory, float32, threads and environment (so LD_PRELOAD of
an allocator is the same for all): forward, backward, clipping and Adam. They take turns, a step each a round, so that
what else runs on the machine meets all. `--clt-forge` is a working tree of LLM-Interp/CLT-Forge; its step is JumpReLU
with its losses, and weft's is measured with both TopK and that.
Sides stay in memory side by side, or, where they do not fit, are started one after the other in every round. A peer
whose step does not fit alone takes its tokens in several passes, and the conditions say so; one that does not fit even
then, or ends early, has rows without figures. Runs on Linux and macOS; the load of others is Linux only.
Writes `.weft/bench/training.json`: a ratio above 1 is in weft's favour, of the floor it is the share that is reached.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from footprints import Needed, clt_forge_bytes, dense_bytes, fitting, floor_bytes, free_bytes, usable_bytes, weft_bytes
from machine import conditions, environment
from serving import Shape
from sides import Given, Taken, take_turns

SHAPES = ["12,768,2048,1024", "30,576,1024,512", "12,768,2048,4096", "30,576,1024,4096"]
QUICK_SHAPES = ["2,16,32,24"]
TOP_K, JUMP_RELU, DENSE, CLT_FORGE, FLOOR = "TopK", "JumpReLU", "dense torch", "CLT-Forge", "floor"
_GIB = 1 << 30


class Comparison:
    """All sides of one shape."""

    def __init__(self, shape: Shape, options: argparse.Namespace) -> None:
        self.shape, self._options = shape, options
        free = int(options.memory_gib * _GIB) if options.memory_gib else free_bytes()
        self._usable = usable_bytes(free)
        self._remarks: dict[str, str] = {}
        """What is to be said of a peer's passes, by its name."""
        self.taken: dict[str, Taken] = {}

    def run(self) -> list[dict[str, object]]:
        """Measure, and return the rows."""
        jumps = replace(self.shape, activation="jump-relu", clt_forge=str(self._options.clt_forge))
        sides = [
            Given(TOP_K, "side_weft.py", self.shape, weft_bytes(self.shape)),
            Given(FLOOR, "side_floor.py", self.shape, floor_bytes(self.shape)),
            self._peer(DENSE, "side_dense.py", self.shape, dense_bytes, sys.executable),
        ]
        if self._options.clt_forge:
            python = self._options.clt_forge_python
            sides += [
                Given(JUMP_RELU, "side_weft.py", jumps, weft_bytes(jumps)),
                self._peer(CLT_FORGE, "side_clt_forge.py", jumps, clt_forge_bytes, python),
            ]
        able = [given for given in sides if given is not None]
        needed = sum(given.needed_bytes for given in able)
        together = needed <= self._usable
        threads, rounds = self._options.threads, self._options.rounds
        self.taken |= take_turns(able, rounds, environment(threads), together=together, title=str(self.shape))
        for name in (TOP_K, JUMP_RELU, FLOOR):
            if name in self.taken and self.taken[name].failure:
                raise SystemExit(f"{self.shape}: {name} has no figures: {self.taken[name].failure}.")
        turns = "side by side" if together else f"each started anew in every round, as all need {needed / _GIB:.1f} GiB"
        self._conditions = f"{conditions(threads)}, median of {rounds} interleaved steps, processes {turns}"
        rows = self._against(TOP_K, DENSE)
        if self._options.clt_forge:
            rows += self._against(TOP_K, CLT_FORGE) + self._against(JUMP_RELU, CLT_FORGE)
        return rows + [self._beside_floor(name) for name in (TOP_K, JUMP_RELU) if name in self.taken]

    def _peer(self, name: str, script: str, shape: Shape, needed: Needed, python: str) -> Given | None:
        """Plan a peer in as few passes as fit; None, and a remark, where none do."""
        planned = fitting(shape, needed, self._usable)
        whole = f"about {needed(shape) / _GIB:.1f} GiB of {self._usable / _GIB:.1f} GiB"
        if planned is None:
            self._remarks[name] = f"{name} left out: it needs {whole}, and more passes do not make it fit"
            return None
        if planned.passes > 1:
            self._remarks[name] = f"{name} in {planned.passes} passes whose gradients add up, as one needs {whole}"
        return Given(name, script, planned, needed(planned), python)

    def _against(self, name: str, peer_name: str) -> list[dict[str, object]]:
        ours, peer = self.taken[name], self.taken.get(peer_name)
        remark = f", {self._remarks[peer_name]}" if peer_name in self._remarks else ""
        label = f"{name}, against {peer_name}, {self.shape}"
        if peer is None or peer.failure:
            failed = f", {peer_name} has no figures: {peer.failure}" if peer is not None else ""
            told = f"{self.shape}, L0 {ours.active:.1f}, {self._conditions}{remark}{failed}, {_load(ours)}"
            return [
                _row(f"training step, {label}", ours.tokens_per_s, None, "tokens/s", told),
                _row(f"peak memory of training, {label}", ours.peak_gib, None, "GiB", told),
            ]
        told = f"{self.shape}, L0 {ours.active:.1f} and {peer.active:.1f}, {self._conditions}{remark}"
        told = f"{told}, {_load(ours, peer)}"
        return [
            _row(f"training step, {label}", ours.tokens_per_s, peer.tokens_per_s, "tokens/s", told),
            _row(f"peak memory of training, {label}", ours.peak_gib, peer.peak_gib, "GiB", told, less_is_better=True),
        ]

    def _beside_floor(self, name: str) -> dict[str, object]:
        ours, floor = self.taken[name], self.taken[FLOOR]
        told = f"{self.shape}, L0 {ours.active:.1f}, {self._conditions}, {_load(ours, floor)}"
        label = f"training step, {name}, against its floor, {self.shape}"
        return _row(label, ours.seconds, floor.seconds, "s", told, less_is_better=True)


def _load(*sides: Taken) -> str:
    return f"others took at most {max(side.others_cores for side in sides):.2f} cores"


def _row(
    name: str, ours: float, peer: float | None, unit: str, told: str, *, less_is_better: bool = False
) -> dict[str, object]:
    ratio = None if peer is None else peer / ours if less_is_better else ours / peer
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "conditions": told}


def main() -> None:
    """Measure every shape and write all rows, after each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help="layers,width,features,tokens; may be given several times")
    parser.add_argument("--active", type=int, help="features a token and layer, by default 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="Python of an environment that it runs in")
    parser.add_argument("--memory-gib", type=float, help="plan with this instead of the memory that is free")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the benchmark itself")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/training.json"))
    options = parser.parse_args()
    if options.clt_forge and not (options.clt_forge / "src" / "clt_forge" / "clt.py").is_file():
        raise SystemExit(f"{options.clt_forge} has no src/clt_forge/clt.py; give a working tree of CLT-Forge.")
    active = options.active or (3 if options.quick else 16)
    shapes = [Shape.of_option(text, active) for text in options.shape or (QUICK_SHAPES if options.quick else SHAPES)]
    rows: list[dict[str, object]] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        rows += Comparison(shape, options).run()
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
