"""
A real Toxiproxy before a server, which does to its connections what networks do, below what HTTP knows of.

The server is built by `python scripts/toxiproxy.py` (or `make toxiproxy`); where it is not there the tests fail and
say so.
"""

import json
import random
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from built_tool import built_tool
from free_ports import free_port

__all__ = ["HARMFUL", "TOXICS", "Toxiproxy", "toxiproxy"]

HARMFUL: Mapping[str, dict[str, int]] = {
    "timeout": {"timeout": 5},  # nothing comes any more, then the connection is closed
    "reset_peer": {"timeout": 0},
    "limit_data": {"bytes": 300},  # closed in the middle of an answer
}
"""Toxics that no request survives, and their attributes."""
TOXICS: Mapping[str, dict[str, int]] = HARMFUL | {
    "latency": {"latency": 20, "jitter": 15},  # ms
    "bandwidth": {"rate": 300},  # KB/s
    "slicer": {"average_size": 64, "size_variation": 32, "delay": 50},  # bytes; us between them
}
_NAME, _START_S = "bucket", 20.0
_ON_S, _OFF_S = (0.002, 0.02), (0.03, 0.12)


@dataclass(slots=True)
class Toxiproxy:
    """One proxy of a running server, by the server's own interface."""

    control: str
    endpoint: str
    num_poisoned: int = 0
    """How often a toxic was put on."""

    def poison(self, toxic: str) -> None:
        """Put a toxic on the answers of every connection, those there are included."""
        body = {"name": toxic, "type": toxic, "stream": "downstream", "attributes": TOXICS[toxic]}
        self._call("POST", f"/proxies/{_NAME}/toxics", body)
        self.num_poisoned += 1

    def heal(self, toxic: str) -> None:
        """Take it off again."""
        self._call("DELETE", f"/proxies/{_NAME}/toxics/{toxic}")

    @contextmanager
    def now_and_then(self, toxic: str) -> Iterator[None]:
        """Put a toxic on for some milliseconds again and again, as long as this lasts."""
        ended, draws = threading.Event(), random.Random(toxic)

        def strike() -> None:
            while not ended.wait(draws.uniform(*_OFF_S)):
                self.poison(toxic)
                ended.wait(draws.uniform(*_ON_S))
                self.heal(toxic)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.control + path, data, method=method), timeout=10):
            return


@contextmanager
def toxiproxy(upstream: str, folder: Path) -> Iterator[Toxiproxy]:
    """
    Run a server with one proxy for as long as this lasts.

    Args:
        upstream: `host:port` of what stands behind it.
        folder: For its log.
    """
    port, log = free_port(), folder / "toxiproxy.log"
    proxy = Toxiproxy(f"http://127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [built_tool("toxiproxy"), "-host", "127.0.0.1", "-port", str(port)], stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + _START_S
        while True:
            try:
                proxy._call("GET", "/version")
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > end or process.poll() is not None:
                    pytest.fail(f"Toxiproxy did not come up: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
        proxy._call("POST", "/proxies", {"name": _NAME, "listen": proxy.endpoint, "upstream": upstream})
        yield proxy
    finally:
        process.terminate()
        process.wait(20)
