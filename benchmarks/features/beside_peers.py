"""
Tokens a second of an index beside delphi's cache and CLT-Forge's feature statistics, in turns.

    python benchmarks/features/beside_peers.py --delphi CHECKOUT --clt-forge CHECKOUT
        [--delphi-python PYTHON] [--clt-forge-python PYTHON] [--tokens 65536] [--rounds 3]

Goes over the bucket that `bench_features.py` leaves: an index of all its tokens, the others on the first of them, as
their memory grows with the tokens. What each side does and leaves out is in `side_peers.py`; an index reads a dataset
that was harvested, so delphi's figure is given with the model's forward pass and without it. Writes
`.weft/bench/features-peers.json` and fills `docs/benchmarks/features.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench_features import BENCH, MODEL, PAGE, SIDE, clear_index, index_request

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
from regions import fill

from weft_store.opening import open_store

PEERS = Path(__file__).with_name("side_peers.py")


def _run(*command: str | Path) -> dict[str, Any]:
    done = subprocess.run([str(each) for each in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[1]} failed; its message stands above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    folder = (BENCH / "features").resolve()
    bucket, sequences = f"file://{folder / 'bucket'}", folder / "sequences.npz"
    store, request = open_store(bucket), index_request("beside", 0)
    workers = len(os.sched_getaffinity(0))
    found: dict[str, list[dict[str, Any]]] = {"weft": [], "delphi": [], "clt-forge": []}
    for number in range(options.rounds):
        clear_index(store, "beside")
        ours = _run(sys.executable, SIDE, bucket, sequences, json.dumps(request.to_json()), "--workers", str(workers))
        found["weft"].append(ours)
        for peer, python, checkout in (
            ("delphi", options.delphi_python, options.delphi),
            ("clt-forge", options.clt_forge_python, options.clt_forge),
        ):
            found[peer].append(_run(python, PEERS, peer, checkout, bucket, sequences, MODEL, str(options.tokens)))
        print({side: each[-1] for side, each in found.items()}, f"round {number + 1}", flush=True)
    clear_index(store, "beside")
    return found


def _rows(found: dict[str, list[dict[str, Any]]], conditions: str) -> list[dict[str, Any]]:
    """Rows of the bench's form; a ratio is the median of the rounds'."""

    def rates(side: str, *, without_model: bool = False) -> list[float]:
        return [each["tokens"] / (each["seconds"] - (each["model_s"] if without_model else 0)) for each in found[side]]

    ours = rates("weft")
    rows = []
    for name, theirs in (
        ("delphi's cache", rates("delphi")),
        ("delphi's cache without its model's forward pass", rates("delphi", without_model=True)),
        ("CLT-Forge's feature statistics", rates("clt-forge")),
    ):
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        rows.append(
            {
                "name": f"index beside {name}",
                "ours": statistics.median(ours),
                "peer": statistics.median(theirs),
                "ratio": ratio,
                "unit": "tokens/s",
                "conditions": conditions,
            }
        )
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delphi", type=Path, required=True, help="a working tree of EleutherAI/delphi")
    parser.add_argument("--clt-forge", type=Path, required=True, help="a working tree of LLM-Interp/CLT-Forge")
    parser.add_argument("--delphi-python", default=sys.executable, help="Python of an environment that delphi runs in")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="the same for CLT-Forge")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = _measure(options)
    conditions = (
        f"{found['weft'][0]['tokens']:,} tokens (the others the first {options.tokens:,} of them), 30 layers, "
        f"{found['weft'][0]['features']} features a layer, "
        f"{len(os.sched_getaffinity(0))} cores, {options.rounds} rounds in turns, load {load:.1f} at the beginning"
    )
    rows = _rows(found, conditions)
    (BENCH / "features-peers.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))
    peak = {side: max(each["peak_kib"] for each in rounds) / 1024 for side, rounds in found.items()}
    lines = [
        f"Measured with {conditions}.",
        "",
        "| side | tokens a second | index over it |",
        "| --- | --- | --- |",
        f"| an index, its manifest included | {rows[0]['ours']:,.0f} | |",
        *(
            f"| {each['name'].removeprefix('index beside ')} | {each['peer']:,.0f} | {each['ratio']:.2f} |"
            for each in rows
        ),
        "",
        f"Peak memory: {peak['weft']:,.0f} MiB, delphi {peak['delphi']:,.0f}, CLT-Forge {peak['clt-forge']:,.0f} "
        "with its inputs, which it was given in memory.",
    ]
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), "peers", lines), encoding="utf-8")


if __name__ == "__main__":
    main()
