"""
Whole graphs as users have them made: through the services, over gRPC, from the prompt to the stored graph.

    python benchmarks/attribution/bench_whole.py [--model FOLDER] [--graphs 16:0 64:8192] [--rounds 3]
        [--peer-rates .weft/bench/attribution.json]

Model, prompts and random CLT are those of `bench_graphs.py`; `64:8192` is a prompt of 64 tokens with rows for the
8,192 most influential features, `16:0` one with rows for all. The five services run on this machine, each a process of
its own; attribution sweeps with a thread a core. Every round asks for each graph once, under a new name and with a
probability of its own, so that no row is taken over from the round before.
circuit-tracer would take most of an hour for both. What stands beside is the time that its rows alone take at the rate
that `bench_graphs.py` measured with one thread, divided by the threads that weft has: as if it gained all of each.
Writes `.weft/bench/attribution_whole.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer
from turns import Json, Side

from weft.attribution.v1.messages_pb2 import Graph, GraphSpec
from weft_client import Client
from weft_client.local.control import running
from weft_client.local.layout import Layout

sys.path.append(str(Path(__file__).parents[1] / "training"))
from machine import conditions, environment
from regions import fill

PEER = "circuit-tracer"
WANTED_S = {(16, 0): 25.0, (64, 8192): 100.0}


def prompt_of(model: Path, streams: Path) -> str:
    """Return the text of a prompt whose tokens were captured, and make sure that it has these tokens."""
    import numpy as np

    with np.load(streams) as found:
        ids = found["token_ids"].tolist()
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = str(tokenizer.decode(ids))
    if tokenizer.encode(text) != ids:
        raise SystemExit(f"the first {len(ids)} tokens of the benchmark's text do not come out of their own text")
    return text


def make_graphs(client: Client, options: argparse.Namespace, bucket: Path) -> dict[tuple[int, int], list[Graph]]:
    """Take turns: every graph once a round."""
    found: dict[tuple[int, int], list[Graph]] = {wanted: [] for wanted in options.graphs}
    for number in range(options.rounds):
        for tokens, rows in options.graphs:
            spec = GraphSpec(
                model=f"models/{options.model.name}",
                transcoder="transcoders/bench",
                prompt=prompt_of(options.model, bucket / f"streams_{tokens}.npz"),
                max_features=rows,
                # Rows are taken over from a graph of the same settings; with this it is another one.
                logit_probability=0.95 - 0.001 * number,
            )
            operation = client.graphs.create(f"whole-{tokens}-{rows}-{number}", spec=spec)
            graph: Graph = client.operations.wait(operation)
            found[tokens, rows].append(graph)
            stages = ", ".join(f"{each.stage} {each.seconds:.1f}" for each in graph.statistics.stage_seconds)
            print(f"{tokens} tokens, round {number + 1}: {graph.statistics.seconds:.1f} s ({stages})", flush=True)
    return found


def to_row(wanted: tuple[int, int], graphs: list[Graph], peer_rate: float | None, threads: int) -> Json:
    """Return the row of one kind of graph."""
    tokens, rows = wanted
    statistics_ = graphs[0].statistics
    ours = statistics.median(each.statistics.seconds for each in graphs)
    peer = statistics_.num_features / peer_rate / threads if peer_rate else None
    stages: dict[str, list[float]] = {}
    for graph in graphs:
        for each in graph.statistics.stage_seconds:
            stages.setdefault(each.stage, []).append(each.seconds)
    told = ", ".join(f"{stage} {statistics.median(found):.1f} s" for stage, found in stages.items())
    return {
        "name": f"whole graph, {tokens} tokens, {'all' if not rows else f'{rows:,}'} rows, beside {PEER}'s rows alone",
        "ours": ours, "peer": peer, "ratio": peer / ours if peer else None, "unit": "s",
        "wanted": WANTED_S.get(wanted),
        "conditions": f"{statistics_.num_active_features} active features, {statistics_.num_features} with rows, "
        f"{conditions(threads)}, median of {len(graphs)} rounds; {told}; {PEER}'s rows at its rate with one thread, "
        f"taken {threads} times",
    }  # fmt: skip


def peer_rates(path: Path) -> dict[int, float]:
    """Return circuit-tracer's rows a second by tokens, where they were measured."""
    rows = json.loads(path.read_text()) if path.is_file() else []
    name = f"feature rows, against {PEER}, "
    return {
        int(row["name"].removeprefix(name).split()[0]): row["peer"]
        for row in rows
        if row["name"].startswith(name) and row["peer"]
    }


def page_lines(rows: list[Json]) -> list[str]:
    """Return the table of a page."""
    lines = [f"| graph | weft, s | wanted, s | {PEER}'s rows alone, s | ratio |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        name = row["name"].removeprefix("whole graph, ").split(", beside")[0]
        figures = [f"{row[key]:.3g}" if row[key] else "–" for key in ("ours", "wanted", "peer", "ratio")]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return [*lines, "", "Measured under:", "", *(f"- {row['conditions']}." for row in rows)]


def main() -> None:
    """Make the graphs and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(".weft/models/smollm2-135m-instruct"))
    parser.add_argument("--graphs", nargs="+", default=["16:0", "64:8192"], help="TOKENS:ROWS, 0 rows for all")
    parser.add_argument("--features", type=int, default=2048, help="F, features a layer")
    parser.add_argument("--active", type=int, default=17, help="L0, features a token and layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rates", type=Path, default=Path(".weft/bench/attribution.json"))
    parser.add_argument("--page", type=Path, help="a page whose region `whole` takes the table")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/attribution_whole.json"))
    options = parser.parse_args()
    options.model = options.model.absolute()
    options.graphs = [(int(tokens), int(rows)) for tokens, rows in (each.split(":") for each in options.graphs)]
    threads, rates = len(os.sched_getaffinity(0)), peer_rates(options.peer_rates)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        layout = Layout(Path(name))
        layout.models.symlink_to(options.model.parent)
        bucket = layout.root / "bucket"
        bucket.mkdir()
        given = {
            "model": str(options.model), "folder": str(bucket), "tokens": [tokens for tokens, _ in options.graphs],
            "features": options.features, "active": options.active, "threads": threads,
        }  # fmt: skip
        problem = Side(sys.executable, "problem.py", given, environment(threads))
        problem.ask()
        problem.close()
        with running(layout), Client.connect(layout.endpoints_path) as client:
            found = make_graphs(client, options, bucket)
    rows = [to_row(wanted, graphs, rates.get(wanted[0]), threads) for wanted, graphs in found.items()]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    if options.page:
        options.page.write_text(fill(options.page.read_text(), "whole", page_lines(rows)))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
