"""An embedded run in a folder of its own, started by `weft up` as a user would."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from weft_client.local.layout import Endpoint, Layout
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
    def endpoints(self) -> dict[str, Endpoint]:
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

    def channel(self, service: str, token: str | None = None) -> grpc.Channel:
        """Open a channel to a service, with its own token unless told otherwise."""
        endpoint = self.endpoints[service]
        return channel(endpoint.target, token=endpoint.token if token is None else token)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without weft's variables, with a terminal of fixed width."""
    kept: Mapping[str, str] = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
    return dict(kept) | {"COLUMNS": "200", "NO_COLOR": "1"}
