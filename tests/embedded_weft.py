"""An embedded run in a folder of its own, started by `weft up` as a user would."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from weft_client.endpoints import Endpoints
from weft_client.local.layout import Layout
from weft_client.local.supervisor import supervisor_pid
from weft_common.client import channel

WEFT = Path(sys.executable).parent / "weft"


@dataclass(frozen=True)
class Embedded:
    """An embedded run in a folder of its own, and ways to talk to it."""

    folder: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.folder / ".weft")

    @property
    def endpoints(self) -> Endpoints:
        return self.layout.read_endpoints()

    def weft(self, *arguments: str, timeout_s: float = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run the command in this run's folder."""
        return subprocess.run(
            [WEFT, *arguments],
            cwd=self.folder,
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def process(self, service: str) -> psutil.Process:
        """Find a service's process."""
        children = psutil.Process(supervisor_pid(self.layout)).children()
        (process,) = [child for child in children if child.cmdline()[-2:] == ["-m", f"weft_{service}"]]
        return process

    def channel(self, service: str, token: str | None = None) -> grpc.Channel:
        """Open a channel to a service, with its own token unless told otherwise."""
        endpoint = self.endpoints[service]
        return channel(endpoint.target, token=endpoint.token if token is None else token)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without weft's variables and contexts, with a terminal of fixed width."""
    kept: Mapping[str, str] = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
    return dict(kept) | {"COLUMNS": "200", "NO_COLOR": "1", "XDG_CONFIG_HOME": "/nonexistent"}


SMALL = ("--tokens", "4500", "--features", "256", "--steps", "14", "--prompt", "The capital of France is")
"""Options of a demo that is whole and takes a minute."""


def demo_folder(folder: Path, models_dir: Path) -> Embedded:
    """Make a folder that has the real model and nothing else."""
    root = folder / ".weft"
    root.mkdir(parents=True)
    (root / "models").symlink_to(models_dir.resolve())
    return Embedded(folder)


def run_demo(run: Embedded, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run `weft demo` to its end and return its summary."""
    result = run.weft("demo", "--exit", *arguments, timeout_s=1400, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    summary: dict[str, Any] = json.loads((run.layout.root / "demo" / "summary.json").read_text())
    return summary
