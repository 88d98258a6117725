"""
Whole graphs of a model against circuit-tracer's, with the same transcoders in its own formats.

    python benchmarks/attribution/compare_graphs.py --circuit-tracer PYTHON [--model FOLDER] [--page PAGE]

`make_goldens.py` writes random transcoders for the model, a cross-layer one with thresholds and a set of per-layer ones
with skips, and circuit-tracer's graphs of a prompt, in PYTHON's environment. weft reads the same files. Compared are
active features, every edge, what pruning keeps, and both scores; `same_graph` says what counts as a difference. The
figures of small models of every family come from the files that `make_goldens.py` left for the tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).parents[1] / "training"), str(Path(__file__).parents[2] / "tests")]
from golden_cases import FAMILIES, KINDS, PROMPT, write_model, write_transcoder
from machine import environment
from regions import fill
from same_graph import Agreement, compare, explain

GOLDENS = Path(__file__).parents[2] / "tests" / "assets" / "circuit_tracer"
_NAMES = {"clt": "cross-layer", "skips": "per layer, skips"}


def agreement(golden: Path, model: Path, transcoder: Path, folder: Path) -> Agreement:
    """Make weft's graph in an empty folder, and compare."""
    with np.load(golden, allow_pickle=False) as file:
        theirs = {name: file[name] for name in file.files}
    return compare(explain(model, transcoder, theirs["tokens"].tolist(), folder).graph, theirs)


def small(family: str, kind: str) -> Agreement:
    """Compare with a golden."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(family, folder / "m")
        write_transcoder(kind, family, folder / "t")
        return agreement(GOLDENS / f"{family}-{kind}.npz", folder / "m", folder / "t", folder)


def line(name: str, kind: str, tokens: int, found: Agreement) -> str:
    """One row of the page's table."""
    return (
        f"| {name}, {tokens} tokens | {_NAMES[kind]} | {found.shared} of {found.features[0]} and {found.features[1]} "
        f"| {found.beyond} of {found.edges} | {found.worst:.0e} | {found.other_nodes} of {found.nodes} "
        f"| {found.other_edges} of {found.kept_edges} | {found.apart:.0e} |"
    )


def main() -> None:
    """Compare everything and print the table; end with 1 where a graph is another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuit-tracer", required=True, help="Python of an environment that has it")
    parser.add_argument("--model", type=Path, default=Path(".weft/models/smollm2-135m-instruct"))
    parser.add_argument("--page", type=Path, help="a page whose region `same` takes the table")
    options = parser.parse_args()
    lines = [
        "| model | transcoder | features of both | edges apart | largest difference, of the largest edge "
        "| nodes kept by one | edges kept by one | scores apart |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    same = True
    for family in FAMILIES:
        for kind in KINDS:
            found = small(family, kind)
            same &= found.is_same
            lines.append(line(f"random {family}", kind, len(PROMPT), found))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder, here = Path(name), Path(__file__).parent
        subprocess.run(
            [
                options.circuit_tracer, str(here / "make_goldens.py"),
                "--model", str(options.model.absolute()), "--output", str(folder),
            ],
            env=environment(1) | {"PYTHONPATH": str(here.parents[1] / "tests"), "HF_HUB_OFFLINE": "1"},
            check=True,
        )  # fmt: skip
        for kind in KINDS:
            golden = folder / f"{options.model.name}-{kind}.npz"
            (folder / f"ours-{kind}").mkdir()
            found = agreement(golden, options.model, folder / kind, folder / f"ours-{kind}")
            same &= found.is_same
            with np.load(golden, allow_pickle=False) as file:
                lines.append(line(options.model.name, kind, len(file["tokens"]), found))
    print("\n".join(lines), flush=True)
    if options.page:
        options.page.write_text(fill(options.page.read_text(), "same", lines))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
