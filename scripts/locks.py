"""
Compile `requirements/*.txt` from `pyproject.toml`: pinned, hashed, for every platform, naming no index.

    python3 scripts/locks.py            # after a change of dependencies
    python3 scripts/locks.py --upgrade  # to the newest versions that fit

dev.txt and all.txt make environments for people, and vllm.txt one of its own, since vLLM pins what others have newer;
the others are what images are built from, deploy/images.
"""

import subprocess
import sys

from setup import ROOT, find_uv

COMMON = [
    *("--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-header"),
    *("--override", "requirements/overrides.txt"),
]
ENVIRONMENT = ("pyproject.toml", "requirements/build.in")
VLLM_EXTRAS = ("--extra", "vllm", "--extra", "cache", "--extra", "client")
# Everything has the tests' versions.
TESTED = ("--constraints", "requirements/dev.txt")
IMAGES = ("activations", "attribution", "cache", "client", "console", "trainer")
PARTS_OF_IMAGES = ("builder", "standins", "torch")


def compile_lock(name: str, *arguments: str) -> None:
    """Run uv once; its own message says what cannot be resolved."""
    command = [find_uv(), "pip", "compile", *COMMON, *arguments, "--output-file", f"requirements/{name}.txt"]
    if subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, check=False).returncode != 0:
        sys.exit("locks: nothing was resolved; the reason stands above.")


if __name__ == "__main__":
    compile_lock("dev", *ENVIRONMENT, "--extra", "dev")
    compile_lock("all", *ENVIRONMENT, "--extra", "all", *TESTED)
    compile_lock("vllm", *ENVIRONMENT, "requirements/vllm.in", *VLLM_EXTRAS)
    for image in IMAGES:
        compile_lock(image, "pyproject.toml", "--extra", image, *TESTED)
    for part in PARTS_OF_IMAGES:
        compile_lock(part, f"requirements/{part}.in", *TESTED)
