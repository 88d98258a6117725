"""
Compile `requirements/*.txt` from `pyproject.toml`: pinned, hashed, for every platform, naming no index.

    python3 scripts/locks.py            # after a change of dependencies
    python3 scripts/locks.py --upgrade  # to the newest versions that fit
"""

import subprocess
import sys

from setup import ROOT, find_uv

COMMON = [
    *("--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-header"),
    *("--override", "requirements/overrides.txt", "pyproject.toml", "requirements/build.in"),
]


def compile_lock(*arguments: str) -> None:
    """Run uv once; its own message says what cannot be resolved."""
    command = [find_uv(), "pip", "compile", *COMMON, *arguments, *sys.argv[1:]]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit("locks: nothing was resolved; the reason stands above.")


if __name__ == "__main__":
    compile_lock("--extra", "dev", "--output-file", "requirements/dev.txt")
    # The demo's versions are the tests' versions.
    compile_lock("--extra", "all", "--constraints", "requirements/dev.txt", "--output-file", "requirements/all.txt")
