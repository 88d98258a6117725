"""
All benchmarks of training on the CPU, one after the other: step, scaling, roofline.

    python benchmarks/training/bench_all.py [--only step scaling roofline] [--threads 1] [--quick]
        [--clt-forge FOLDER --clt-forge-python PYTHON]

Writes `training.json`, `scaling.json` and `roofline.json` into `.weft/bench`, with `--quick` into `.weft/bench/quick`;
`write_page.py` makes tables and plots of them. Where one fails the others are measured, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from machine import environment

HERE = Path(__file__).parent
OUTPUTS = {"step": "training.json", "scaling": "scaling.json", "roofline": "roofline.json"}


def arguments(name: str, options: argparse.Namespace) -> list[str]:
    """Return the options that a benchmark takes."""
    given = ["--threads", str(options.threads), "--output", str(options.folder / OUTPUTS[name])]
    if options.rounds is not None:
        given += ["--rounds", str(options.rounds)]
    if options.quick:
        given.append("--quick")
    if name == "step" and options.clt_forge is not None:
        given += ["--clt-forge", str(options.clt_forge), "--clt-forge-python", options.clt_forge_python]
    return given


def main() -> int:
    """Run what is asked for, in the order of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=OUTPUTS, default=list(OUTPUTS))
    parser.add_argument("--rounds", type=int, help="steps of each side, kernel or point")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge")
    parser.add_argument("--clt-forge-python", default=sys.executable, help="Python of an environment that it runs in")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two rounds, to try the benchmarks")
    parser.add_argument("--folder", type=Path, help="for the figures")
    options = parser.parse_args()
    if options.quick and options.rounds is None:
        options.rounds = 2
    options.folder = options.folder or Path(".weft/bench/quick" if options.quick else ".weft/bench")
    failed = []
    for name in (name for name in OUTPUTS if name in options.only):
        start_s = time.monotonic()
        command = [sys.executable, str(HERE / f"bench_{name}.py"), *arguments(name, options)]
        if subprocess.run(command, env=environment(options.threads), check=False).returncode:
            failed.append(name)
        print(f"bench_{name}: {time.monotonic() - start_s:.0f} s", flush=True)
    if failed:
        print(f"These benchmarks failed: {', '.join(failed)}; what they said stands above.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
