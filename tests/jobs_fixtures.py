"""
The services of `jobs_house` with an index and a language model that answers at once: a pytest plugin with `server`,
`jobs` and `settings`, for modules that import them.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from interpreter_server import InterpreterServer, interpreter_server
from jobs_house import JobsHouse, TokenBrain, jobs_house

from weft_console.settings import ConsoleSettings

__all__ = ["jobs", "server", "settings"]


@pytest.fixture
def server() -> Iterator[InterpreterServer]:
    with interpreter_server(TokenBrain().answer) as served:
        yield served


@pytest.fixture
async def jobs(tmp_path: Path, server: InterpreterServer) -> AsyncIterator[JobsHouse]:
    async with jobs_house(tmp_path, server.url) as made:
        await made.index()
        yield made


@pytest.fixture
def settings(jobs: JobsHouse) -> ConsoleSettings:
    """Of a console before them, in place of one before peers in memory."""
    return jobs.settings
