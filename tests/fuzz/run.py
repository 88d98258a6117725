"""
Fuzz the readers of the shard format with atheris, a process for each target, one after the other.

    python tests/fuzz/run.py [--minutes 5] [--targets uniform_block ...] [--keep]

Minutes are of all targets together. Inputs start from `tests/fuzz/corpora`, whose files the fast tests read too; what
is found goes to `.weft/fuzz`, and with `--keep` those inputs that reach new code are put beside the committed ones. An
input that breaks a target is written there, shown, and ends the run with an error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOUND = ROOT / ".weft" / "fuzz"


def _fuzz_here(target: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["weft_store"]):
        from targets import TARGETS, seeds
    for data in seeds()[target].values():  # compiles the loops, which no input is to be blamed for
        TARGETS[target](data)
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def main() -> None:
    """Run each target in a process of its own."""
    if sys.argv[1:2] == ["--here"]:
        _fuzz_here(sys.argv[2], sys.argv[3:])
        return
    from targets import TARGETS, seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of all targets together")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--keep", action="store_true", help="put what reaches new code beside the committed inputs")
    options = parser.parse_args()
    seconds = max(1, round(60 * options.minutes / len(options.targets)))
    for target in options.targets:
        kept, found = HERE / "corpora" / target, FOUND / target
        found.mkdir(parents=True, exist_ok=True)
        if options.keep:
            kept.mkdir(parents=True, exist_ok=True)
            for name, data in seeds()[target].items():
                (kept / name).write_bytes(data)
        here = [sys.executable, __file__, "--here", target]
        limits = ["-rss_limit_mb=2048", "-timeout=60", "-max_len=4096", f"-artifact_prefix={found}/broken-"]
        folder = found / "inputs"
        folder.mkdir(exist_ok=True)
        subprocess.run([*here, *limits, f"-max_total_time={seconds}", str(folder), str(kept)], check=True)
        if options.keep:
            subprocess.run([*here, *limits, "-merge=1", str(kept), str(folder)], check=True)


if __name__ == "__main__":
    main()
