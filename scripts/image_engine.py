"""What builds images: buildah or docker, whichever is there and works."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

__all__ = ["Build", "Engine", "find_engine"]

# All files of an image carry this time, so that the same inputs give the same bytes.
SOURCE_DATE_EPOCH = "315532800"


@dataclass(frozen=True)
class Build:
    """One image to build; `secrets` are files that only the build's own commands see."""

    image: str
    dockerfile: Path
    context: Path
    arguments: Mapping[str, str]
    secrets: Mapping[str, Path]

    def options(self) -> list[str]:
        """Return what both engines are told in the same words."""
        told = ["--file", str(self.dockerfile), "--tag", self.image]
        for name, value in self.arguments.items():
            told += ["--build-arg", f"{name}={value}"]
        for name, path in self.secrets.items():
            told += ["--secret", f"id={name},src={path}"]
        return told


class Engine(Protocol):
    """Builds an image, says its size, and shows its files."""

    def build(self, build: Build, log: IO[str]) -> bool:
        """Build; whether that worked. What the engine says goes to the log."""
        ...

    def size(self, image: str) -> int:
        """Return the bytes of all layers, uncompressed."""
        ...

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """Give the image's file tree, to read, for as long as the context lasts."""
        ...


class Buildah:
    """Buildah, as root or in a user namespace of its own (`buildah unshare`)."""

    def build(self, build: Build, log: IO[str]) -> bool:
        # Pulled only if it is not there: a local base image needs no registry.
        command = ["buildah", "build", "--layers", "--pull=false", "--timestamp", SOURCE_DATE_EPOCH, *build.options()]
        return _run([*command, str(build.context)], log)

    def size(self, image: str) -> int:
        manifest = json.loads(json.loads(_answer(["buildah", "inspect", "--type", "image", image]))["Manifest"])
        return sum(layer["size"] for layer in manifest["layers"])

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        container = _answer(["buildah", "from", "--pull-never", image])
        try:
            yield Path(_answer(["buildah", "mount", container]))
        finally:
            _answer(["buildah", "rm", container])


class Docker:
    """Docker with BuildKit."""

    def build(self, build: Build, log: IO[str]) -> bool:
        stamped = ["--build-arg", f"SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}"]
        return _run(["docker", "build", *stamped, *build.options(), str(build.context)], log)

    def size(self, image: str) -> int:
        return int(_answer(["docker", "image", "inspect", "--format", "{{.Size}}", image]))

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        container = _answer(["docker", "create", image])
        try:
            with tempfile.TemporaryDirectory() as folder:
                with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
                    subprocess.run(["tar", "-x", "-C", folder], stdin=export.stdout, check=True)
                yield Path(folder)
        finally:
            _answer(["docker", "rm", container])


def find_engine() -> Engine:
    """Return the first engine that is there and answers; a docker command without its daemon does not."""
    if shutil.which("buildah"):
        return Buildah()
    if shutil.which("docker") and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0:
        return Docker()
    sys.exit("images: neither buildah nor a running docker was found; install one, on Debian: apt-get install buildah.")


def _run(command: Sequence[str], log: IO[str]) -> bool:
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    environment = os.environ | {"DOCKER_BUILDKIT": "1"}
    return subprocess.run(command, check=False, stdout=log, stderr=log, env=environment).returncode == 0


def _answer(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"images: `{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout.strip()
