"""The console as a process: how it starts, refuses to, and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Settings of a console whose peers are not there."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    own = {
        "TOKEN": "secret",
        "STATIC_DIR": str(tmp_path),
        "CACHE_TARGET": "127.0.0.1:1",
        "TRAINER_TARGET": "127.0.0.1:1",
        "ATTRIBUTION_TARGET": "127.0.0.1:1",
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    return clean | {f"WEFT_CONSOLE_{name}": value for name, value in own.items()}


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weft_console"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def started(environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A console that listens, and the page's address."""
    command = [sys.executable, "-m", "weft_console"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                event = json.loads(line)
                if event["event"] == "listening":
                    yield process, event["url"]
                    break
        finally:
            process.kill()


def test_console_serves_without_its_peers_and_stops_when_told(environment: dict[str, str]) -> None:
    """SIGTERM ends it with 0, also while a browser keeps a connection open."""
    with started(environment) as (process, url):
        with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
            assert answer.status == 200
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=15) == 0


def test_taken_port_ends_with_3_and_says_what_to_set(environment: dict[str, str]) -> None:
    """Both ports name their own variable."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for name in ("WEFT_CONSOLE_PORT", "WEFT_CONSOLE_METRICS_PORT"):
            result = run(environment | {name: port})
            assert result.returncode == 3
            assert f"set {name} to a free port" in result.stderr.splitlines()[-1]


def test_wrong_settings_end_with_2(environment: dict[str, str]) -> None:
    """A missing peer and a page that is not built are said in one line each."""
    lacking = {name: value for name, value in environment.items() if name != "WEFT_CONSOLE_TRAINER_TARGET"}
    result = run(lacking)
    assert result.returncode == 2
    assert "WEFT_CONSOLE_TRAINER_TARGET: is not set" in result.stderr
    result = run(environment | {"WEFT_CONSOLE_STATIC_DIR": "/nonexistent"})
    assert result.returncode == 2
    assert "make page" in result.stderr
