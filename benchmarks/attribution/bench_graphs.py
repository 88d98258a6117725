"""
Rows of attribution graphs against circuit-tracer, in the same run, and against the floor.

    python benchmarks/attribution/bench_graphs.py [--model FOLDER] [--tokens 16 64 128] [--rounds 3] [--threads 1]
        [--circuit-tracer PYTHON]

Both sides explain the same prompts of the same model with the same random CLT (`problem.py`), float32, each in a
process with as many threads and the same environment, so that LD_PRELOAD of an allocator is the same for both. They
take turns: in every round each computes some rows, spread over the whole graph so that layers and positions are as
frequent as in all of it. circuit-tracer's batch size is the best of those tried. A rate is rows by second of processor
time, which with one thread is the time on a quiet machine; medians over rounds. Memory is the peak of each side's
process; weft's model runs in another process, whose peak is told as well.
The floor is the time that the products which no sweep down the causal cone can leave out take at the rate of a product
measured in the same round. `--circuit-tracer` is the Python of an environment that has circuit-tracer 0.5.0,
transformer-lens 3.2.1, nnsight 0.6.1 and transformers 4.57.3; without it weft and the floor are measured alone.
Writes `.weft/bench/attribution.json`: a ratio above 1 is in weft's favour, of the floor it is the share reached.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from turns import Json, Side

sys.path.append(str(Path(__file__).parents[1] / "training"))
from machine import conditions, environment
from regions import fill

PEER = "circuit-tracer"
_GIB = 1 << 30


class Comparison:
    """One length of prompt."""

    def __init__(self, tokens: int, folder: Path, model_bytes: int, options: argparse.Namespace) -> None:
        self._tokens, self._folder, self._options, self._model_bytes = tokens, folder, options, model_bytes
        self._given = {
            "model": str(options.model.absolute()), "folder": str(folder), "clt": str(folder / "bench"),
            "tokens": tokens, "threads": options.threads, "memory": options.memory_mib << 20,
        }  # fmt: skip

    def run(self) -> list[Json]:
        """Measure, and return the rows."""
        ours = Side(sys.executable, "side_weft.py", self._given, environment(self._options.threads))
        peer = None
        try:
            if self._options.circuit_tracer:
                # What is on our path is for our interpreter.
                theirs = {k: v for k, v in environment(self._options.threads).items() if k != "PYTHONPATH"}
                peer = Side(self._options.circuit_tracer, "side_circuit_tracer.py", self._given, theirs)
            return self._measure(ours, peer)
        finally:
            ours.close()
            if peer is not None:
                peer.close()

    def _measure(self, ours: Side, peer: Side | None) -> list[Json]:
        facts = ours.ask(what="facts")
        batch = self._best_batch(peer) if peer is not None else 0
        mine: list[Json] = []
        their: list[Json] = []
        floor_s: list[float] = []
        for number in range(self._options.rounds):
            mine.append(ours.ask(what="rows", spans=self._options.spans))
            floor_s.append(mine[-1]["flop"] / mine[-1]["rows"] / ours.ask(what="rate")["flop_per_s"])
            if peer is not None:
                their.append(peer.ask(what="rows", batch=batch, spans=self._options.peer_spans))
            told = ", ".join(f"{_rate([each]):.3g}" for each in (mine[-1], *their[-1:]))
            print(f"{self._tokens} tokens, round {number + 1}: rows/s {told}", flush=True)
        agreement = self._agreement(ours, peer, batch) if peer is not None else ""
        told = (
            f"{self._tokens} tokens, {facts['active_features']} active features, {mine[0]['rows']} rows a round, "
            f"{conditions(self._options.threads)}, median of {len(mine)} rounds in turns, rows by processor second, "
            f"weft's sweep within {self._options.memory_mib} MiB"
        )
        after = (
            f"{told}, batches of {batch} and {their[0]['rows']} rows a round for {PEER}{agreement}" if their else told
        )
        name = f"{self._tokens} tokens"
        mine_gib, their_gib = (max((each["peak_bytes"] for each in side), default=0) / _GIB for side in (mine, their))
        both_gib = mine_gib + self._model_bytes / _GIB
        return [
            _row(f"feature rows, against {PEER}, {name}", _rate(mine), _rate(their), "rows/s", after),
            _row(f"peak memory, against {PEER}, {name}", mine_gib, their_gib, "GiB", after, less_is_better=True),
            _row(
                f"peak memory with the model's process, against {PEER}, {name}",
                both_gib, their_gib, "GiB", after, less_is_better=True,
            ),
            _row(
                f"a row, against its floor, {name}",
                1 / _rate(mine), statistics.median(floor_s), "s", told, less_is_better=True,
            ),
        ]  # fmt: skip

    def _best_batch(self, peer: Side) -> int:
        rates = {}
        for batch in self._options.batches:
            peer.ask(what="forward", batch=batch)
            rates[batch] = _rate([peer.ask(what="rows", batch=batch, spans=1)])
            print(f"{self._tokens} tokens, {PEER} with batches of {batch}: {rates[batch]:.3g} rows/s", flush=True)
        best = max(rates, key=rates.__getitem__)
        if best != self._options.batches[-1]:
            peer.ask(what="forward", batch=best)
        return best

    def _agreement(self, ours: Side, peer: Side, batch: int) -> str:
        """How far the edges of both differ, where both see a feature active."""
        paths = [self._folder / f"{name}_{self._tokens}.npy" for name in ("keys", "ours", "theirs")]
        keys, our, their = (str(path) for path in paths)
        ours.ask(what="edges", count=batch, path=f"{our}.npz")
        with np.load(f"{our}.npz") as found:
            our_keys, rows, our_edges = found["keys"], found["rows"], found["edges"]
        np.save(keys, our_keys[rows])
        peer.ask(what="edges", keys=keys, batch=batch, path=f"{their}.npz")
        with np.load(f"{their}.npz") as found:
            their_keys, their_edges = found["keys"], found["edges"]
        place = {tuple(key): column for column, key in enumerate(their_keys.tolist())}
        both = [(ours, place[tuple(key)]) for ours, key in enumerate(our_keys.tolist()) if tuple(key) in place]
        mine, theirs = our_edges[:, [pair[0] for pair in both]], their_edges[:, [pair[1] for pair in both]]
        apart = np.abs(mine - theirs).max(axis=1) / np.abs(mine).max(axis=1).clip(min=1e-30)
        close = np.isclose(mine, theirs, rtol=1e-3, atol=1e-6 * np.abs(mine).max()).mean()
        return (
            f", {len(both)} of {len(our_keys)} and {len(their_keys)} features are the same, {close:.4%} of their edges "
            f"in {len(rows)} rows within a thousandth, the others within {apart.max():.1e} of their row's largest"
        )


def _rate(answers: list[Json]) -> float:
    """Rows by second of processor time, the median; 0 where nothing was measured."""
    return statistics.median(each["rows"] / each["cpu_s"] for each in answers) if answers else 0.0


def _row(name: str, ours: float, peer: float, unit: str, told: str, *, less_is_better: bool = False) -> Json:
    ratio = (peer / ours if less_is_better else ours / peer) if peer else None
    return {"name": name, "ours": ours, "peer": peer or None, "ratio": ratio, "unit": unit, "conditions": told}


def _page(rows: list[Json]) -> list[str]:
    """Return the table of a page."""
    lines = ["| figure | weft | circuit-tracer or floor | unit | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = [f"{row[key]:.3g}" if row[key] else "–" for key in ("ours", "peer", "ratio")]
        lines.append(f"| {row['name']} | {figures[0]} | {figures[1]} | {row['unit']} | {figures[2]} |")
    told = [row["conditions"] for row in rows if row["unit"] == "rows/s"]
    return [*lines, "", "Measured under:", "", *(f"- {each}." for each in told)]


def main() -> None:
    """Measure every length and write all rows, after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(".weft/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--features", type=int, default=2048, help="F, features a layer")
    parser.add_argument("--active", type=int, default=17, help="L0, features a token and layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--spans", type=int, default=4, help="positions of whose features weft computes rows")
    parser.add_argument("--peer-spans", type=int, default=3, help="batches that circuit-tracer computes a round")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64], help="tried for circuit-tracer")
    parser.add_argument("--memory-mib", type=int, default=512, help="WEFT_ATTRIBUTION_MEMORY_BYTES, in MiB")
    parser.add_argument("--circuit-tracer", help="Python of an environment that has it")
    parser.add_argument("--page", type=Path, help="a page whose region `graphs` takes the table")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/attribution.json"))
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model} has no config.json; give the folder of a model, or `make model`.")
    if not options.circuit_tracer:
        print(f"No --circuit-tracer: {PEER} is not measured, only weft and the floor.", flush=True)
    rows: list[Json] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        given = {
            "model": str(options.model.absolute()), "folder": name, "tokens": options.tokens,
            "features": options.features, "active": options.active, "threads": options.threads,
        }  # fmt: skip
        problem = Side(sys.executable, "problem.py", given, environment(options.threads))
        model_bytes = problem.ask()["model_bytes"]
        problem.close()
        for tokens in options.tokens:
            rows += Comparison(tokens, Path(name), model_bytes, options).run()
            options.output.write_text(json.dumps(rows, indent=1) + "\n")
    if options.page:
        options.page.write_text(fill(options.page.read_text(), "graphs", _page(rows)))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
