"""`weft health` against a service of this process, one that is starting, and one that is away."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from weft_client.cli import app
from weft_common.server import Server, serving
from weft_common.settings import ServiceSettings

TOKEN = "integration"


def endpoints(folder: Path, **targets: str) -> str:
    path = folder / "endpoints.json"
    path.write_text(
        json.dumps({"services": {name: {"target": target, "token": TOKEN} for name, target in targets.items()}})
    )
    return str(path)


async def weft(path: str, *arguments: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, ["--endpoints", path, "health", *arguments])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The services' own log would stand in the command's output."""
    with capture_logs():
        yield


@pytest.fixture
def settings() -> ServiceSettings:
    return ServiceSettings(token=TOKEN)


async def test_services_that_serve_are_said_to(settings: ServiceSettings, tmp_path: Path) -> None:
    """Every service of the endpoints file is asked; all serve, so the exit status is 0."""
    async with serving("cache", settings, []) as cache, serving("trainer", settings, []) as trainer:
        path = endpoints(tmp_path, cache=cache.target, trainer=trainer.target)
        found = await weft(path, "--json")
        assert found.exit_code == 0
        assert json.loads(found.stdout) == {
            "services": [{"service": "cache", "state": "SERVING"}, {"service": "trainer", "state": "SERVING"}]
        }
        assert [line.split() for line in (await weft(path)).stdout.splitlines()] == [
            ["cache", "SERVING"],
            ["trainer", "SERVING"],
        ]


async def test_service_that_starts_does_not_serve(settings: ServiceSettings, tmp_path: Path) -> None:
    """A service that listens and is not ready says NOT_SERVING; the exit status is 1."""
    server = Server("cache", settings)
    try:
        await server.start()
        found = await weft(endpoints(tmp_path, cache=server.target), "--json")
    finally:
        await server.close()
    assert found.exit_code == 1
    assert json.loads(found.stdout)["services"] == [{"service": "cache", "state": "NOT_SERVING"}]


async def test_service_that_is_away_fails_beside_one_that_serves(settings: ServiceSettings, tmp_path: Path) -> None:
    """One that cannot be reached is told about, and the others are asked all the same."""
    async with serving("trainer", settings, []) as trainer:
        found = await weft(endpoints(tmp_path, cache="127.0.0.1:1", trainer=trainer.target), "--json")
    assert found.exit_code == 1
    away, serves = json.loads(found.stdout)["services"]
    assert "cannot be reached" in away["state"]
    assert serves == {"service": "trainer", "state": "SERVING"}
