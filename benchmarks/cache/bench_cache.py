"""
Measure the cache: bits, errors and rates of the codecs, and the way from a bucket to tensors.

    python benchmarks/cache/bench_cache.py [--clt-forge FOLDER --clt-forge-python PYTHON] [--only bits rates reads]
        [--training] [--sequences 24] [--sequence-tokens 512] [--rounds 5] [--quick] [--threads 2]

The peer is CLT-Forge's `CompressedActivationsStore` out of a working tree of its code, int8 with zstd -3 as it is set
by default, in a process and environment of its own; without `--clt-forge` its rows are left out. Rates depend on the
allocator in LD_PRELOAD, which both sides have; those of another one are kept. The bound is the rate of a Gaussian with
the same covariance at the same error. Writes `.weft/bench/cache.json`, whose rows are kept where a part is not measured
again, and fills `docs/benchmarks/cache.md`. `--training` trains fifteen small CLTs, for about a quarter of an hour on
two cores. `--quick` tries all of it at a size at which only the rows' form means something, and fills no page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".weft" / "bench"
MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models")) / "smollm2-135m-instruct"
PAGE = ROOT / "docs" / "benchmarks" / "cache.md"
PARTS = {"bits": ("bits", "peer bits", "fvu"), "rates": ("rate",), "reads": ("reads",), "training": ("training",)}
Row = dict[str, Any]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="a Hugging Face folder")
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="Python of an environment that it runs in")
    parser.add_argument("--only", nargs="+", choices=["bits", "rates", "reads"], help="by default all three")
    parser.add_argument("--training", action="store_true", help="train on codes too")
    parser.add_argument("--sequences", type=int, default=24)
    parser.add_argument("--sequence-tokens", type=int, default=512)
    parser.add_argument("--rate-tokens", type=int, default=2048, help="tokens whose writing and reading is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that read, and that train")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="by default .weft/bench/cache.json")
    options = parser.parse_args()
    if options.clt_forge and not (options.clt_forge / "src" / "clt_forge" / "training").is_dir():
        parser.error(f"{options.clt_forge} has no src/clt_forge/training; give a working tree of CLT-Forge.")
    if options.quick:
        options.sequences, options.sequence_tokens, options.rate_tokens, options.rounds = 2, 128, 128, 1
    options.out = options.out or (BENCH / "quick" if options.quick else BENCH) / "cache.json"
    options.only = options.only or ([] if options.training else ["bits", "rates", "reads"])
    return options


def _measured(options: argparse.Namespace) -> Iterator[Row]:
    import numpy as np
    import torch
    from activations import take_activations
    from measure_bits import bit_rows
    from measure_rates import rate_rows
    from measure_reads import read_rows
    from measure_training import TrainingSize, training_rows
    from peer import Peer

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peer = None
        if options.clt_forge:
            peer = stack.enter_context(Peer(options.clt_forge.resolve(), options.clt_forge_python, folder))
        if options.only:
            taken = take_activations(options.model, options.sequences, options.sequence_tokens)
            for name, values in taken.items():
                np.save(folder / f"{name}.npy", values)
            torch.set_num_threads(1)
            layers, tokens, width = taken["mlp_in"].shape
            setting = f"{options.model.name}, {layers} layers of {width}, {{}} tokens of Python's help topics"
            if "bits" in options.only:
                yield from bit_rows(taken, peer, folder, setting.format(tokens))
            streams = {
                name: np.ascontiguousarray(taken[source][:, : options.rate_tokens])
                for name, source in (("input", "mlp_in"), ("output", "mlp_out"))
            }
            for name, values in streams.items():
                np.save(folder / f"{name}.npy", values)
            setting = setting.format(streams["input"].shape[1])
            if "rates" in options.only:
                yield from rate_rows(streams, peer, folder, options.rounds, setting)
            if "reads" in options.only:
                (folder / "minio").mkdir()
                yield from read_rows(streams, folder / "minio", options.rounds, options.threads, setting)
        if options.training:
            home = BENCH / "quality"
            home.mkdir(parents=True, exist_ok=True)
            size = TrainingSize(options.model, home)
            if options.quick:
                size = TrainingSize(options.model, home, 14, 2, 32, 512, 128, 4, 64, 8, 2)
            yield from training_rows(size, peer, options.threads)


def main() -> None:
    """Measure, keep what was not measured again, and fill the page."""
    # Numba, BLAS and torch read these when they are imported: a rate is one core's.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path.home() / ".cache" / "weft" / "numba"))
    options = _options()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from cache_page import fill_page

    rows = []
    for row in _measured(options):
        rows.append(row)
        peer = "" if row["peer"] is None else f"{row['peer']:10.4g}{row['ratio']:8.3f}"
        print(f"{row['name']:84}{row['ours']:10.4g}{peer} {row['unit']}", flush=True)
    parts = [*options.only, *(["training"] if options.training else [])]
    again = {of for part in parts for of in PARTS[part]}
    allocators = {row.get("allocator") for row in rows}
    if options.out.is_file() and not options.quick:
        before = json.loads(options.out.read_text())
        rows = [row for row in before if row["of"] not in again or row.get("allocator") not in allocators] + rows
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if not options.quick:
        fill_page(PAGE, rows)


if __name__ == "__main__":
    main()
